// The linear layer: rows of x times a packed weight, of which single rows can be read too.
//
// Every output is one chain of multiply-adds over the inputs in their order, so that it is the same to the last bit
// whatever rows come with it, wherever it lies, and however many threads there are.
#pragma once

#include "simd.h"

namespace parrot {

// A weight [out, in] as pack.cpp lays it out, at an address that is a multiple of 64. The memory is the caller's. bias
// has `out` elements, or is null.
template <class T>
struct Packed {
  const void* data;
  int64_t in, out;
  const T* bias;
};

// Thread `thread`'s share of out[rows, w.out] = x[rows, w.in] * weight^T + bias. T is float or bf16, Out is T or float.
// All `threads` threads of a parallel region call it; there is no barrier inside. Strides are in elements.
template <class T, class Out>
void gemm_part(const T* x, int64_t x_stride, int64_t rows, const Packed<T>& w, Out* out, int64_t out_stride, int thread,
               int threads);

// to[w.in] = row `row` of the weight, as it was packed.
template <class T>
void unpack_row(const Packed<T>& w, int64_t row, T* to);

}  // namespace parrot
