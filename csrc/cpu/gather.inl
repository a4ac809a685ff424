// Gathers up to 64 output pixels of a convolution (or rows of a matrix) into a panel [K / 4][width][4] of uint8: the
// implicit im2col. K runs over (kh, kw, c). Whatever stride, dilation and padding are, the kernels see only panels.
#pragma once

struct Panel {
  const uint8_t* data;
  int64_t width;   // pixels, a multiple of 16; those past the last one hold anything
  int64_t stride;  // bytes from one group of 4 to the next: 4 * width
};

// 16 output pixels, by their first tap.
struct Pixels {
  const uint8_t* first[16];  // may lie outside the image; nullptr past the last pixel
  int64_t y[16], x[16];
  bool inside;             // all taps of all pixels lie in the image
  const uint8_t* padding;  // 64 bytes a pixel
};

// The tap (ky, kx) of pixel i, or nullptr in the padding.
TORCHACCEL_INLINE const uint8_t* tap(const Input& in, const Pixels& p, int i, int64_t ky, int64_t kx) {
  const int64_t y = p.y[i] + ky * in.dilation_h, x = p.x[i] + kx * in.dilation_w;
  const bool inside = p.first[i] != nullptr && y >= 0 && y < in.h && x >= 0 && x < in.w;
  return inside ? p.first[i] + (ky * in.dilation_h * in.w + kx * in.dilation_w) * in.c : nullptr;
}

// Where an output pixel lies; stepped, since three divisions a pixel would cost as much as its multiplications.
struct Cursor {
  int64_t n, y, x;
};

// The next 16 of which `count` exist; `padding` has room for 16 * 64 bytes.
static Pixels next_pixels(const Input& in, int64_t group, Cursor& at, int64_t count, uint8_t* padding) {
  Pixels p;
  p.padding = padding;
  p.inside = count >= 16;
  const int64_t last_y = (in.kh - 1) * in.dilation_h, last_x = (in.kw - 1) * in.dilation_w;
  for (int i = 0; i < 16; ++i) {
    if (i >= count) {
      p.first[i] = nullptr;
      p.y[i] = p.x[i] = 0;
      memset(padding + 64 * i, 0, 64);
      continue;
    }
    const int64_t y = at.y * in.stride_h - in.pad_h, x = at.x * in.stride_w - in.pad_w;
    p.y[i] = y;
    p.x[i] = x;
    p.first[i] = in.data + ((at.n * in.h + y) * in.w + x) * in.c + group * in.group_channels;
    if (y < 0 || x < 0 || y + last_y >= in.h || x + last_x >= in.w) {
      p.inside = false;
      const int32_t zero_point = in.zero_point == nullptr ? 0 : in.zero_point[at.n * in.zero_point_step];
      memset(padding + 64 * i, zero_point & 0xff, 64);
    }
    if (++at.x == in.ow) {
      at.x = 0;
      if (++at.y == in.oh) at.y = 0, ++at.n;
    }
  }
  return p;
}

// Channels in whole dwords: straight from the image, tap by tap, groups [begin, end) of 4 along K.
static void gather16_aligned(const Input& in, const Pixels& pixels, int64_t begin, int64_t end, uint8_t* dst,
                             int64_t stride) {
  if (begin == end) return;  // also where there are no channels at all
  const int64_t groups = in.group_channels / 4;
  int64_t ky = begin / groups / in.kw, kx = begin / groups % in.kw, group = begin % groups;
  for (int64_t k = begin; k < end; group = 0) {
    const uint8_t* from[16];
    int64_t step[16];
    const int64_t offset = (ky * in.dilation_h * in.w + kx * in.dilation_w) * in.c;
    for (int i = 0; i < 16; ++i) {
      const uint8_t* p = pixels.inside ? pixels.first[i] + offset : tap(in, pixels, i, ky, kx);
      from[i] = p != nullptr ? p + 4 * group : pixels.padding + 64 * i;
      step[i] = p != nullptr ? 64 : 0;
    }
    const int64_t stop = k + groups - group < end ? k + groups - group : end;
    // A 1x1 kernel reads each byte once, and its panels end where pages do: ask for the next panel's now.
    if (in.kh * in.kw == 1 && pixels.inside) {
      const int64_t ahead = kPanelRows * in.stride_w * in.c;
      for (int i = 0; i < 16; ++i) {
        for (int64_t b = 0; b < 4 * (stop - k); b += 64) __builtin_prefetch(from[i] + ahead + b);
      }
    }
    for (; k < stop; k += 16, dst += 16 * stride) {
      transpose16(from, static_cast<int>(stop - k < 16 ? stop - k : 16), in.flip, dst, stride);
      for (int i = 0; i < 16; ++i) from[i] += step[i];
    }
    dst -= (k - stop) * stride;
    k = stop;
    if (++kx == in.kw) kx = 0, ++ky;
  }
}

// Any number of channels: first a row of bytes for each pixel, then the rows transposed.
static void gather16_bytes(const Input& in, const Pixels& pixels, int64_t begin, int64_t end, uint8_t* bytes,
                           uint8_t* dst, int64_t stride) {
  const uint8_t* rows[16];
  const int64_t row_bytes = in.row_bytes(), c = in.group_channels;
  const bool whole_lines = in.dilation_w == 1 && c == in.c;
  for (int i = 0; i < 16; ++i) {
    uint8_t* to = bytes + i * row_bytes;
    rows[i] = to + 4 * begin;
    for (int64_t ky = 0; ky < in.kh; ++ky) {
      const uint8_t* first = tap(in, pixels, i, ky, 0);
      if (whole_lines && first != nullptr && pixels.x[i] + in.kw <= in.w) {
        memcpy(to, first, static_cast<size_t>(in.kw * c));
        to += in.kw * c;
        continue;
      }
      for (int64_t kx = 0; kx < in.kw; ++kx, to += c) {
        const uint8_t* p = tap(in, pixels, i, ky, kx);
        if (p != nullptr) {
          memcpy(to, p, static_cast<size_t>(c));
        } else {
          memset(to, pixels.padding[64 * i], static_cast<size_t>(c));
        }
      }
    }
    memset(to, 0, static_cast<size_t>(bytes + (i + 1) * row_bytes - to));
  }
  for (int64_t k = begin; k < end; k += 16, dst += 16 * stride) {
    transpose16(rows, static_cast<int>(end - k < 16 ? end - k : 16), in.flip, dst, stride);
    for (int i = 0; i < 16; ++i) rows[i] += 64;
  }
}

// Groups [begin, end) of 4 along K of the output pixels [row, row + count) of one channel group: blocks of 16 pixels
// `step` bytes apart, groups of 4 `stride` bytes apart; `scratch` has in.gather_bytes().
static void gather_blocks(const Input& in, int64_t group, int64_t row, int64_t count, int64_t begin, int64_t end,
                          uint8_t* to, int64_t step, int64_t stride, uint8_t* scratch) {
  Cursor at = {row / (in.oh * in.ow), row / in.ow % in.oh, row % in.ow};
  for (int64_t first = 0; first < count; first += 16, to += step) {
    const Pixels pixels = next_pixels(in, group, at, count - first, scratch);
    if (in.group_channels % 4 == 0) {
      gather16_aligned(in, pixels, begin, end, to, stride);
    } else {
      gather16_bytes(in, pixels, begin, end, scratch + kLanes * 64, to, stride);
    }
  }
}

// The same as one panel.
static Panel gather(const Input& in, int64_t group, int64_t row, int64_t count, int64_t begin, int64_t end,
                    uint8_t* panel, uint8_t* scratch) {
  const int64_t width = (count + 15) / 16 * 16, stride = 4 * width;
  gather_blocks(in, group, row, count, begin, end, panel, 64, stride, scratch);
  return {panel, width, stride};
}
