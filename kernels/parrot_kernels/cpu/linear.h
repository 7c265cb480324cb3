// A linear layer on rows: gemm.h's product as an operation (see rows.h).
#pragma once

#include "gemm.h"

namespace parrot {

template <class T, class Out>
struct Linear {
  const T* x;
  Out* out;
  Packed<T> packed;
  int64_t x_stride, out_stride;

  int64_t width() const { return packed.in * packed.out; }
  bool fits(int64_t) const { return true; }
  void part(int64_t rows, int thread, int threads) const {
    gemm_part(x, x_stride, rows, packed, out, out_stride, thread, threads);
  }
};

}  // namespace parrot
