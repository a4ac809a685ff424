// The inner loops in plain C++ and GCC's vectors. Include inside a namespace of its own; no std templates here, since
// the linker could pick a copy compiled for a newer processor.

// The includer's:
static void reverse(const uint8_t* row, int size, int channels, uint8_t* out);
static void across(const uint8_t* row, const Weights& weights, int channels, uint8_t* out);
static void down(const uint8_t* const* rows, const int32_t* weight, int count, int bytes, uint8_t* out);

typedef int32_t Lanes __attribute__((vector_size(16)));  // the channels of a pixel, and what lies behind them
typedef uint8_t Bytes __attribute__((vector_size(4)));

constexpr int32_t kHalf = 1 << (kWeightBits - 1);

template <int kChannels>
static void across_pixels(const uint8_t* row, const Weights& weights, uint8_t* out) {
  const int32_t* weight = weights.weights;
  for (int x = 0; x < weights.size; ++x, weight += weights.width, out += kChannels) {
    const uint8_t* p = row + weights.first[x] * kChannels;
    Lanes sum = {kHalf, kHalf, kHalf, kHalf};
    for (int k = 0; k < weights.count[x]; ++k, p += kChannels) {
      Bytes pixel;
      __builtin_memcpy(&pixel, p, 4);
      sum += __builtin_convertvector(pixel, Lanes) * weight[k];
    }
    // Weights are not negative and add up to one, so that only rounding can lead above 255.
    sum >>= kWeightBits;
    sum = sum > 255 ? (Lanes){255, 255, 255, 255} : sum;
    const Bytes pixel = __builtin_convertvector(sum, Bytes);
    __builtin_memcpy(out, &pixel, 4);  // the next pixel overwrites what is too much
  }
}

// Outputs from `i` on.
static void down_from(int i, const uint8_t* const* rows, const int32_t* weight, int count, int bytes, uint8_t* out) {
  for (; i < bytes; ++i) {
    int32_t sum = kHalf;
    for (int k = 0; k < count; ++k) sum += rows[k][i] * weight[k];
    sum >>= kWeightBits;
    out[i] = static_cast<uint8_t>(sum > 255 ? 255 : sum);
  }
}

static void reverse_pixels(const uint8_t* row, int size, int channels, uint8_t* out) {
  for (int x = 0; x < size; ++x) {
    for (int c = 0; c < channels; ++c) out[(size - 1 - x) * channels + c] = *row++;
  }
}

static void split(const uint8_t* row, int size, int64_t plane, uint8_t* out) {
  uint8_t* __restrict red = out;
  uint8_t* __restrict green = out + plane;
  uint8_t* __restrict blue = out + 2 * plane;
  for (int x = 0; x < size; ++x) {
    red[x] = row[3 * x];
    green[x] = row[3 * x + 1];
    blue[x] = row[3 * x + 2];
  }
}

template <class T>
static void interleaved(const uint8_t* row, const T* table, int size, int channels, T* out) {
  if (channels == 1) {
    for (int x = 0; x < size; ++x) out[x] = table[row[x]];
    return;
  }
  for (int x = 0; x < size; ++x) {
    out[3 * x] = table[row[3 * x]];
    out[3 * x + 1] = table[256 + row[3 * x + 1]];
    out[3 * x + 2] = table[512 + row[3 * x + 2]];
  }
}

template <class T>
static void planes(const uint8_t* row, const T* table, int size, int channels, int64_t plane, T* out) {
  if (channels == 1) return interleaved(row, table, size, channels, out);
  T* __restrict red = out;
  T* __restrict green = out + plane;
  T* __restrict blue = out + 2 * plane;
  for (int x = 0; x < size; ++x) {
    red[x] = table[row[3 * x]];
    green[x] = table[256 + row[3 * x + 1]];
    blue[x] = table[512 + row[3 * x + 2]];
  }
}

Kernels make() {
  return {kName,         across,          down, reverse, split, interleaved<float>, interleaved<uint16_t>,
          planes<float>, planes<uint16_t>};
}
