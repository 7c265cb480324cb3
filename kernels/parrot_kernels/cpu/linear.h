// A packed weight's operations (see rows.h): the linear layer, and gathering rows of the weight.
#pragma once

#include "gemm.h"
#include "rows.h"

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

template <class T>
struct GatherPacked {
  Packed<T> table;
  const int64_t* index;
  T* out;

  int64_t width() const { return table.in * sizeof(T); }
  bool fits(int64_t rows) const { return are_below(index, rows, table.out); }
  void part(int64_t rows, int thread, int threads) const {
    Share share(rows, thread, threads);
    for (int64_t n = share.first; n < share.last; ++n) unpack_row(table, index[n], out + n * table.in);
  }
};

}  // namespace parrot
