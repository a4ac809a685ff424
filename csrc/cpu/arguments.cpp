#include "arguments.h"

#include <array>
#include <cmath>

namespace torchaccel {
namespace {

Type type_of(const char* op, const char* name, ScalarType dtype) {
  check_dtype(op, name, dtype, {ScalarType::Float, ScalarType::Char, ScalarType::Byte});
  return dtype == ScalarType::Float ? Type::kFloat32 : dtype == ScalarType::Char ? Type::kInt8 : Type::kUint8;
}

}  // namespace

Activation activation_of(const char* op, const std::string& name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kRelu;
  if (name == "relu6") return Activation::kRelu6;
  if (name == "gelu") return Activation::kGelu;
  if (name == "silu") return Activation::kSilu;
  STD_TORCH_CHECK(false, op, ": activation is '", name, "', accepted are none, relu, relu6, gelu, silu");
}

bool is_signed_int8(const char* op, const char* name, ScalarType dtype) {
  check_dtype(op, name, dtype, {ScalarType::Char, ScalarType::Byte});
  return dtype == ScalarType::Char;
}

Output make_output(Arguments& args, ScalarType out_dtype, const OptionalTensor& scale_out,
                   const OptionalTensor& zero_point_out) {
  Output out = {};
  out.type = type_of(args.op(), "out_dtype", out_dtype);
  const bool integer = out.type != Type::kFloat32;
  STD_TORCH_CHECK(integer == scale_out.has_value(), args.op(), ": out_dtype is ", name_of(out_dtype), " with ",
                  integer ? "no" : "a", " scale_out; int8 and uint8 need one, float types take none");
  const float scale = args.scalar<float>("scale_out", scale_out, ScalarType::Float).value_or(1.0f);
  STD_TORCH_CHECK(scale > 0 && scale < HUGE_VALF, args.op(), ": scale_out is ", scale,
                  ", accepted is a finite number above 0");
  out.inverse_scale = 1.0f / scale;
  out.zero_point = args.scalar<int32_t>("zero_point_out", zero_point_out, ScalarType::Int).value_or(0);
  return out;
}

LinearSizes linear_sizes(const char* op, const char* name, const Tensor& x, const Tensor& b) {
  check_dtype(op, "b", b.scalar_type(), {ScalarType::Char});
  check_device(op, "b", b, x);
  STD_TORCH_CHECK(b.dim() == 2, op, ": b has shape ", shape_of(b), ", accepted is [N, K]");
  LinearSizes s = {1, b.size(0), b.size(1), {x.sizes().begin(), x.sizes().end()}};
  STD_TORCH_CHECK(x.dim() > 0 && s.out.back() == s.k, op, ": ", name, " has shape ", shape_of(x), ", b has K=", s.k);
  s.out.back() = s.n;
  for (size_t i = 0; i + 1 < s.out.size(); ++i) s.m *= s.out[i];
  return s;
}

Epilogue make_epilogue(Arguments& args, const EpilogueTensors& t, int64_t units, int64_t channels, int64_t depth,
                       bool is_signed) {
  // Sums of products with |a| <= 128 or 255 and |b| <= 128 stay below 2^31.
  const int64_t deepest = is_signed ? 131071 : 65793;
  STD_TORCH_CHECK(depth <= deepest, args.op(), ": K=", depth, " could overflow int32; at most ", deepest,
                  " is accepted");
  Epilogue e = {};
  e.channels = channels;
  e.rows_per_scale = 1;
  e.colsum = args.vector<int32_t>("colsum", t.colsum, ScalarType::Int, channels);
  e.scale_b = args.vector<float>("scale_b", t.scale_b, ScalarType::Float, channels);
  e.bias = args.vector<float>("bias", t.bias, ScalarType::Float, channels);
  e.scale_a = args.vector<float>("scale_a", t.scale_a, ScalarType::Float, 1, units);
  e.scale_a_step = e.scale_a == nullptr || t.scale_a->numel() == 1 ? 0 : 1;
  e.zero_point = args.vector<int32_t>("zero_point", t.zero_point, ScalarType::Int, 1, units);
  e.zero_point_step = e.zero_point == nullptr || t.zero_point->numel() == 1 ? 0 : 1;
  e.zero_point_shift = is_signed ? 128 : 0;
  e.activation = activation_of(args.op(), t.activation);
  const Output out = make_output(args, t.out_dtype, t.scale_out, t.zero_point_out);
  e.out_type = out.type;
  e.inverse_scale_out = out.inverse_scale;
  e.zero_point_out = out.zero_point;
  return e;
}

void set_residual(Arguments& args, const ResidualTensors& t, const Tensor& out, Epilogue& e, Tensor& kept) {
  e.residual_type = Type::kNone;
  if (!t.residual.has_value()) return;
  e.residual_type = type_of(args.op(), "residual", t.residual->scalar_type());
  const bool integer = e.residual_type != Type::kFloat32;
  STD_TORCH_CHECK(integer == t.scale.has_value(), args.op(), ": residual is ", name_of(t.residual->scalar_type()),
                  integer ? " without" : " with", " scale_residual; int8 and uint8 need one, float types take none");
  STD_TORCH_CHECK(shape_of(*t.residual) == shape_of(out), args.op(), ": residual has shape ", shape_of(*t.residual),
                  ", accepted is ", shape_of(out));
  check_device(args.op(), "residual", *t.residual, out);
  kept = in_nhwc(*t.residual);
  e.residual = kept.const_data_ptr();
  e.residual_scale = args.scalar<float>("scale_residual", t.scale, ScalarType::Float).value_or(1.0f);
  e.residual_zero_point = args.scalar<int32_t>("zero_point_residual", t.zero_point, ScalarType::Int).value_or(0);
}

Input make_input(Arguments& args, const Tensor& a, const Geometry& g, int64_t kh, int64_t kw, int64_t groups) {
  check_pair(args.op(), "stride", g.stride, 1);
  check_pair(args.op(), "padding", g.padding, 0);
  check_pair(args.op(), "dilation", g.dilation, 1);
  Input in = {};
  in.data = static_cast<const uint8_t*>(a.const_data_ptr());
  in.n = a.size(0), in.c = a.size(1), in.h = a.size(2), in.w = a.size(3);
  in.kh = kh, in.kw = kw;
  in.stride_h = g.stride[0], in.stride_w = g.stride[1];
  in.pad_h = g.padding[0], in.pad_w = g.padding[1];
  in.dilation_h = g.dilation[0], in.dilation_w = g.dilation[1];
  const int64_t height = in.h + 2 * in.pad_h - in.dilation_h * (kh - 1) - 1;
  const int64_t width = in.w + 2 * in.pad_w - in.dilation_w * (kw - 1) - 1;
  STD_TORCH_CHECK(kh > 0 && kw > 0 && height >= 0 && width >= 0, args.op(), ": a kernel of (", kh, ", ", kw,
                  ") with dilation (", in.dilation_h, ", ", in.dilation_w, ") does not fit an input of (", in.h, ", ",
                  in.w, ")");
  in.oh = height / in.stride_h + 1;
  in.ow = width / in.stride_w + 1;
  in.group_channels = in.c / groups;
  in.flip = a.scalar_type() == ScalarType::Char ? 0x80808080u : 0u;
  return in;
}

void check_padding(Arguments& args, const Input& in, bool is_signed) {
  if (in.zero_point == nullptr || (in.pad_h == 0 && in.pad_w == 0)) return;
  const int32_t low = is_signed ? -128 : 0, high = is_signed ? 127 : 255;
  const int64_t count = in.zero_point_step == 0 ? 1 : in.n;
  for (int64_t i = 0; i < count; ++i) {
    STD_TORCH_CHECK(in.zero_point[i] >= low && in.zero_point[i] <= high, args.op(), ": zero_point is ",
                    in.zero_point[i], ", accepted with padding are ", low, " to ", high);
  }
}

Tensor empty_nhwc(int64_t n, int64_t c, int64_t h, int64_t w, ScalarType dtype) {
  const int64_t sizes[] = {n, c, h, w};
  return torch::stable::empty({sizes, 4}, dtype, std::nullopt, std::nullopt, std::nullopt,
                              torch::headeronly::MemoryFormat::ChannelsLast);
}

Tensor empty_like(const Tensor& x, ScalarType dtype) {
  std::array<StableIValue, 6> stack{torch::stable::detail::from(x),
                                    torch::stable::detail::from(std::optional<ScalarType>(dtype)),
                                    torch::stable::detail::from(std::nullopt),
                                    torch::stable::detail::from(std::nullopt),
                                    torch::stable::detail::from(std::nullopt),
                                    torch::stable::detail::from(std::nullopt)};
  STABLE_TORCH_ERROR_CODE_CHECK(torch_call_dispatcher("aten::empty_like", "", stack.data(), TORCH_ABI_VERSION));
  return torch::stable::detail::to<Tensor>(stack[0]);
}

Tensor in_layout(const Tensor& x, const Tensor& like) {
  bool is = true;
  for (int64_t i = 0; i < x.dim(); ++i) is = is && (x.size(i) < 2 || x.stride(i) == like.stride(i));
  if (is) return x;
  Tensor copy = empty_like(like, x.scalar_type());
  torch::stable::copy_(copy, x);
  return copy;
}

}  // namespace torchaccel
