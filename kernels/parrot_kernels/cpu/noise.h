// Noise that turns an arg-max into a draw: parrot_workers.engine.noise is its twin.
#pragma once

#include "transpose.h"

namespace parrot {

// What the noise of a row depends on, besides the tokens.
struct Key {
  int32_t a, b;
};

using numbers = uint32_t __attribute__((vector_size(sizeof(vec))));

// first, first + 1, ...
inline words lane_indices(int64_t first = 0) {
  numbers index;
  for (int lane = 0; lane < LANES; ++lane) index[lane] = static_cast<uint32_t>(first + lane);
  return (words)index;
}

// `lowbias32` (C. Wellons, hash-prospector, 2018); products wrap.
inline numbers mix(numbers bits) {
  bits ^= bits >> 16;
  bits *= 0x7FEB352Du;
  bits ^= bits >> 15;
  bits *= 0x846CA68Bu;
  return bits ^ (bits >> 16);
}

// Gumbel(0, 1) noise of the tokens `first`, `first` + 1, ...
inline vec gumbel_noise(int64_t first, Key key) {
  constexpr float LEAST = 1e-30f, LOWEST_NOISE = -1e30f;
  const numbers bits = mix(mix((numbers)lane_indices(first) ^ static_cast<uint32_t>(key.a)) ^
                           static_cast<uint32_t>(key.b));
  using signed_numbers = int32_t __attribute__((vector_size(sizeof(vec))));
  using floats = float __attribute__((vector_size(sizeof(vec))));
  const vec whole = (vec)__builtin_convertvector((signed_numbers)(bits & 0x7FFFFFFFu), floats);
  const vec uniform = (whole + set(0.5f)) * set(0x1p-31f);
  // -log(1 - uniform) to full precision (Goldberg 1991, theorem 4): the log and the quotient share their error.
  const vec rest = set(1.0f) - uniform, exact = larger(set(1.0f) - rest, set(LEAST));
  const vec log_rest = log(larger(rest, set(LEAST))) * (uniform / exact);
  const vec exponential = where_less(rest, set(1.0f), zero() - log_rest, uniform);
  // One in 2 ** 25 numbers rounds to 1; the noise keeps its token from being drawn this once, if there is another.
  return where_less(uniform, set(1.0f), zero() - log(exponential), set(LOWEST_NOISE));
}

}  // namespace parrot
