// Attention, called by itself: one plan, one layer. `part_out` and `part_lse` are scratch for the plan's parts.
#include "operations.h"

#include <omp.h>

using namespace parrot;

namespace {

template <class T>
void run(const Attention<T>& attention, const Plan& plan, float* part_out, float* part_lse, int threads) {
  const Tiles tiles(plan, attention.fold());
  std::atomic<int64_t> taken{0};
  Barrier barrier;
  AttentionRun shared{plan, tiles, part_out, part_lse, taken, barrier};
#pragma omp parallel num_threads(threads) if (threads > 1)
  attention.part(shared, omp_get_thread_num(), omp_get_num_threads());
}

}  // namespace

#define EXPORT(NAME, ...)                                                                                          \
  extern "C" void parrot_##NAME(const __VA_ARGS__* attention, const Plan* plan, float* part_out, float* part_lse,  \
                                int threads) {                                                                     \
    run(*attention, *plan, part_out, part_lse, threads);                                                           \
  }

PARROT_ATTENTIONS(EXPORT)
