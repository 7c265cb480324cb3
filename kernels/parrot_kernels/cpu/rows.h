// Operations on rows: RMS norm (with residual), rotary embedding with the write to the paged cache, SiLU times gate, and
// gathering rows of a table.
//
// An operation is a struct of pointers, sizes and strides (in elements), filled in by Python. Its `part` computes one
// thread's share of `rows` rows; every row is computed in the same order whatever its neighbours and the number of
// threads. `fits` says whether the indices among its inputs lie inside what they index; `width` is the work of a row.
#pragma once

#include "simd.h"
#include "threads.h"

namespace parrot {

// x is [rows, inner, dim] with the strides given, residual is [rows, dim]; weight and results are contiguous.
template <class T>
struct RmsNorm {
  const T *x, *residual, *weight;  // residual may be null
  T *out, *total;
  int64_t inner, dim, row_stride, inner_stride, residual_stride;
  float eps;

  int64_t width() const { return inner * dim; }
  bool fits(int64_t) const { return true; }

  void part(int64_t rows, int thread, int threads) const {
    Share share(rows, thread, threads);
    for (int64_t row = share.first; row < share.last; ++row)
      for (int64_t i = 0; i < inner; ++i) {
        int64_t at = (row * inner + i) * dim;
        norm(x + row * row_stride + i * inner_stride, residual ? residual + row * residual_stride : nullptr, out + at,
             residual ? total + at : nullptr);
      }
  }

  void norm(const T* row, const T* other, T* to, T* sum_to) const {
    vec squares = zero();
    if (other != nullptr) {
      for (int64_t i = 0; i < dim; i += LANES) {
        vec added = load_some(row + i, dim - i) + load_some(other + i, dim - i);
        store_some(sum_to + i, added, dim - i);
      }
      row = sum_to;  // what is normed is the rounded sum, as the next layer will read it
    }
    for (int64_t i = 0; i < dim; i += LANES) {
      vec value = load_some(row + i, dim - i);
      squares = fma(value, value, squares);
    }
    vec factor = set(1.0f / std::sqrt(sum(squares) / static_cast<float>(dim) + eps));
    for (int64_t i = 0; i < dim; i += LANES) {
      vec value = load_some(row + i, dim - i) * factor * load_some(weight + i, dim - i);
      store_some(to + i, value, dim - i);
    }
  }
};

template <class T>
struct Rope {
  const T *query, *key, *value;
  const float *cos, *sin;
  const int64_t* slots;
  T *out, *key_cache, *value_cache;
  int64_t query_stride, key_stride, value_stride, angle_stride;  // from token to token; heads are contiguous
  int64_t half, heads, kv_heads, dim, value_dim, block_size, num_slots;

  int64_t width() const { return heads * dim + kv_heads * (dim + value_dim); }

  bool fits(int64_t rows) const {
    for (int64_t n = 0; n < rows; ++n)
      if (slots[n] >= num_slots) return false;
    return true;
  }

  void part(int64_t rows, int thread, int threads) const {
    Share share(rows, thread, threads);
    for (int64_t n = share.first; n < share.last; ++n) token(n);
  }

  void token(int64_t n) const {
    const float *c = cos + n * angle_stride, *s = sin + n * angle_stride;
    for (int64_t h = 0; h < heads; ++h)
      rotate(query + n * query_stride + h * dim, out + (n * heads + h) * dim, c, s);
    if (slots[n] < 0) return;
    int64_t block = slots[n] / block_size, offset = slots[n] % block_size;
    for (int64_t h = 0; h < kv_heads; ++h) {
      int64_t row = (block * kv_heads + h) * block_size + offset;
      rotate(key + n * key_stride + h * dim, key_cache + row * dim, c, s);
      std::memcpy(value_cache + row * value_dim, value + n * value_stride + h * value_dim, value_dim * sizeof(T));
    }
  }

  void rotate(const T* x, T* to, const float* c, const float* s) const {
    for (int64_t i = 0; i < half; i += LANES) {
      int64_t count = half - i;
      vec first = load_some(x + i, count), second = load_some(x + half + i, count);
      vec cosine = load_some(c + i, count), sine = load_some(s + i, count);
      store_some(to + i, first * cosine - second * sine, count);
      store_some(to + half + i, second * cosine + first * sine, count);
    }
    std::memcpy(to + 2 * half, x + 2 * half, (dim - 2 * half) * sizeof(T));
  }
};

// Shared among threads by columns too, so that a single row keeps all of them busy.
template <class T>
struct SiluMul {
  const T* gate_up;
  T* out;
  int64_t columns, row_stride;

  static constexpr int64_t CHUNK = 8 * LANES;

  int64_t width() const { return columns; }
  bool fits(int64_t) const { return true; }

  void part(int64_t rows, int thread, int threads) const {
    int64_t chunks = (columns + CHUNK - 1) / CHUNK;
    Share share(rows * chunks, thread, threads);
    for (int64_t chunk = share.first; chunk < share.last; ++chunk) {
      int64_t row = chunk / chunks, first = chunk % chunks * CHUNK, last = std::min(first + CHUNK, columns);
      const T *gate = gate_up + row * row_stride, *up = gate + columns;
      for (int64_t i = first; i < last; i += LANES) {
        vec g = load_some(gate + i, columns - i);
        vec silu = g / (set(1.0f) + exp(zero() - g));
        store_some(out + row * columns + i, silu * load_some(up + i, columns - i), columns - i);
      }
    }
  }
};

inline bool are_below(const int64_t* indices, int64_t count, int64_t limit) {
  return std::all_of(indices, indices + count, [limit](int64_t index) { return index >= 0 && index < limit; });
}

struct Gather {
  const char* table;
  const int64_t* index;
  char* out;
  int64_t table_rows, row_stride_bytes, row_bytes;

  int64_t width() const { return row_bytes; }

  bool fits(int64_t rows) const { return are_below(index, rows, table_rows); }

  void part(int64_t rows, int thread, int threads) const {
    Share share(rows, thread, threads);
    for (int64_t n = share.first; n < share.last; ++n)
      std::memcpy(out + n * row_bytes, table + index[n] * row_stride_bytes, row_bytes);
  }
};

}  // namespace parrot
