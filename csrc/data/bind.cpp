// Python's view of csrc/data. Whatever decodes runs without the GIL; Python objects whose memory is read are kept until
// their batch is taken.
#include <cstdio>
// jpeglib.h needs <cstdio> first.
#include <jpeglib.h>
#include <png.h>
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <unistd.h>

#include <optional>
#include <utility>

#include "data/pool.h"

namespace py = pybind11;

namespace torchaccel::data {
namespace {

#define TORCHACCEL_TEXT_OF(words) #words
#define TORCHACCEL_TEXT(name) TORCHACCEL_TEXT_OF(name)

constexpr int kPatience = 20;  // milliseconds between two looks for Ctrl-C

template <class T>
T one_of(const std::string& name, const std::string& given, std::initializer_list<std::pair<const char*, T>> accepted) {
  for (const auto& [word, value] : accepted) {
    if (given == word) return value;
  }
  throw py::value_error("Recipe: " + name + " is '" + given + "'");
}

std::shared_ptr<Recipe> make_recipe(std::pair<int, int> size, int channels, const std::string& resize,
                                    std::pair<int, int> resize_to, std::pair<double, double> area,
                                    std::pair<double, double> log_ratio, const std::string& crop, int padding,
                                    double flip, const std::string& dtype, bool channels_last,
                                    const std::optional<py::array_t<float, py::array::c_style>>& table) {
  auto recipe = std::make_shared<Recipe>();
  recipe->out = {size.second, size.first};
  recipe->channels = channels;
  recipe->resize = one_of<Resize>("resize", resize,
                                  {{"none", Resize::kNone},
                                   {"short side", Resize::kShortSide},
                                   {"exact", Resize::kExact},
                                   {"random crop", Resize::kRandomCrop}});
  recipe->resize_to = {resize_to.second, resize_to.first};
  recipe->area[0] = area.first;
  recipe->area[1] = area.second;
  recipe->log_ratio[0] = log_ratio.first;
  recipe->log_ratio[1] = log_ratio.second;
  recipe->crop =
      one_of<Crop>("crop", crop, {{"none", Crop::kNone}, {"center", Crop::kCenter}, {"random", Crop::kRandom}});
  recipe->padding = padding;
  recipe->flip = flip;
  recipe->type =
      one_of<Type>("dtype", dtype, {{"uint8", Type::kUint8}, {"float16", Type::kFloat16}, {"float32", Type::kFloat32}});
  recipe->channels_last = channels_last;
  if (recipe->out.width < 1 || recipe->out.height < 1 || (channels != 1 && channels != 3)) {
    throw py::value_error("Recipe: size and channels are out of range");
  }
  const auto side = [](int value) { return value >= 1 && value <= (1 << 16); };
  if ((recipe->resize == Resize::kShortSide || recipe->resize == Resize::kExact) &&
      !(side(resize_to.first) && side(resize_to.second))) {
    throw py::value_error("Recipe: resize_to is out of range");
  }
  if (recipe->type != Type::kUint8) {
    if (!table || table->size() != 256 * channels) throw py::value_error("Recipe: table is not [channels, 256]");
    recipe->float_table.assign(table->data(), table->data() + table->size());
    const py::object half = table->attr("astype")("float16").attr("view")("uint16");
    const auto bits = half.cast<py::array_t<uint16_t, py::array::c_style>>();
    recipe->half_table.assign(bits.data(), bits.data() + bits.size());
  }
  return recipe;
}

// A path (str), a range of a file (descriptor, offset, count), pixels (uint8 array [H, W] or [H, W, C]), or the bytes
// of an encoded image.
Source make_source(const py::handle& item, uint64_t index, int channels, py::list* keep) {
  Source source;
  source.index = index;
  if (PyUnicode_Check(item.ptr())) {
    const auto encoded = py::reinterpret_steal<py::bytes>(PyUnicode_EncodeFSDefault(item.ptr()));
    if (!encoded) throw py::error_already_set();
    source.path = encoded;
    if (source.path.find('\0') != std::string::npos) throw py::value_error("read: a path holds a zero byte");
  } else if (py::isinstance<py::tuple>(item)) {
    const auto range = item.cast<std::tuple<int, int64_t, int64_t>>();
    source.descriptor = std::get<0>(range);
    source.offset = std::get<1>(range);
    const int64_t count = std::get<2>(range);
    if (source.descriptor < 0 || source.offset < 0 || count < 0 || count > (int64_t{1} << 30)) {
      throw py::value_error("read: a range (descriptor, offset, count) is out of bounds");
    }
    source.count = static_cast<size_t>(count);
  } else if (py::isinstance<py::array>(item)) {
    const auto pixels = py::reinterpret_borrow<py::array>(item);
    const bool fits = (pixels.ndim() == 3 && pixels.shape(2) == channels) || (pixels.ndim() == 2 && channels == 1);
    if (!fits || !py::isinstance<py::array_t<uint8_t>>(item) || !(pixels.flags() & py::array::c_style)) {
      throw py::value_error("read: pixels are not a contiguous uint8 array [H, W, " + std::to_string(channels) + "]");
    }
    if (pixels.shape(0) < 1 || pixels.shape(1) < 1 || pixels.size() > kMostPixels) {
      throw py::value_error("read: an array of pixels is empty or larger than 2^27");
    }
    source.memory = static_cast<const uint8_t*>(pixels.data());
    source.count = static_cast<size_t>(pixels.size());
    source.pixels = {static_cast<int>(pixels.shape(1)), static_cast<int>(pixels.shape(0))};
    keep->append(pixels);
  } else {
    const auto view = py::reinterpret_steal<py::object>(PyMemoryView_FromObject(item.ptr()));
    if (!view) throw py::error_already_set();
    const Py_buffer* buffer = PyMemoryView_GET_BUFFER(view.ptr());
    if (!PyBuffer_IsContiguous(buffer, 'C')) throw py::value_error("read: the bytes are not contiguous");
    static const uint8_t nothing = 0;
    source.memory = buffer->len > 0 ? static_cast<const uint8_t*>(buffer->buf) : &nothing;
    source.count = static_cast<size_t>(buffer->len);
    keep->append(view);
  }
  return source;
}

uint8_t* place(const py::array& out, const Recipe& recipe, size_t samples) {
  const auto bytes = static_cast<int64_t>(out.nbytes());
  if (!out.writeable() || !(out.flags() & py::array::c_style) ||
      bytes < static_cast<int64_t>(samples) * recipe.sample_bytes()) {
    throw py::value_error("Pool: out is not a writable, contiguous array of the batch's size");
  }
  return static_cast<uint8_t*>(const_cast<void*>(out.data()));
}

class PyPool {
 public:
  explicit PyPool(int threads) : process_(getpid()) {
    if (threads < 1 || threads > 1024) throw py::value_error("Pool: threads must be in 1..1024");
    pool_ = std::make_unique<Pool>(threads);
  }
  ~PyPool() { close(); }

  int64_t submit(const std::shared_ptr<Recipe>& recipe, const py::sequence& items, const std::vector<uint64_t>& indices,
                 uint64_t seed, uint32_t epoch, const py::array& out) {
    if (items.size() != indices.size()) throw py::value_error("Pool: items and indices differ in number");
    Batch batch;
    batch.recipe = recipe;
    batch.seed = seed;
    batch.epoch = epoch;
    batch.out = place(out, *recipe, indices.size());
    py::list keep;
    keep.append(out);
    for (size_t i = 0; i < indices.size(); ++i) {
      batch.sources.push_back(make_source(items[i], indices[i], recipe->channels, &keep));
    }
    const int64_t ticket = pool().submit(std::move(batch));
    kept_[ticket] = keep;
    return ticket;
  }

  // Whether the batch is done within that time; seconds < 0 wait for as long as it takes. Ctrl-C ends it.
  bool wait(int64_t ticket, double seconds) {
    const int64_t until = now_ns() + static_cast<int64_t>(seconds * 1e9);
    while (true) {
      bool done;
      {
        const py::gil_scoped_release release;
        done = pool().wait(ticket, kPatience);
      }
      if (done) return true;
      if (PyErr_CheckSignals() != 0) throw py::error_already_set();
      if (seconds >= 0 && now_ns() > until) return false;
    }
  }

  std::vector<std::pair<int, std::string>> take(int64_t ticket) {
    std::vector<std::pair<int, std::string>> failures;
    for (Failure& failure : pool().take(ticket)) failures.emplace_back(failure.position, std::move(failure.reason));
    kept_.erase(ticket);
    return failures;
  }

  bool done(int64_t ticket) { return pool().done(ticket); }
  std::vector<int> unfinished(int64_t ticket) { return pool().unfinished(ticket); }

  void cancel() {
    bool idle = false;
    while (!idle) {
      {
        const py::gil_scoped_release release;
        idle = pool().cancel(kPatience);
      }
      if (!idle && PyErr_CheckSignals() != 0) throw py::error_already_set();
    }
    kept_.clear();
  }

  py::dict stats() {
    const PoolStats found = pool().stats();
    py::dict told;
    told["read"] = found.times.read * 1e-9;
    told["decode"] = found.times.decode * 1e-9;
    told["resize"] = found.times.resize * 1e-9;
    told["idle"] = found.idle * 1e-9;
    told["samples"] = found.samples;
    told["failed"] = found.failed;
    return told;
  }

  void close() {
    if (pool_ == nullptr) return;
    if (getpid() != process_) {
      // After a fork the threads are the parent's, and a lock that one of them held stays held here for ever.
      static_cast<void>(pool_.release());
    } else {
      const py::gil_scoped_release release;
      pool_.reset();
    }
    kept_.clear();
  }

 private:
  Pool& pool() {
    if (pool_ == nullptr) throw std::runtime_error("Pool: it is closed");
    if (getpid() != process_) throw std::runtime_error("Pool: its threads belong to the parent process");
    return *pool_;
  }

  pid_t process_;
  std::unique_ptr<Pool> pool_;
  std::map<int64_t, py::list> kept_;
};

// One sample in the calling thread. Raises ValueError with the reason where it cannot be delivered.
void fill(const std::shared_ptr<Recipe>& recipe, const py::handle& item, uint64_t index, uint64_t seed, uint32_t epoch,
          const py::array& out, size_t position) {
  py::list keep;
  const Source source = make_source(item, index, recipe->channels, &keep);
  uint8_t* sample = place(out, *recipe, position + 1) + static_cast<int64_t>(position) * recipe->sample_bytes();
  const py::gil_scoped_release release;
  static thread_local Worker worker;
  Times times;
  try {
    worker.run(source, *recipe, seed, epoch, sample, &times);
  } catch (const BadSample& error) {
    throw py::value_error(error.what());
  }
}

}  // namespace

PYBIND11_MODULE(_data, m) {
  m.doc() = "Decodes, crops, resizes, flips, normalizes and collates images on threads of its own.";
  m.attr("jpeg") = "libjpeg-turbo " TORCHACCEL_TEXT(LIBJPEG_TURBO_VERSION);
  m.attr("png") = std::string("libpng ") + png_get_libpng_ver(nullptr);
  m.attr("isa") = kernels().name;
  py::class_<Recipe, std::shared_ptr<Recipe>>(m, "Recipe")
      .def(py::init(&make_recipe), py::kw_only(), py::arg("size"), py::arg("channels"), py::arg("resize"),
           py::arg("resize_to"), py::arg("area"), py::arg("log_ratio"), py::arg("crop"), py::arg("padding"),
           py::arg("flip"), py::arg("dtype"), py::arg("channels_last"), py::arg("table").none(true));
  py::class_<PyPool>(m, "Pool")
      .def(py::init<int>(), py::arg("threads"))
      .def("submit", &PyPool::submit, py::arg("recipe"), py::arg("items"), py::arg("indices"), py::arg("seed"),
           py::arg("epoch"), py::arg("out"))
      .def("wait", &PyPool::wait, py::arg("ticket"), py::arg("seconds"))
      .def("done", &PyPool::done, py::arg("ticket"))
      .def("take", &PyPool::take, py::arg("ticket"))
      .def("unfinished", &PyPool::unfinished, py::arg("ticket"))
      .def("cancel", &PyPool::cancel)
      .def("stats", &PyPool::stats)
      .def("close", &PyPool::close);
  m.def("fill", &fill, py::arg("recipe"), py::arg("item"), py::arg("index"), py::arg("seed"), py::arg("epoch"),
        py::arg("out"), py::arg("position"));
}

}  // namespace torchaccel::data
