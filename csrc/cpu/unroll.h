// Accumulators stay in registers only where every loop over them is unrolled, which GCC leaves off where it is long.
#pragma once

#ifdef __clang__
#define TORCHACCEL_UNROLL _Pragma("unroll")
#else
#define TORCHACCEL_UNROLL _Pragma("GCC unroll 8")
#endif
