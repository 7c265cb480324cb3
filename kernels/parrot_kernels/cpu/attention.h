// Attention over a paged KV cache, piece by piece: a piece is a range of keys with the query rows that see it.
//
// A work item is (piece, tile of its rows, KV head). The query heads of a KV head are rows of the same tile, so a tile
// of keys is packed once and then read from L1 by all rows of a prefix group. An item runs a blocked softmax over its
// keys (Dao et al., FlashAttention-2, 2023). A row that has one piece is finished by its item; the other rows' parts
// (output and log-sum-exp in float32) are merged by a second pass, always in the order of the keys. Nothing depends on
// which thread ran what, and a row's arithmetic does not depend on the other rows of its tile.
#pragma once

#include <vector>

#include "plan.h"
#include "threads.h"
#include "tiles.h"

namespace parrot {

constexpr float NOTHING = -INFINITY;

// The tiles of rows of a plan's pieces, where a KV head has `fold` query heads.
struct Tile {
  int32_t piece, first_entry, last_entry;
};

inline std::vector<Tile> tiles_of(const Plan& plan, int64_t fold) {
  const int32_t step = static_cast<int32_t>(std::max<int64_t>(1, TILE_ROWS / fold));
  std::vector<Tile> tiles;
  tiles.reserve(plan.pieces);
  for (int32_t piece = 0; piece < plan.pieces; ++piece)
    for (int32_t entry = plan.row_start[piece]; entry < plan.row_start[piece + 1]; entry += step)
      tiles.push_back({piece, entry, std::min(entry + step, plan.row_start[piece + 1])});
  return tiles;
}

// What the threads that compute one attention share.
struct AttentionRun {
  const Plan& plan;
  const std::vector<Tile>& tiles;
  float *part_out, *part_lse;   // [parts, heads, dim], [parts, heads]
  std::atomic<int64_t>& taken;  // items that some thread has begun; 0 at the start
  Barrier& barrier;
};

// Query [tokens, heads, dim] and caches [blocks, kv_heads, 16, dim] to out [tokens, heads, dim] and lse [tokens, heads].
template <class T>
struct Attention {
  using Words = typename WordsOf<T>::type;
  using Word = typename Words::word;

  const T *query, *key_cache, *value_cache;
  T* out;
  float* lse;
  int64_t heads, kv_heads, query_stride, dim, window;  // window 0: none
  float scale, softcap;                                // softcap 0: none

  int64_t fold() const { return heads / kv_heads; }

  // Items are handed out as threads come for them, so that a thread whose core is busy elsewhere takes fewer.
  void part(const AttentionRun& run, int thread, int threads) const {
    const int64_t items = static_cast<int64_t>(run.tiles.size()) * kv_heads;
    int64_t item;
    while ((item = run.taken.fetch_add(1, std::memory_order_relaxed)) < items)
      compute(run, item, item + threads < items ? item + threads : -1);
    if (run.plan.merges == 0) return;
    run.barrier.wait(threads);
    Share share(run.plan.merges, thread, threads);
    for (int64_t i = share.first; i < share.last; ++i) merge(run, i);
  }

 private:
  struct RowState {
    float largest, sum, decay;
  };

  // Compute an item; meanwhile fetch the keys and values that this thread will want after it (-1: none).
  void compute(const AttentionRun& run, int64_t item, int64_t next) const {
    const auto [piece, first_entry, last_entry] = run.tiles[item / kv_heads];
    const int64_t kv_head = item % kv_heads;
    const Plan& plan = run.plan;
    alignas(64) Word q[TILE_ROWS * MAX_DIM / Words::PER_WORD], k[MAX_DIM / Words::PER_WORD * TILE_KEYS];
    alignas(64) Word v[TILE_KEYS / Words::PER_WORD * MAX_DIM], p[TILE_ROWS * TILE_KEYS / Words::PER_WORD];
    alignas(64) float s[TILE_ROWS * TILE_KEYS], o[TILE_ROWS * MAX_DIM];
    RowState state[TILE_ROWS];
    float decay[TILE_ROWS];
    const int words = static_cast<int>(dim) / Words::PER_WORD, group = static_cast<int>(fold());
    const int width = static_cast<int>(dim), rows = (last_entry - first_entry) * group;
    int64_t end = 0;  // keys of the piece that some row of the tile sees
    int64_t start = plan.num_keys[piece];
    for (int r = 0; r < rows; ++r) {
      int64_t row = plan.rows[first_entry + r / group];
      copy_words(query + row * query_stride + (kv_head * group + r % group) * dim, q + r * words, width);
      state[r] = {NOTHING, 0, 1};
      int64_t first, last;
      seen(plan, piece, row, first, last);
      start = std::min(start, first), end = std::max(end, last);
    }
    std::memset(o, 0, sizeof(float) * rows * dim);
    // Tiles lie at multiples of their size from the start of the piece, whichever of them are needed.
    for (int64_t tile = start / TILE_KEYS * TILE_KEYS; tile < end; tile += TILE_KEYS) {
      int count = static_cast<int>(std::min<int64_t>(TILE_KEYS, end - tile));
      int columns = (count + BLOCK - 1) / BLOCK * BLOCK;
      const int32_t* blocks = plan.blocks + plan.block_start[piece] + tile / BLOCK;
      if (tile + TILE_KEYS < end)
        prefetch(plan, piece, tile + TILE_KEYS, kv_head);
      else if (next >= 0)
        prefetch(plan, run.tiles[next / kv_heads].piece, 0, next % kv_heads);
      for (int j = 0; j < columns; j += BLOCK)
        pack_keys<Words>(page(key_cache, blocks[j / BLOCK], kv_head), k + j, width);
      multiply<Words>(q, words, k, TILE_KEYS, words, s, TILE_KEYS, rows, columns, nullptr);
      for (int r = 0; r < rows; ++r) {
        int64_t first, last;
        seen(plan, piece, plan.rows[first_entry + r / group], first, last);
        softmax_row(s + r * TILE_KEYS, p + r * (TILE_KEYS / Words::PER_WORD), columns, clamp(first - tile),
                    clamp(last - tile), state[r]);
        decay[r] = state[r].decay;
      }
      for (int j = 0; j < count; j += BLOCK)
        pack_values<Words, T>(page(value_cache, blocks[j / BLOCK], kv_head), v + j / Words::PER_WORD * dim,
                              std::min(BLOCK, count - j), width);
      int depth = (count + Words::PER_WORD - 1) / Words::PER_WORD;
      multiply<Words>(p, TILE_KEYS / Words::PER_WORD, v, width, depth, o, width, rows, width, decay);
    }
    for (int r = 0; r < rows; ++r)
      finish(run, first_entry + r / group, kv_head * group + r % group, o + r * dim, state[r]);
  }

  // Turn a row of raw scores into probabilities (relative to the largest so far) of the keys in [first, last).
  void softmax_row(const float* scores, Word* probabilities, int columns, int first, int last, RowState& state) const {
    constexpr int MAX_VECS = TILE_KEYS / LANES;
    vec x[MAX_VECS], highest = set(NOTHING);
    int vecs = columns / LANES;
    for (int v = 0; v < vecs; ++v) {
      vec score = load(scores + v * LANES) * set(scale);
      if (softcap > 0) score = set(softcap) * tanh(score * set(1.0f / softcap));
      vec key = lane_numbers() + set(static_cast<float>(v * LANES));
      score = where_less(key, set(static_cast<float>(first)), set(NOTHING), score);
      x[v] = where_less(key, set(static_cast<float>(last)), score, set(NOTHING));
      highest = larger(highest, x[v]);
    }
    float top = std::fmax(state.largest, largest(highest));
    if (top == NOTHING) {  // no key yet
      for (int v = 0; v < vecs; ++v) store_words(probabilities, v * LANES, zero());
      state.decay = 1;
      return;
    }
    vec sums = zero();
    for (int v = 0; v < vecs; ++v) {
      vec p = exp(x[v] - set(top));
      sums = sums + p;
      store_words(probabilities, v * LANES, p);
    }
    state.decay = std::exp(state.largest - top);
    state.sum = state.sum * state.decay + sum(sums);
    state.largest = top;
  }

  // Pages lie apart, so that the hardware does not see them coming.
  void prefetch(const Plan& plan, int64_t piece, int64_t tile, int64_t kv_head) const {
    const int32_t* blocks = plan.blocks + plan.block_start[piece] + tile / BLOCK;
    int64_t keys = std::min<int64_t>(TILE_KEYS, plan.num_keys[piece] - tile);
    for (int64_t j = 0; j < keys; j += BLOCK)
      for (const T* cache : {key_cache, value_cache}) {
        const char* from = reinterpret_cast<const char*>(page(cache, blocks[j / BLOCK], kv_head));
        for (size_t i = 0; i < BLOCK * dim * sizeof(T); i += 64) _mm_prefetch(from + i, _MM_HINT_T1);
      }
  }

  // The keys [first, last) of a piece that a query row sees: causal, and at most a window back.
  void seen(const Plan& plan, int64_t piece, int64_t row, int64_t& first, int64_t& last) const {
    int64_t position = plan.positions[row] - plan.first_key[piece];
    last = std::min<int64_t>(std::max<int64_t>(position + 1, 0), plan.num_keys[piece]);
    first = window > 0 ? std::min(std::max<int64_t>(position + 1 - window, 0), last) : 0;
  }

  static int clamp(int64_t key) { return static_cast<int>(std::min<int64_t>(std::max<int64_t>(key, 0), TILE_KEYS)); }

  const T* page(const T* cache, int64_t block, int64_t kv_head) const {
    return cache + (block * kv_heads + kv_head) * BLOCK * dim;
  }

  void finish(const AttentionRun& run, int64_t entry, int64_t head, const float* row, const RowState& state) const {
    float value = state.sum > 0 ? state.largest + std::log(state.sum) : state.sum == 0 ? NOTHING : state.sum;
    vec factor = set(state.sum == 0 ? 0.0f : 1.0f / state.sum);
    if (run.plan.parts[entry] < 0) {
      int64_t at = run.plan.rows[entry] * heads + head;
      lse[at] = value;
      for (int i = 0; i < dim; i += LANES) store(out + at * dim + i, load(row + i) * factor);
    } else {
      int64_t at = run.plan.parts[entry] * heads + head;
      run.part_lse[at] = value;
      for (int i = 0; i < dim; i += LANES) store(run.part_out + at * dim + i, load(row + i) * factor);
    }
  }

  void merge(const AttentionRun& run, int64_t index) const {
    const int32_t begin = run.plan.merge_start[index], end = run.plan.merge_start[index + 1];
    for (int64_t head = 0; head < heads; ++head) {
      int64_t at = run.plan.merge_rows[index] * heads + head;
      float top = NOTHING, sum = 0;
      for (int32_t part = begin; part < end; ++part) top = std::fmax(top, run.part_lse[part * heads + head]);
      vec sums[MAX_DIM / LANES];
      for (int i = 0; i < dim / LANES; ++i) sums[i] = zero();
      for (int32_t part = begin; part < end; ++part) {
        if (run.part_lse[part * heads + head] == NOTHING) continue;
        float weight = std::exp(run.part_lse[part * heads + head] - top);
        sum += weight;
        const float* from = run.part_out + (part * heads + head) * dim;
        for (int i = 0; i < dim / LANES; ++i) sums[i] = fma(load(from + i * LANES), set(weight), sums[i]);
      }
      lse[at] = sum == 0 ? NOTHING : top + std::log(sum);
      vec factor = set(sum == 0 ? 0.0f : 1.0f / sum);
      for (int i = 0; i < dim / LANES; ++i) store(out + at * dim + i * LANES, sums[i] * factor);
    }
  }
};

}  // namespace parrot
