// The operations on rows, called one by one: `int f(const Operation*, rows, threads)`, 1 if an index does not fit.
#include <omp.h>

#include "operations.h"

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

PARROT_ROW_OPERATIONS(EXPORT)
