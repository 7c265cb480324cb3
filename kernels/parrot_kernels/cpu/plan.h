// The pieces of a step's attention: which keys each query row sees, cut so that shared prefixes are read once.
//
// What `AttentionPlan` does in Python (attention_plan.py, which says why), to the same arrays.
#pragma once

#include <cstdint>
#include <vector>

namespace parrot {

// What the kernel reads. x_start[i] to x_start[i + 1] is what belongs to piece (or merge) i.
struct Plan {
  const int32_t *first_key, *num_keys;      // [pieces]
  const int32_t *block_start, *blocks;      // [pieces + 1], [...]
  const int32_t *row_start, *rows, *parts;  // [pieces + 1], [entries]: the query row and its part (-1: it has one)
  const int32_t *positions;                 // [tokens] of the query rows in their sequences
  const int32_t *merge_rows, *merge_start;  // [merges], [merges + 1]: parts of a row, in the order of the keys
  int64_t pieces, merges, num_parts;
};

// The step's sequences: sequence i's blocks are tables[table_start[i]] and on, its new tokens the last query_lens[i] of
// context_lens[i]. `rows` is at least the sum of query_lens; rows behind that see no key.
struct Sequences {
  const int32_t *query_lens, *context_lens, *table_start, *tables;
  int64_t count, rows;
};

// How pieces are cut; the constants of attention_plan.py.
struct Cutting {
  int32_t block, min_shared_keys, max_shared_query, split_keys, share;
};

class PlanBuilder {
 public:
  PlanBuilder(const Sequences& sequences, const Cutting& cutting);
  const Plan& plan() const { return plan_; }  // points into this object

 private:
  struct Piece {
    int32_t first_key, num_keys;
    const int32_t* blocks;
    int32_t first_row, last_row;  // in piece_rows_
    int64_t cost() const { return static_cast<int64_t>(num_keys) * (last_row - first_row); }
  };
  using Members = std::vector<int32_t>;

  void cut(const Cutting& cutting);
  void walk(const Members& members, int32_t covered, int32_t depth, const Cutting& cutting);
  std::vector<Members> grouped(const Members& members, int32_t depth) const;
  void add(const Members& members, int32_t first_block, int32_t end, int32_t split_keys);
  int32_t full_blocks(int32_t member) const { return in_.context_lens[member] / block_; }
  const int32_t* table(int32_t member) const { return in_.tables + in_.table_start[member]; }
  void lay_out();

  Sequences in_;
  int32_t block_;
  std::vector<int32_t> row_of_;  // [sequences]: the first row
  std::vector<Piece> pieces_;
  std::vector<int32_t> piece_rows_;
  std::vector<int32_t> first_key_, num_keys_, block_start_, blocks_, row_start_, rows_, parts_, positions_, merge_rows_,
      merge_start_;
  Plan plan_;
};

}  // namespace parrot
