#include "plan.h"

#include <algorithm>
#include <numeric>
#include <unordered_map>

using namespace parrot;

PlanBuilder::PlanBuilder(const Sequences& sequences, const Cutting& cutting) : in_(sequences), block_(cutting.block) {
  int32_t row = 0;
  positions_.reserve(in_.rows);
  for (int64_t i = 0; i < in_.count; ++i) {
    row_of_.push_back(row);
    row += in_.query_lens[i];
    for (int32_t p = in_.context_lens[i] - in_.query_lens[i]; p < in_.context_lens[i]; ++p) positions_.push_back(p);
  }
  positions_.resize(in_.rows, 0);
  cut(cutting);
  // The longest first, so that no thread starts one at the end.
  std::stable_sort(pieces_.begin(), pieces_.end(), [](auto& a, auto& b) { return a.cost() > b.cost(); });
  lay_out();
}

void PlanBuilder::cut(const Cutting& cutting) {
  Members together;
  for (int32_t i = 0; i < in_.count; ++i)
    if (in_.query_lens[i] > cutting.max_shared_query)
      add({i}, 0, in_.context_lens[i], in_.context_lens[i]);
    else
      together.push_back(i);
  if (cutting.share)
    for (const Members& group : grouped(together, 0)) walk(group, 0, 0, cutting);
  else
    for (int32_t i : together) walk({i}, 0, 0, cutting);
}

// Add the pieces of `members`, who share their first `depth` blocks, of which `covered` are in pieces already.
void PlanBuilder::walk(const Members& members, int32_t covered, int32_t depth, const Cutting& cutting) {
  if (members.size() == 1) {
    add(members, covered, in_.context_lens[members[0]], cutting.split_keys);
    return;
  }
  const int32_t* first = table(members[0]);
  int32_t common = full_blocks(members[0]);
  for (int32_t i : members) {
    int32_t limit = std::min(common, full_blocks(i));
    for (common = depth; common < limit && table(i)[common] == first[common];) ++common;
  }
  depth = common;
  if ((depth - covered) * block_ >= cutting.min_shared_keys) {
    add(members, covered, depth * block_, cutting.split_keys);
    covered = depth;
  }
  for (const Members& group : grouped(members, depth)) walk(group, covered, depth, cutting);
}

// Groups with the same block at `depth`, in the order of their first members; without a full one there, alone.
std::vector<PlanBuilder::Members> PlanBuilder::grouped(const Members& members, int32_t depth) const {
  std::vector<Members> groups;
  groups.reserve(members.size());
  std::unordered_map<int32_t, size_t> group_of;
  for (int32_t i : members) {
    if (depth < full_blocks(i)) {
      auto [found, is_new] = group_of.try_emplace(table(i)[depth], groups.size());
      if (!is_new) {
        groups[found->second].push_back(i);
        continue;
      }
    }
    groups.push_back({i});
  }
  return groups;
}

// Add the keys from block `first_block` to key `end`, seen by all rows of `members`, in pieces of at most `split_keys`.
void PlanBuilder::add(const Members& members, int32_t first_block, int32_t end, int32_t split_keys) {
  if (first_block * block_ >= end) return;
  const int32_t first_row = static_cast<int32_t>(piece_rows_.size());
  for (int32_t i : members)
    for (int32_t r = 0; r < in_.query_lens[i]; ++r) piece_rows_.push_back(row_of_[i] + r);
  const int32_t last_row = static_cast<int32_t>(piece_rows_.size());
  for (int32_t key = first_block * block_; key < end; key += split_keys)
    pieces_.push_back({key, std::min(split_keys, end - key), table(members[0]) + key / block_, first_row, last_row});
}

void PlanBuilder::lay_out() {
  const size_t count = pieces_.size();
  block_start_.push_back(0), row_start_.push_back(0);
  std::vector<int32_t> pieces_of_row(in_.rows, 0);
  for (const Piece& piece : pieces_) {
    first_key_.push_back(piece.first_key), num_keys_.push_back(piece.num_keys);
    blocks_.insert(blocks_.end(), piece.blocks, piece.blocks + (piece.num_keys + block_ - 1) / block_);
    rows_.insert(rows_.end(), piece_rows_.begin() + piece.first_row, piece_rows_.begin() + piece.last_row);
    block_start_.push_back(static_cast<int32_t>(blocks_.size()));
    row_start_.push_back(static_cast<int32_t>(rows_.size()));
    for (int32_t r = piece.first_row; r < piece.last_row; ++r) ++pieces_of_row[piece_rows_[r]];
  }
  // Rows that have not exactly one piece get parts with consecutive numbers.
  std::vector<int32_t> next_part(in_.rows, -1);
  int32_t parts = 0;
  merge_start_.push_back(0);
  for (int32_t row = 0; row < in_.rows; ++row) {
    if (pieces_of_row[row] == 1) continue;
    next_part[row] = parts;
    parts += pieces_of_row[row];
    merge_rows_.push_back(row), merge_start_.push_back(parts);
  }
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return first_key_[a] < first_key_[b]; });
  parts_.resize(rows_.size());
  for (size_t i : order)
    for (int32_t entry = row_start_[i]; entry < row_start_[i + 1]; ++entry) {
      int32_t& next = next_part[rows_[entry]];
      parts_[entry] = next < 0 ? -1 : next++;
    }
  plan_ = {first_key_.data(), num_keys_.data(), block_start_.data(), blocks_.data(),     row_start_.data(),
           rows_.data(),      parts_.data(),    positions_.data(),   merge_rows_.data(), merge_start_.data(),
           static_cast<int64_t>(count), static_cast<int64_t>(merge_rows_.size()), parts};
}

extern "C" PlanBuilder* parrot_plan_new(const Sequences* sequences, const Cutting* cutting) {
  return new PlanBuilder(*sequences, *cutting);
}

extern "C" void parrot_plan_free(PlanBuilder* builder) { delete builder; }

extern "C" const Plan* parrot_plan_get(const PlanBuilder* builder) { return &builder->plan(); }
