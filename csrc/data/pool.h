// Threads that fill batches. Batches wait in one queue in the order of need, and an idle thread takes the next sample
// of the first one: with samples of a millisecond, one lock a sample costs nothing, no thread is ever idle while
// another has work in store, and the batch that is needed first is done first.
#pragma once

#include <condition_variable>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "data/sample.h"

namespace torchaccel::data {

struct Batch {
  std::shared_ptr<const Recipe> recipe;
  std::vector<Source> sources;
  uint64_t seed = 0;
  uint32_t epoch = 0;
  uint8_t* out = nullptr;  // [sources][recipe.sample_bytes()]
};

struct Failure {
  int position;
  std::string reason;
};

struct PoolStats {
  Times times;          // of all threads
  int64_t idle = 0;     // nanoseconds that threads had nothing to do
  int64_t samples = 0;  // delivered, failed ones not counted
  int64_t failed = 0;
};

class Pool {
 public:
  explicit Pool(int threads);
  ~Pool();  // after the samples that are being filled
  Pool(const Pool&) = delete;
  Pool& operator=(const Pool&) = delete;

  int64_t submit(Batch batch);  // returns a ticket
  bool wait(int64_t ticket, int milliseconds);
  bool done(int64_t ticket);
  std::vector<Failure> take(int64_t ticket);    // of a batch that is done, which is forgotten
  std::vector<int> unfinished(int64_t ticket);  // positions
  // Forgets all batches; false if samples are still being filled after that time.
  bool cancel(int milliseconds);
  PoolStats stats();

 private:
  struct Job {
    Batch batch;
    size_t next = 0, left = 0;
    std::vector<char> finished;
    std::vector<Failure> failures;
  };

  void work();
  Job& job(int64_t ticket);

  std::mutex mutex_;
  std::condition_variable work_, done_;
  std::map<int64_t, std::shared_ptr<Job>> jobs_;
  std::deque<std::shared_ptr<Job>> queue_;
  int64_t next_ticket_ = 0;
  int running_ = 0;
  bool stop_ = false;
  PoolStats stats_;
  std::vector<std::thread> threads_;
};

}  // namespace torchaccel::data
