#include "data/pool.h"

#include <algorithm>
#include <chrono>
#include <new>
#include <stdexcept>

namespace torchaccel::data {

Pool::Pool(int threads) {
  try {
    for (int i = 0; i < threads; ++i) threads_.emplace_back([this] { work(); });
  } catch (...) {
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      stop_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();
    throw;
  }
}

Pool::~Pool() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
    queue_.clear();
  }
  work_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

int64_t Pool::submit(Batch batch) {
  auto job = std::make_shared<Job>();
  job->left = batch.sources.size();
  job->finished.resize(batch.sources.size());
  job->batch = std::move(batch);
  int64_t ticket;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ticket = next_ticket_++;
    jobs_[ticket] = job;
    if (job->left > 0) queue_.push_back(std::move(job));
  }
  work_.notify_all();
  return ticket;
}

Pool::Job& Pool::job(int64_t ticket) {
  const auto found = jobs_.find(ticket);
  if (found == jobs_.end()) throw std::out_of_range("Pool: no batch has this ticket");
  return *found->second;
}

bool Pool::wait(int64_t ticket, int milliseconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  const Job& wanted = job(ticket);
  return done_.wait_for(lock, std::chrono::milliseconds(milliseconds), [&] { return wanted.left == 0; });
}

bool Pool::done(int64_t ticket) {
  const std::lock_guard<std::mutex> lock(mutex_);
  return job(ticket).left == 0;
}

std::vector<Failure> Pool::take(int64_t ticket) {
  const std::lock_guard<std::mutex> lock(mutex_);
  if (job(ticket).left != 0) throw std::logic_error("Pool: the batch is not done");
  std::vector<Failure> failures = std::move(job(ticket).failures);
  jobs_.erase(ticket);
  std::sort(failures.begin(), failures.end(),
            [](const Failure& a, const Failure& b) { return a.position < b.position; });
  return failures;
}

std::vector<int> Pool::unfinished(int64_t ticket) {
  const std::lock_guard<std::mutex> lock(mutex_);
  std::vector<int> positions;
  const Job& asked = job(ticket);
  for (size_t i = 0; i < asked.finished.size(); ++i) {
    if (!asked.finished[i]) positions.push_back(static_cast<int>(i));
  }
  return positions;
}

bool Pool::cancel(int milliseconds) {
  std::unique_lock<std::mutex> lock(mutex_);
  queue_.clear();
  jobs_.clear();
  return done_.wait_for(lock, std::chrono::milliseconds(milliseconds), [&] { return running_ == 0; });
}

PoolStats Pool::stats() {
  const std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

void Pool::work() {
  Worker worker;
  std::unique_lock<std::mutex> lock(mutex_);
  while (true) {
    if (queue_.empty() && !stop_) {
      const int64_t from = now_ns();
      work_.wait(lock, [&] { return stop_ || !queue_.empty(); });
      stats_.idle += now_ns() - from;
    }
    if (stop_) return;
    const std::shared_ptr<Job> job = queue_.front();
    const size_t position = job->next++;
    if (job->next == job->batch.sources.size()) queue_.pop_front();
    ++running_;
    lock.unlock();

    const Batch& batch = job->batch;
    Times times;
    std::string reason;
    bool failed = true;
    try {
      uint8_t* sample = batch.out + static_cast<int64_t>(position) * batch.recipe->sample_bytes();
      worker.run(batch.sources[position], *batch.recipe, batch.seed, batch.epoch, sample, &times);
      failed = false;
    } catch (const std::bad_alloc&) {
      reason = "out of memory";
    } catch (const std::exception& error) {
      reason = error.what();
    }

    lock.lock();
    --running_;
    stats_.times.read += times.read;
    stats_.times.decode += times.decode;
    stats_.times.resize += times.resize;
    failed ? ++stats_.failed : ++stats_.samples;
    job->finished[position] = 1;
    if (failed) job->failures.push_back({static_cast<int>(position), std::move(reason)});
    // Whoever cancels waits for the last sample of all.
    if (--job->left == 0 || (running_ == 0 && queue_.empty())) done_.notify_all();
  }
}

}  // namespace torchaccel::data
