// Gathers up to 64 output pixels of a convolution (or rows of a matrix) into a panel [K / 4][width][4] of uint8: the
// implicit im2col. K runs over (kh, kw, c). Whatever stride, dilation and padding are, the kernels see only panels.
#pragma once

struct Panel {
  const uint8_t* data;
  int64_t width;   // pixels, a multiple of 16; those past `rows` hold anything
  int64_t stride;  // bytes from one group of 4 to the next: 4 * width
};

struct Pixel {
  const uint8_t* image;
  int64_t y, x;  // of the kernel's first tap
};

// One tap of a pixel, or nullptr in the padding.
TORCHACCEL_INLINE const uint8_t* tap(const Input& in, const Pixel& p, int64_t ky, int64_t kx) {
  const int64_t y = p.y + ky * in.dilation_h, x = p.x + kx * in.dilation_w;
  const bool inside = p.image != nullptr && y >= 0 && y < in.h && x >= 0 && x < in.w;
  return inside ? p.image + (y * in.w + x) * in.c : nullptr;
}

// Channels in whole dwords: straight from the image, tap by tap.
static void gather16_aligned(const Input& in, const Pixel* pixels, const uint8_t* padding, uint8_t* dst,
                             int64_t stride) {
  for (int64_t ky = 0; ky < in.kh; ++ky) {
    for (int64_t kx = 0; kx < in.kw; ++kx) {
      const uint8_t* from[16];
      int64_t step[16];
      for (int i = 0; i < 16; ++i) {
        const uint8_t* p = tap(in, pixels[i], ky, kx);
        from[i] = p != nullptr ? p : padding + 64 * i;
        step[i] = p != nullptr ? 64 : 0;
      }
      for (int64_t c = 0; c < in.group_channels; c += 64) {
        const int64_t left = (in.group_channels - c) / 4;
        transpose16(from, static_cast<int>(left < 16 ? left : 16), in.flip, dst, stride);
        dst += 16 * stride;
        for (int i = 0; i < 16; ++i) from[i] += step[i];
      }
      dst += ((in.group_channels / 4 + 15) / 16 * -16 + in.group_channels / 4) * stride;
    }
  }
}

// Any number of channels: first a row of bytes for each pixel, then the rows transposed.
static void gather16_bytes(const Input& in, const Pixel* pixels, const uint8_t* padding, uint8_t* bytes, uint8_t* dst,
                           int64_t stride) {
  const uint8_t* rows[16];
  const int64_t row_bytes = in.row_bytes(), c = in.group_channels;
  const bool whole_lines = in.dilation_w == 1 && c == in.c;
  for (int i = 0; i < 16; ++i) {
    uint8_t* to = bytes + i * row_bytes;
    rows[i] = to;
    for (int64_t ky = 0; ky < in.kh; ++ky) {
      const uint8_t* first = tap(in, pixels[i], ky, 0);
      if (whole_lines && first != nullptr && pixels[i].x + in.kw <= in.w) {
        memcpy(to, first, static_cast<size_t>(in.kw * c));
        to += in.kw * c;
        continue;
      }
      for (int64_t kx = 0; kx < in.kw; ++kx, to += c) {
        const uint8_t* p = tap(in, pixels[i], ky, kx);
        if (p != nullptr) {
          memcpy(to, p, static_cast<size_t>(c));
        } else {
          memset(to, padding[64 * i], static_cast<size_t>(c));
        }
      }
    }
    memset(to, 0, static_cast<size_t>(bytes + (i + 1) * row_bytes - to));
  }
  for (int64_t k = 0, left = in.depth4(); left > 0; k += 16, left -= 16) {
    transpose16(rows, static_cast<int>(left < 16 ? left : 16), in.flip, dst + k * stride, stride);
    for (int i = 0; i < 16; ++i) rows[i] += 64;
  }
}

// Output pixels [row, row + count) of one group; `scratch` has in.scratch_bytes().
static Panel gather(const Input& in, int64_t group, int64_t row, int64_t count, uint8_t* scratch) {
  const int64_t width = (count + 15) / 16 * 16, stride = 4 * width;
  uint8_t* padding = scratch + in.depth4() * kPanelRows * 4;
  uint8_t* bytes = padding + kLanes * 64;
  for (int64_t first = 0; first < width; first += 16) {
    Pixel pixels[16];
    for (int i = 0; i < 16; ++i) {
      const int64_t pixel = row + first + i;
      if (first + i >= count) {
        pixels[i] = {nullptr, 0, 0};
        memset(padding + 64 * i, 0, 64);
        continue;
      }
      const int64_t n = pixel / (in.oh * in.ow), y = pixel / in.ow % in.oh, x = pixel % in.ow;
      pixels[i] = {in.data + n * in.h * in.w * in.c + group * in.group_channels, y * in.stride_h - in.pad_h,
                   x * in.stride_w - in.pad_w};
      const int32_t zero_point = in.zero_point == nullptr ? 0 : in.zero_point[n * in.zero_point_step];
      memset(padding + 64 * i, zero_point & 0xff, 64);
    }
    if (in.group_channels % 4 == 0) {
      gather16_aligned(in, pixels, padding, scratch + 4 * first, stride);
    } else {
      gather16_bytes(in, pixels, padding, bytes, scratch + 4 * first, stride);
    }
  }
  return {scratch, width, stride};
}
