// RMS norm (with residual), rotary embedding with the write to the paged cache, and SiLU times gate.
//
// Every row is computed by one thread, in the same order whatever its neighbours and the number of threads.
#include "simd.h"

using namespace parrot;

namespace {

template <class T>
void rms_norm_row(const T* x, const T* residual, const T* weight, T* out, T* new_residual, int64_t dim, float eps) {
  const T* row = x;
  vec squares = zero();
  if (residual != nullptr) {
    for (int64_t i = 0; i < dim; i += LANES) {
      vec added = load_some(x + i, dim - i) + load_some(residual + i, dim - i);
      store_some(new_residual + i, added, dim - i);
    }
    row = new_residual;  // what is normed is the rounded sum, as the next layer will read it
  }
  for (int64_t i = 0; i < dim; i += LANES) {
    vec value = load_some(row + i, dim - i);
    squares = fma(value, value, squares);
  }
  vec factor = set(1.0f / std::sqrt(sum(squares) / static_cast<float>(dim) + eps));
  for (int64_t i = 0; i < dim; i += LANES) {
    vec value = load_some(row + i, dim - i) * factor * load_some(weight + i, dim - i);
    store_some(out + i, value, dim - i);
  }
}

// x is [outer, inner, dim] with the strides given, the rest is contiguous.
template <class T>
void rms_norm(const T* x, int64_t outer, int64_t inner, int64_t dim, int64_t outer_stride, int64_t inner_stride,
              const T* residual, const T* weight, T* out, T* new_residual, float eps, int threads) {
  int64_t rows = outer * inner;
#pragma omp parallel for num_threads(threads) if (threads > 1 && is_large(rows * dim))
  for (int64_t row = 0; row < rows; ++row) {
    const T* source = x + row / inner * outer_stride + row % inner * inner_stride;
    rms_norm_row(source, residual ? residual + row * dim : nullptr, weight, out + row * dim,
                 new_residual ? new_residual + row * dim : nullptr, dim, eps);
  }
}

template <class T>
void rotate(const T* x, T* out, const float* cos, const float* sin, int64_t half, int64_t dim) {
  for (int64_t i = 0; i < half; i += LANES) {
    int64_t count = half - i;
    vec first = load_some(x + i, count), second = load_some(x + half + i, count);
    vec c = load_some(cos + i, count), s = load_some(sin + i, count);
    store_some(out + i, first * c - second * s, count);
    store_some(out + half + i, second * c + first * s, count);
  }
  std::memcpy(out + 2 * half, x + 2 * half, (dim - 2 * half) * sizeof(T));
}

template <class T>
struct Rope {
  const T *query, *key, *value;
  int64_t query_stride, key_stride, value_stride;  // from token to token; heads are contiguous
  const float *cos, *sin;
  int64_t half;
  const int64_t* slots;
  T *out, *key_cache, *value_cache;
  int64_t heads, kv_heads, dim, value_dim, block_size;

  void token(int64_t n) const {
    const float *c = cos + n * half, *s = sin + n * half;
    for (int64_t h = 0; h < heads; ++h)
      rotate(query + n * query_stride + h * dim, out + (n * heads + h) * dim, c, s, half, dim);
    if (slots[n] < 0) return;
    int64_t block = slots[n] / block_size, offset = slots[n] % block_size;
    for (int64_t h = 0; h < kv_heads; ++h) {
      int64_t row = (block * kv_heads + h) * block_size + offset;
      rotate(key + n * key_stride + h * dim, key_cache + row * dim, c, s, half, dim);
      std::memcpy(value_cache + row * value_dim, value + n * value_stride + h * value_dim, value_dim * sizeof(T));
    }
  }
};

// Returns 1, having done nothing, if a slot lies outside the cache.
template <class T>
int rope_and_store(const Rope<T>& rope, int64_t tokens, int64_t num_slots, int threads) {
  for (int64_t n = 0; n < tokens; ++n)
    if (rope.slots[n] >= num_slots) return 1;
  int64_t width = rope.heads * rope.dim + rope.kv_heads * (rope.dim + rope.value_dim);
#pragma omp parallel for num_threads(threads) if (threads > 1 && is_large(tokens * width))
  for (int64_t n = 0; n < tokens; ++n) rope.token(n);
  return 0;
}

template <class T>
void silu_mul(const T* gate_up, T* out, int64_t rows, int64_t width, int threads) {
#pragma omp parallel for num_threads(threads) if (threads > 1 && is_large(rows * width))
  for (int64_t row = 0; row < rows; ++row) {
    const T *gate = gate_up + row * 2 * width, *up = gate + width;
    for (int64_t i = 0; i < width; i += LANES) {
      vec g = load_some(gate + i, width - i);
      vec silu = g / (set(1.0f) + exp(zero() - g));
      store_some(out + row * width + i, silu * load_some(up + i, width - i), width - i);
    }
  }
}

}  // namespace

#define EXPORT(T, SUFFIX)                                                                                             \
  extern "C" void parrot_rms_norm_##SUFFIX(const T* x, int64_t outer, int64_t inner, int64_t dim,                     \
                                           int64_t outer_stride, int64_t inner_stride, const T* residual,             \
                                           const T* weight, T* out, T* new_residual, float eps, int threads) {        \
    rms_norm(x, outer, inner, dim, outer_stride, inner_stride, residual, weight, out, new_residual, eps, threads);    \
  }                                                                                                                   \
  extern "C" int parrot_rope_and_store_##SUFFIX(                                                                      \
      const T* query, const T* key, const T* value, int64_t query_stride, int64_t key_stride, int64_t value_stride,   \
      const float* cos, const float* sin, int64_t half, const int64_t* slots, T* out, T* key_cache, T* value_cache,   \
      int64_t heads, int64_t kv_heads, int64_t dim, int64_t value_dim, int64_t block_size, int64_t tokens,            \
      int64_t num_slots, int threads) {                                                                               \
    Rope<T> rope{query, key, value, query_stride, key_stride, value_stride, cos, sin, half, slots, out, key_cache,    \
                 value_cache, heads, kv_heads, dim, value_dim, block_size};                                           \
    return rope_and_store(rope, tokens, num_slots, threads);                                                          \
  }                                                                                                                   \
  extern "C" void parrot_silu_mul_##SUFFIX(const T* gate_up, T* out, int64_t rows, int64_t width, int threads) {      \
    silu_mul(gate_up, out, rows, width, threads);                                                                     \
  }

EXPORT(float, f32)
EXPORT(bf16, bf16)
