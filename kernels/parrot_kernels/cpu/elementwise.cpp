// The operations on rows, called one by one: `int f(const Operation*, rows, threads)`, 1 if an index does not fit.
#include <omp.h>

#include "linear.h"
#include "rows.h"

using namespace parrot;

namespace {

template <class Operation>
int run(const Operation& operation, int64_t rows, int threads) {
  if (!operation.fits(rows)) return 1;
#pragma omp parallel num_threads(threads) if (threads > 1 && is_large(rows * operation.width()))
  operation.part(rows, omp_get_thread_num(), omp_get_num_threads());
  return 0;
}

}  // namespace

#define EXPORT(NAME, ...)                                                                       \
  extern "C" int parrot_##NAME(const __VA_ARGS__* operation, int64_t rows, int threads) {       \
    return run(*operation, rows, threads);                                                      \
  }

EXPORT(rms_norm_f32, RmsNorm<float>)
EXPORT(rms_norm_bf16, RmsNorm<bf16>)
EXPORT(rope_f32, Rope<float>)
EXPORT(rope_bf16, Rope<bf16>)
EXPORT(silu_mul_f32, SiluMul<float>)
EXPORT(silu_mul_bf16, SiluMul<bf16>)
EXPORT(gather, Gather)
EXPORT(gather_packed_f32, GatherPacked<float>)
EXPORT(gather_packed_bf16, GatherPacked<bf16>)
EXPORT(linear_f32, Linear<float, float>)
EXPORT(linear_bf16, Linear<bf16, bf16>)
EXPORT(linear_bf16_f32, Linear<bf16, float>)
