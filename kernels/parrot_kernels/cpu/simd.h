// Vectors of float32, as wide as the CPU flags of this build allow: 16 lanes with AVX-512, 8 with AVX2.
//
// Elements in memory are float or bf16; all arithmetic is float32. Rounding to bf16 is to nearest, ties to even, as
// torch does it, with the same integers on every CPU.
#pragma once

#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

namespace parrot {

struct bf16 {
  uint16_t bits;
};

constexpr int SQRT_HALF_BITS = 0x3f3504f3;  // of sqrt(1/2) as a float32

#if defined(__AVX512F__)

constexpr int LANES = 16;
using vec = __m512;

inline vec zero() { return _mm512_setzero_ps(); }
inline vec set(float x) { return _mm512_set1_ps(x); }
inline vec load(const float* p) { return _mm512_loadu_ps(p); }
inline void store(float* p, vec x) { _mm512_storeu_ps(p, x); }
inline vec fma(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
inline vec larger(vec a, vec b) { return _mm512_max_ps(a, b); }
inline vec smaller(vec a, vec b) { return _mm512_min_ps(a, b); }
inline float sum(vec x) { return _mm512_reduce_add_ps(x); }
inline float largest(vec x) { return _mm512_reduce_max_ps(x); }
inline vec nearest(vec x) { return _mm512_roundscale_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a where x < limit, else b (also where x is NaN).
inline vec where_less(vec x, vec limit, vec a, vec b) {
  return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(x, limit, _CMP_LT_OQ), b, a);
}
// x * 2^n for whole n in [-126, 127].
inline vec scale_by_power(vec x, vec n) {
  __m512i exponent = _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
  return x * _mm512_castsi512_ps(exponent);
}
// x * 2^n for whole n from -160 on; what is too small for a float32 is 0.
inline vec scale_down(vec x, vec n) { return _mm512_scalef_ps(x, n); }
// x as m * 2^n with m in [sqrt(1/2), sqrt(2)), x normal and above 0.
inline vec split(vec x, vec& n) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i exponent = _mm512_srai_epi32(_mm512_sub_epi32(bits, _mm512_set1_epi32(SQRT_HALF_BITS)), 23);
  n = _mm512_cvtepi32_ps(exponent);
  return _mm512_castsi512_ps(_mm512_sub_epi32(bits, _mm512_slli_epi32(exponent, 23)));
}
inline vec lane_numbers() { return _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }

inline vec load(const bf16* p) {
  __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16));
}
inline void store(bf16* p, vec x) {
  __m512i bits = _mm512_castps_si512(x);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff)), 16);
  rounded = _mm512_mask_mov_epi32(rounded, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), _mm512_set1_epi32(0x7fc0));
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), _mm512_cvtepi32_epi16(rounded));
}

#elif defined(__AVX2__) && defined(__FMA__)

constexpr int LANES = 8;
using vec = __m256;

inline vec zero() { return _mm256_setzero_ps(); }
inline vec set(float x) { return _mm256_set1_ps(x); }
inline vec load(const float* p) { return _mm256_loadu_ps(p); }
inline void store(float* p, vec x) { _mm256_storeu_ps(p, x); }
inline vec fma(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
inline vec larger(vec a, vec b) { return _mm256_max_ps(a, b); }
inline vec smaller(vec a, vec b) { return _mm256_min_ps(a, b); }
inline float sum(vec x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}
inline float largest(vec x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}
inline vec nearest(vec x) { return _mm256_round_ps(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
inline vec where_less(vec x, vec limit, vec a, vec b) {
  return _mm256_blendv_ps(b, a, _mm256_cmp_ps(x, limit, _CMP_LT_OQ));
}
inline vec scale_by_power(vec x, vec n) {
  __m256i exponent = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
  return x * _mm256_castsi256_ps(exponent);
}
inline vec scale_down(vec x, vec n) {
  return where_less(n, set(-126.0f), zero(), scale_by_power(x, larger(set(-126.0f), n)));
}
inline vec split(vec x, vec& n) {
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i exponent = _mm256_srai_epi32(_mm256_sub_epi32(bits, _mm256_set1_epi32(SQRT_HALF_BITS)), 23);
  n = _mm256_cvtepi32_ps(exponent);
  return _mm256_castsi256_ps(_mm256_sub_epi32(bits, _mm256_slli_epi32(exponent, 23)));
}
inline vec lane_numbers() { return _mm256_setr_ps(0, 1, 2, 3, 4, 5, 6, 7); }

inline vec load(const bf16* p) {
  __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}
inline void store(bf16* p, vec x) {
  __m256i bits = _mm256_castps_si256(x);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff)), 16);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  rounded = _mm256_blendv_epi8(rounded, _mm256_set1_epi32(0x7fc0), nan);
  __m128i packed = _mm_packus_epi32(_mm256_castsi256_si128(rounded), _mm256_extracti128_si256(rounded, 1));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), packed);
}

#else
#error "this build needs AVX2 with FMA, or AVX-512"
#endif

// The first `count` (1 to LANES) elements; the lanes after them are zero.
template <class T>
inline vec load_some(const T* p, int64_t count) {
  if (count >= LANES) return load(p);
  T padded[LANES] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return load(padded);
}

template <class T>
inline void store_some(T* p, vec x, int64_t count) {
  if (count >= LANES) return store(p, x);
  T padded[LANES];
  store(padded, x);
  std::memcpy(p, padded, count * sizeof(T));
}

// e^x to about 1e-7, 0 below -87.3 (so for -inf), NaN for NaN. Source: Cephes, expf.
inline vec exp(vec x) {
  vec bounded = smaller(set(88.0f), larger(set(-87.3f), x));  // the second operand is what a NaN passes through
  vec n = nearest(bounded * set(1.44269504088896341f));
  vec r = fma(n, set(-0.693359375f), bounded);
  r = fma(n, set(2.12194440e-4f), r);
  vec y = set(1.9875691500e-4f);
  y = fma(y, r, set(1.3981999507e-3f));
  y = fma(y, r, set(8.3334519073e-3f));
  y = fma(y, r, set(4.1665795894e-2f));
  y = fma(y, r, set(1.6666665459e-1f));
  y = fma(y, r, set(5.0000001201e-1f));
  y = fma(y, r * r, r + set(1.0f));
  return where_less(x, set(-87.3f), zero(), scale_by_power(y, n));
}

// 2^x to about 2e-7 for x up to 0, 0 where that is below 2^-126 (so for -inf), NaN for NaN. Source: Cephes, exp2f.
inline vec exp2_down(vec x) {
  vec bounded = larger(set(-160.0f), x);  // the second operand is what a NaN passes through
  vec n = nearest(bounded), r = bounded - n;
  vec y = set(1.535336188319500e-4f);
  y = fma(y, r, set(1.339887440266574e-3f));
  y = fma(y, r, set(9.618437357674640e-3f));
  y = fma(y, r, set(5.550332471162809e-2f));
  y = fma(y, r, set(2.402264791363012e-1f));
  y = fma(y, r, set(6.931472028550421e-1f));
  return scale_down(fma(y, r, set(1.0f)), n);
}

// Natural logarithm to about 1e-7 of a normal x above 0. Source: Cephes, logf.
inline vec log(vec x) {
  vec n, m = split(x, n);  // x = m * 2^n, m around 1
  vec r = m - set(1.0f), z = r * r;
  vec y = set(7.0376836292e-2f);
  y = fma(y, r, set(-1.1514610310e-1f));
  y = fma(y, r, set(1.1676998740e-1f));
  y = fma(y, r, set(-1.2420140846e-1f));
  y = fma(y, r, set(1.4249322787e-1f));
  y = fma(y, r, set(-1.6668057665e-1f));
  y = fma(y, r, set(2.0000714765e-1f));
  y = fma(y, r, set(-2.4999993993e-1f));
  y = fma(y, r, set(3.3333331174e-1f));
  y = y * r * z;
  y = fma(n, set(-2.12194440e-4f), y);
  y = fma(z, set(-0.5f), y);
  return fma(n, set(0.693359375f), r + y);
}

inline vec tanh(vec x) { return set(1.0f) - set(2.0f) / (exp(x + x) + set(1.0f)); }

}  // namespace parrot
