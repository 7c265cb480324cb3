// A step of a model as a list of operations that one parallel region runs: the CPU's captured graph.
//
// The operations are those of rows.h, linear.h and attention.h, with pointers to static buffers; only the numbers of rows
// and the attention plan change from run to run. Every thread walks the whole list and computes its share of each
// operation; threads meet at a barrier after an operation if its `barrier_after` says so.
#pragma once

#include <chrono>
#include <map>
#include <memory>
#include <vector>

#include "operations.h"

namespace parrot {

// What an operation's rows are: the step's tokens, or the rows picked of them.
enum Rows : int32_t { TOKENS = 0, PICKED = 1 };

// What one run gives to its operations.
struct Run {
  int64_t rows[2];  // by Rows
  const Plan* plan;
  int threads;
  Barrier& barrier;
  std::map<int64_t, Tiles> tiles;  // by query heads of a KV head
  float* scratch;                  // for the parts of any one attention
};

class Step {
 public:
  Step(int32_t kind, bool barrier_after) : kind(kind), barrier_after(barrier_after) {}
  virtual ~Step() = default;
  // Called by one thread before the others join; false if an index lies outside what it indexes.
  virtual bool prepare(Run& run) = 0;
  virtual int64_t scratch_floats(const Run&) const { return 0; }
  virtual void part(const Run& run, int thread) = 0;

  const int32_t kind;  // Python's number for the kind of operation, for the times
  const bool barrier_after;
};

template <class Operation>
class RowsStep final : public Step {
 public:
  RowsStep(const Operation& operation, Rows rows, int32_t kind, bool barrier_after)
      : Step(kind, barrier_after), operation_(operation), rows_(rows) {}
  bool prepare(Run& run) override { return operation_.fits(run.rows[rows_]); }
  void part(const Run& run, int thread) override { operation_.part(run.rows[rows_], thread, run.threads); }

 private:
  const Operation operation_;
  const Rows rows_;
};

template <class T>
class AttentionStep final : public Step {
 public:
  AttentionStep(const Attention<T>& attention, int32_t kind, bool barrier_after)
      : Step(kind, barrier_after), attention_(attention) {}

  bool prepare(Run& run) override {
    auto& tiles = run.tiles[attention_.fold()];
    if (tiles.empty()) tiles = Tiles(*run.plan, attention_.fold());
    tiles_ = &tiles;
    taken_.store(0, std::memory_order_relaxed);
    return true;
  }

  int64_t scratch_floats(const Run& run) const override {
    return run.plan->num_parts * attention_.heads * (attention_.dim + 1);
  }

  void part(const Run& run, int thread) override {
    float* part_lse = run.scratch + run.plan->num_parts * attention_.heads * attention_.dim;
    attention_.part({*run.plan, *tiles_, run.scratch, part_lse, taken_, run.barrier}, thread, run.threads);
  }

 private:
  const Attention<T> attention_;
  const Tiles* tiles_ = nullptr;
  alignas(64) std::atomic<int64_t> taken_{0};
};

class Program {
 public:
  void add(std::unique_ptr<Step> step) { steps_.push_back(std::move(step)); }
  // Returns false, having done nothing, if an index does not fit. One run at a time.
  bool run(int64_t tokens, int64_t picked, const Plan* plan, int threads);

  static constexpr int KINDS = 16;
  double seconds[KINDS] = {};  // by kind, summed over the runs

 private:
  std::vector<std::unique_ptr<Step>> steps_;
  std::vector<float> scratch_;
  Barrier barrier_;
};

}  // namespace parrot
