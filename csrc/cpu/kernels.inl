// All kernels of one instruction set, over the 16 lanes of its simd_*.h. A source of an instruction set includes each
// .inl once, inside its anonymous namespace.
#pragma once

#include "add.inl"
#include "chain.inl"
#include "dense.inl"
#include "dynamic.inl"
#include "pool.inl"
#include "quantize.inl"
#include "sparse.inl"
#include "sparse_f32.inl"
#include "weight_only.inl"
