// The transpose of a square of LANES x LANES words of four bytes.
#pragma once

#include "simd.h"

namespace parrot {

#if defined(__AVX512F__)

using words = __m512i;  // LANES words

inline words load_words(const void* from) { return _mm512_loadu_si512(from); }
inline void store_words(void* to, words x) { _mm512_storeu_si512(to, x); }
inline words as_words(vec x) { return _mm512_castps_si512(x); }
inline vec as_floats(words x) { return _mm512_castsi512_ps(x); }

// Word i of r[k] becomes word k of r[i].
inline void transpose(words (&r)[LANES]) {
  words t[16];
  for (int k = 0; k < 16; k += 2) {
    t[k] = _mm512_unpacklo_epi32(r[k], r[k + 1]);
    t[k + 1] = _mm512_unpackhi_epi32(r[k], r[k + 1]);
  }
  for (int k = 0; k < 16; k += 4)
    for (int h = 0; h < 2; ++h) {
      r[k + 2 * h] = _mm512_unpacklo_epi64(t[k + h], t[k + h + 2]);
      r[k + 2 * h + 1] = _mm512_unpackhi_epi64(t[k + h], t[k + h + 2]);
    }
  // r[4 q + j] holds, in its four 128-bit lanes l, column 4 l + j of rows 4 q to 4 q + 3.
  for (int j = 0; j < 4; ++j) {
    words a = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), b = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
    words c = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd), d = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    t[j] = _mm512_shuffle_i32x4(a, b, 0x88);
    t[8 + j] = _mm512_shuffle_i32x4(a, b, 0xdd);
    t[4 + j] = _mm512_shuffle_i32x4(c, d, 0x88);
    t[12 + j] = _mm512_shuffle_i32x4(c, d, 0xdd);
  }
  for (int i = 0; i < 16; ++i) r[i] = t[i];
}

#else

using words = __m256;

inline words load_words(const void* from) { return _mm256_loadu_ps(static_cast<const float*>(from)); }
inline void store_words(void* to, words x) { _mm256_storeu_ps(static_cast<float*>(to), x); }
inline words as_words(vec x) { return x; }
inline vec as_floats(words x) { return x; }

inline void transpose(words (&r)[LANES]) {
  words t[8];
  for (int k = 0; k < 8; k += 2) {
    t[k] = _mm256_unpacklo_ps(r[k], r[k + 1]);
    t[k + 1] = _mm256_unpackhi_ps(r[k], r[k + 1]);
  }
  for (int k = 0; k < 8; k += 4)
    for (int h = 0; h < 2; ++h) {
      r[k + 2 * h] = _mm256_shuffle_ps(t[k + h], t[k + h + 2], 0x44);
      r[k + 2 * h + 1] = _mm256_shuffle_ps(t[k + h], t[k + h + 2], 0xee);
    }
  for (int j = 0; j < 4; ++j) {
    t[j] = _mm256_permute2f128_ps(r[j], r[4 + j], 0x20);
    t[4 + j] = _mm256_permute2f128_ps(r[j], r[4 + j], 0x31);
  }
  for (int i = 0; i < 8; ++i) r[i] = t[i];
}

#endif

// to[i * to_stride + k] = from[k * from_stride + i] for k and i below LANES. Strides are in words.
template <class Word>
inline void transpose_square(const Word* from, int64_t from_stride, Word* to, int64_t to_stride) {
  static_assert(sizeof(Word) == 4);
  words r[LANES];
  for (int k = 0; k < LANES; ++k) r[k] = load_words(from + k * from_stride);
  transpose(r);
  for (int i = 0; i < LANES; ++i) store_words(to + i * to_stride, r[i]);
}

}  // namespace parrot
