// x weight^T + bias. A stand-in with the contract's signature: `data` is the weight [out, in] as it is.
#pragma once

#include "simd.h"
#include "threads.h"

namespace parrot {

template <class T>
struct Packed {
  const void* data;
  int64_t in, out;
  const T* bias;
};

template <class T, class Out>
void gemm_part(const T* x, int64_t x_stride, int64_t rows, const Packed<T>& w, Out* out, int64_t out_stride, int thread,
               int threads) {
  Share share(w.out, thread, threads);
  for (int64_t n = share.first; n < share.last; ++n)
    for (int64_t row = 0; row < rows; ++row) {
      const T* weight = static_cast<const T*>(w.data) + n * w.in;
      vec sums = zero();
      for (int64_t i = 0; i < w.in; i += LANES)
        sums = fma(load_some(x + row * x_stride + i, w.in - i), load_some(weight + i, w.in - i), sums);
      float value = sum(sums) + (w.bias ? sum(load_some(w.bias + n, 1)) : 0.0f);
      store_some(out + row * out_stride + n, set(value), 1);
    }
}

}  // namespace parrot
