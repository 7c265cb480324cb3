// The operations that Python knows by name: X(name, type) for each. A name ends in the dtype of what goes in, and in
// that of the result where it is another.
#pragma once

#include "attention.h"
#include "linear.h"
#include "rows.h"
#include "sampling.h"

#define PARROT_ROW_OPERATIONS(X)                \
  X(rms_norm_f32, RmsNorm<float>)               \
  X(rms_norm_bf16, RmsNorm<bf16>)               \
  X(rope_f32, Rope<float>)                      \
  X(rope_bf16, Rope<bf16>)                      \
  X(silu_mul_f32, SiluMul<float>)               \
  X(silu_mul_bf16, SiluMul<bf16>)               \
  X(gather, Gather)                             \
  X(gather_packed_f32, GatherPacked<float>)     \
  X(gather_packed_bf16, GatherPacked<bf16>)     \
  X(linear_f32, Linear<float, float>)           \
  X(linear_bf16, Linear<bf16, bf16>)            \
  X(linear_bf16_f32, Linear<bf16, float>)       \
  X(sample, Sampling)

#define PARROT_ATTENTIONS(X)             \
  X(attention_f32, Attention<float>)     \
  X(attention_bf16, Attention<bf16>)
