#include "program.h"

#include <omp.h>

using namespace parrot;

bool Program::run(int64_t tokens, int64_t picked, const Plan* plan, int threads) {
  const auto began = std::chrono::steady_clock::now();
  const uint64_t first_tick = __rdtsc();
  Run run{{tokens, picked}, plan, threads, barrier_, {}, nullptr};
  int64_t floats = 0;
  for (auto& step : steps_) {
    if (!step->prepare(run)) return false;
    floats = std::max(floats, step->scratch_floats(run));
  }
  if (static_cast<int64_t>(scratch_.size()) < floats) scratch_.resize(floats);
  run.scratch = scratch_.data();
  uint64_t ticks[KINDS] = {};  // of thread 0, waiting for the others included
#pragma omp parallel num_threads(threads) if (threads > 1)
  {
    const int thread = omp_get_thread_num();
    // OpenMP may give fewer threads than asked for.
#pragma omp single
    run.threads = omp_get_num_threads();
    uint64_t before = __rdtsc();
    for (auto& step : steps_) {
      step->part(run, thread);
      if (step->barrier_after) run.barrier.wait(run.threads);
      if (thread > 0) continue;
      uint64_t now = __rdtsc();
      ticks[step->kind] += now - before;
      before = now;
    }
  }
  const double elapsed = std::chrono::duration<double>(std::chrono::steady_clock::now() - began).count();
  const double per_tick = elapsed / static_cast<double>(std::max<uint64_t>(1, __rdtsc() - first_tick));
  for (int kind = 0; kind < KINDS; ++kind) seconds[kind] += static_cast<double>(ticks[kind]) * per_tick;
  return true;
}

namespace {

template <class Operation>
void add(Program* program, const Operation* operation, int32_t rows, int32_t kind, int barrier_after) {
  program->add(std::make_unique<RowsStep<Operation>>(*operation, static_cast<Rows>(rows), kind, barrier_after != 0));
}

template <class T>
void add(Program* program, const Attention<T>* attention, int32_t, int32_t kind, int barrier_after) {
  program->add(std::make_unique<AttentionStep<T>>(*attention, kind, barrier_after != 0));
}

}  // namespace

extern "C" Program* parrot_program_new() { return new Program; }

extern "C" void parrot_program_free(Program* program) { delete program; }

extern "C" int parrot_program_run(Program* program, int64_t tokens, int64_t picked, const Plan* plan, int threads) {
  return program->run(tokens, picked, plan, threads) ? 0 : 1;
}

extern "C" const double* parrot_program_seconds(const Program* program) { return program->seconds; }

#define EXPORT(NAME, ...)                                                                                        \
  extern "C" void parrot_record_##NAME(Program* program, const __VA_ARGS__* operation, int32_t rows, int32_t kind, \
                                       int barrier_after) {                                                      \
    add(program, operation, rows, kind, barrier_after);                                                          \
  }

PARROT_ROW_OPERATIONS(EXPORT)
PARROT_ATTENTIONS(EXPORT)
