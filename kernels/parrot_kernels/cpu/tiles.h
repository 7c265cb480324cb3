// Tiles of keys and values packed for fused multiply-adds, and their product.
//
// With AVX-512 BF16, bf16 operands stay bf16 and are multiplied in pairs; else everything is widened to float32.
#pragma once

#include "simd.h"
#include "transpose.h"
#include "work.h"

namespace parrot {

constexpr int MAX_DIM = 128;

// How operands lie in packed tiles: a word is what one lane of a fused multiply-add takes.
struct FloatWords {
  using word = float;
  static constexpr int PER_WORD = 1;
  static vec vector(const float* p) { return load(p); }
  static vec repeated(const float* p) { return set(*p); }
  static vec multiply_add(vec a, vec b, vec sum) { return fma(a, b, sum); }

  // LANES words from element `i` of a row on.
  template <class T>
  static words row(const T* row, int i) { return as_words(load(row + i)); }
  static vec operand(words x) { return as_floats(x); }
};

#if defined(__AVX512BF16__)
struct PairWords {
  using word = uint32_t;
  static constexpr int PER_WORD = 2;
  static __m512bh vector(const uint32_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
  static __m512bh repeated(const uint32_t* p) { return (__m512bh)_mm512_set1_epi32(static_cast<int>(*p)); }
  static vec multiply_add(__m512bh a, __m512bh b, vec sum) { return _mm512_dpbf16_ps(sum, a, b); }

  static words row(const bf16* row, int i) { return load_words(row + i); }
  static __m512bh operand(words x) { return (__m512bh)x; }
};
#endif

template <class T>
struct WordsOf {
  using type = FloatWords;
};
#if defined(__AVX512BF16__)
template <>
struct WordsOf<bf16> {
  using type = PairWords;
};
#endif

// C[ROWS, VECS * LANES] = C * decay + A[ROWS, depth] B[depth, VECS * LANES]; without decay C starts at zero.
template <class W, int ROWS, int VECS>
inline void multiply_block(const typename W::word* a, int lda, const typename W::word* b, int ldb, int depth, float* c,
                           int ldc, const float* decay) {
  vec sums[ROWS][VECS];
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECS; ++v) sums[r][v] = decay ? load(c + r * ldc + v * LANES) * set(decay[r]) : zero();
  for (int k = 0; k < depth; ++k) {
    decltype(W::vector(b)) columns[VECS];
    for (int v = 0; v < VECS; ++v) columns[v] = W::vector(b + k * ldb + v * LANES);
    for (int r = 0; r < ROWS; ++r) {
      auto x = W::repeated(a + r * lda + k);
      for (int v = 0; v < VECS; ++v) sums[r][v] = W::multiply_add(x, columns[v], sums[r][v]);
    }
  }
  for (int r = 0; r < ROWS; ++r)
    for (int v = 0; v < VECS; ++v) store(c + r * ldc + v * LANES, sums[r][v]);
}

template <class W, int ROWS>
inline void multiply_rows(const typename W::word* a, int lda, const typename W::word* b, int ldb, int depth, float* c,
                          int ldc, int columns, const float* decay) {
  int j = 0;
  for (; j + 4 * LANES <= columns; j += 4 * LANES)
    multiply_block<W, ROWS, 4>(a, lda, b + j, ldb, depth, c + j, ldc, decay);
  for (; j < columns; j += LANES) multiply_block<W, ROWS, 1>(a, lda, b + j, ldb, depth, c + j, ldc, decay);
}

template <class W>
inline void multiply(const typename W::word* a, int lda, const typename W::word* b, int ldb, int depth, float* c,
                     int ldc, int rows, int columns, const float* decay) {
  constexpr int STEP = LANES == 16 ? 4 : 2;  // as many sums as fit the registers
  int r = 0;
  for (; r + STEP <= rows; r += STEP)
    multiply_rows<W, STEP>(a + r * lda, lda, b, ldb, depth, c + r * ldc, ldc, columns, decay ? decay + r : nullptr);
  if (STEP == 4 && r + 2 <= rows) {
    multiply_rows<W, 2>(a + r * lda, lda, b, ldb, depth, c + r * ldc, ldc, columns, decay ? decay + r : nullptr);
    r += 2;
  }
  if (r < rows)
    multiply_rows<W, 1>(a + r * lda, lda, b, ldb, depth, c + r * ldc, ldc, columns, decay ? decay + r : nullptr);
}

template <class T>
inline void copy_words(const T* from, float* to, int count) {
  for (int i = 0; i < count; i += LANES) store(to + i, load(from + i));
}

inline void copy_words(const bf16* from, uint32_t* to, int count) { std::memcpy(to, from, count * sizeof(bf16)); }

// Transpose the 16 rows of `words` words at `from` into 16 neighbouring columns of `to`, a matrix TILE_KEYS wide.
template <class Word>
inline void transpose_block(const Word* from, Word* to, int words) {
  for (int key = 0; key < BLOCK; key += LANES)
    for (int i = 0; i < words; i += LANES)
      transpose_square(from + key * words + i, words, to + i * TILE_KEYS + key, TILE_KEYS);
}

// Pack a cache block's keys as 16 columns of a tile.
template <class W>
inline void pack_keys(const bf16* keys, typename W::word* tile, int dim);

template <>
inline void pack_keys<FloatWords>(const bf16* keys, float* tile, int dim) {
  alignas(64) float wide[BLOCK * MAX_DIM];
  copy_words(keys, wide, BLOCK * dim);
  transpose_block(wide, tile, dim);
}

template <class W>
inline void pack_keys(const float* keys, float* tile, int dim) {
  transpose_block(keys, tile, dim);
}

// Pack `count` rows of values; rows that pad the last word are zero.
template <class W, class T>
inline void pack_values(const T* values, float* tile, int count, int dim) {
  copy_words(values, tile, count * dim);
}

#if defined(__AVX512BF16__)
template <>
inline void pack_keys<PairWords>(const bf16* keys, uint32_t* tile, int dim) {
  transpose_block(reinterpret_cast<const uint32_t*>(keys), tile, dim / 2);
}

// Words of elements 0, 1, ... 31 of two rows: each holds an element of the one and of the other (null: zeros).
inline void pair_rows(const bf16* even_row, const bf16* odd_row, words (&pair)[2]) {
  const __m512i numbers = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const __m512i pick_low = _mm512_add_epi32(_mm512_mullo_epi32(numbers, _mm512_set1_epi32(0x10001)),
                                            _mm512_set1_epi32(0x200000));
  const __m512i pick_high = _mm512_add_epi32(pick_low, _mm512_set1_epi32(0x100010));
  const words even = load_words(even_row), odd = odd_row ? load_words(odd_row) : _mm512_setzero_si512();
  pair[0] = _mm512_permutex2var_epi16(even, pick_low, odd);
  pair[1] = _mm512_permutex2var_epi16(even, pick_high, odd);
}

// Word (k / 2, i) holds element i of row k and of row k + 1.
template <class W, class T>
inline void pack_values(const bf16* values, uint32_t* tile, int count, int dim) {
  for (int k = 0; k < count; k += 2, tile += dim)
    for (int i = 0; i < dim; i += 32) {
      words pair[2];
      pair_rows(values + k * dim + i, k + 1 < count ? values + (k + 1) * dim + i : nullptr, pair);
      store_words(tile + i, pair[0]);
      store_words(tile + i + 16, pair[1]);
    }
}
#endif

inline void store_probabilities(float* to, int i, vec x) { store(to + i, x); }
#if defined(__AVX512BF16__)
inline void store_probabilities(uint32_t* to, int i, vec x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(reinterpret_cast<bf16*>(to) + i), (__m256i)_mm512_cvtneps_pbh(x));
}
#endif

}  // namespace parrot
