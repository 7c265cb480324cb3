// Attention over a paged KV cache, piece by piece: a piece is a range of keys with the query rows that see it.
//
// A work item is (piece, tile of its rows, KV head). The query heads of a KV head are rows of the same tile, so a tile
// of keys is packed once and then read from L1 by all rows of a prefix group. An item runs a blocked softmax over its
// keys (Dao et al., FlashAttention-2, 2023). A row that has one piece is finished by its item; the other rows' parts
// (output and log-sum-exp in float32) are merged by a second pass, always in the order of the keys. Nothing depends on
// which thread ran what, and a row's arithmetic does not depend on the other rows of its tile.
#pragma once

#include <limits>
#include <type_traits>

#include "narrow.h"
#include "threads.h"

namespace parrot {

constexpr float NOTHING = -INFINITY;

// What the threads that compute one attention share.
struct AttentionRun {
  const Plan& plan;
  const Tiles& tiles;
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
    Feed feed(run.plan, run.tiles, run.taken, key_cache, value_cache, kv_heads, BLOCK * dim * sizeof(T), window,
              threads);
    while (const Item* item = feed.next()) compute(run, *item, feed);
    if (run.plan.merges == 0) return;
    run.barrier.wait(threads);
    Share share(run.plan.merges, thread, threads);
    for (int64_t i = share.first; i < share.last; ++i) merge(run, i);
  }

 private:
  static constexpr int MANY = 0;
  static constexpr int P_STRIDE = TILE_KEYS / Words::PER_WORD;  // words of a row of probabilities

  // The running softmax of the rows of a tile, in powers of two.
  struct RowStates {
    alignas(64) float largest[TILE_ROWS], sum[TILE_ROWS];
    // What the last tile of keys brought: the largest score so far, the sum of its probabilities, and by how much all
    // that is older has to shrink.
    alignas(64) float top[TILE_ROWS], added[TILE_ROWS], decay[TILE_ROWS];
    int64_t first[TILE_ROWS], last[TILE_ROWS];  // of the keys that the row sees, counted from the start of the piece
  };

  void compute(const AttentionRun& run, const Item& item, Feed& feed) const {
    const int32_t piece = item.tile.piece, first_entry = item.tile.first_entry, last_entry = item.tile.last_entry;
    const Plan& plan = run.plan;
    alignas(64) Word q[TILE_ROWS * MAX_DIM / Words::PER_WORD], p[TILE_ROWS * P_STRIDE];
    alignas(64) float s[TILE_ROWS * TILE_KEYS], o[TILE_ROWS * MAX_DIM];
    RowStates state;
    const int group = static_cast<int>(fold()), rows = (last_entry - first_entry) * group;
    for (int r = 0; r < rows; ++r) {
      int64_t row = plan.rows[first_entry + r / group];
      copy_words(query + row * query_stride + (item.kv_head * group + r % group) * dim, q + r * (dim / Words::PER_WORD),
                 static_cast<int>(dim));
      seen(plan, piece, row, window, state.first[r], state.last[r]);
    }
    const int padded = (rows + LANES - 1) / LANES * LANES;
    std::fill_n(state.largest, padded, NOTHING);
    for (float* none : {state.sum, state.top, state.added}) std::fill_n(none, padded, 0.0f);
    std::memset(o, 0, sizeof(float) * rows * dim);
    // Tiles lie at multiples of their size from the start of the piece, whichever of them are needed.
    for (int64_t tile = item.first_key; tile < item.last_key; tile += TILE_KEYS) {
      const int count = static_cast<int>(std::min<int64_t>(TILE_KEYS, item.last_key - tile));
      const int columns = (count + BLOCK - 1) / BLOCK * BLOCK;
      const int32_t* blocks = plan.blocks + plan.block_start[piece] + tile / BLOCK;
      with_rows(rows, [&](auto n) { score<n>(q, blocks, item.kv_head, rows, columns, s, feed); });
      for (int r = 0; r < rows; ++r)
        softmax_row(s + r * TILE_KEYS, p + r * P_STRIDE, columns, clamp(state.first[r] - tile),
                    clamp(state.last[r] - tile), state, r);
      advance(state, rows);
      with_rows(rows, [&](auto n) { weigh<n>(p, blocks, item.kv_head, rows, count, state.decay, o, feed); });
    }
    for (int r = 0; r < rows; ++r)
      finish(run, first_entry + r / group, item.kv_head * group + r % group, o + r * dim, state, r);
  }

  // Call f with the number of rows if it is a small one, else with MANY.
  template <class F>
  static void with_rows(int rows, F f) {
    static_assert(NARROW_ROWS <= 4);
    switch (rows <= NARROW_ROWS ? rows : MANY) {
      case 1: return f(std::integral_constant<int, 1>());
      case 2: return f(std::integral_constant<int, 2>());
      case 3: return f(std::integral_constant<int, 3>());
      case 4: return f(std::integral_constant<int, 4>());
      default: return f(std::integral_constant<int, MANY>());
    }
  }

  // Set s[rows, columns] to q times the keys of `blocks`.
  template <int ROWS>
  void score(const Word* q, const int32_t* blocks, int64_t kv_head, int rows, int columns, float* s, Feed& feed) const {
    const int width = static_cast<int>(dim), words = width / Words::PER_WORD;
    const TilePages<T> pages = pages_of(key_cache, blocks, kv_head, columns, feed);
    if constexpr (ROWS != MANY) {
      score_tile<Words, ROWS>(q, pages, columns, width, s);
    } else {
      alignas(64) Word k[MAX_DIM / Words::PER_WORD * TILE_KEYS];
      for (int j = 0; j < columns; j += BLOCK) {
        fetch_page(pages.next[j / BLOCK]);
        pack_keys<Words>(pages.page[j / BLOCK], k + j, width);
      }
      multiply<Words>(q, words, k, TILE_KEYS, words, s, TILE_KEYS, rows, columns, nullptr);
    }
  }

  // Set o[rows, dim] to o * decay plus p times the first `count` values of `blocks`.
  template <int ROWS>
  void weigh(const Word* p, const int32_t* blocks, int64_t kv_head, int rows, int count, const float* decay, float* o,
             Feed& feed) const {
    const int width = static_cast<int>(dim);
    const TilePages<T> pages = pages_of(value_cache, blocks, kv_head, count, feed);
    if constexpr (ROWS != MANY) {
      weigh_tile<Words, ROWS>(p, pages, count, width, decay, o);
    } else {
      alignas(64) Word v[TILE_KEYS / Words::PER_WORD * MAX_DIM];
      for (int j = 0; j < count; j += BLOCK) {
        fetch_page(pages.next[j / BLOCK]);
        pack_values<Words, T>(pages.page[j / BLOCK], v + j / Words::PER_WORD * dim, std::min(BLOCK, count - j), width);
      }
      const int depth = (count + Words::PER_WORD - 1) / Words::PER_WORD;
      multiply<Words>(p, P_STRIDE, v, width, depth, o, width, rows, width, decay);
    }
  }

  void fetch_page(const char* page) const {
    for (size_t line = 0; line < BLOCK * dim * sizeof(T); line += 64) fetch(page, line);
  }

  // Turn raw scores of row r into probabilities (relative to the largest so far) of the keys in [first, last).
  void softmax_row(const float* scores, Word* probabilities, int columns, int first, int last, RowStates& state,
                   int r) const {
    if (columns == TILE_KEYS && first == 0 && last == TILE_KEYS && softcap == 0)
      return softmax_row<false>(scores, probabilities, TILE_KEYS / LANES, first, last, state, r);
    softmax_row<true>(scores, probabilities, columns / LANES, first, last, state, r);
  }

  template <bool IS_CUT>
  void softmax_row(const float* scores, Word* probabilities, int vecs, int first, int last, RowStates& state,
                   int r) const {
    constexpr int MAX_VECS = TILE_KEYS / LANES;
    constexpr float LOG2_E = 1.44269504088896341f;
    vec x[MAX_VECS], highest = set(state.largest[r]);
    for (int v = 0; v < (IS_CUT ? vecs : MAX_VECS); ++v) {
      x[v] = load(scores + v * LANES) * set(softcap > 0 ? scale : scale * LOG2_E);
      if (IS_CUT) {
        if (softcap > 0) x[v] = set(softcap * LOG2_E) * tanh(x[v] * set(1.0f / softcap));
        vec key = lane_numbers() + set(static_cast<float>(v * LANES));
        x[v] = where_less(key, set(static_cast<float>(first)), set(NOTHING), x[v]);
        x[v] = where_less(key, set(static_cast<float>(last)), x[v], set(NOTHING));
      }
      highest = larger(x[v], highest);  // the second operand where one is NaN: a NaN is not larger
    }
    const float top = largest(highest);
    // Where no key was seen yet, every score is -inf: any finite number makes zeros of them.
    const vec floor = set(top == NOTHING ? 0.0f : top);
    vec sums = zero();
    for (int v = 0; v < (IS_CUT ? vecs : MAX_VECS); ++v) {
      vec p = exp2_down(x[v] - floor);
      sums = sums + p;
      store_probabilities(probabilities, v * LANES, p);
    }
    state.top[r] = top;
    state.added[r] = sum(sums);
  }

  // Take what softmax_row left for each row into the running softmax.
  static void advance(RowStates& state, int rows) {
    for (int r = 0; r < rows; r += LANES) {
      const vec top = load(state.top + r);
      const vec decay = where_less(top, set(std::numeric_limits<float>::lowest()), set(1.0f),
                                   exp2_down(load(state.largest + r) - top));
      store(state.decay + r, decay);
      store(state.sum + r, fma(load(state.sum + r), decay, load(state.added + r)));
      store(state.largest + r, top);
    }
  }

  static int clamp(int64_t key) { return static_cast<int>(std::min<int64_t>(std::max<int64_t>(key, 0), TILE_KEYS)); }

  TilePages<T> pages_of(const T* cache, const int32_t* blocks, int64_t kv_head, int keys, Feed& feed) const {
    TilePages<T> pages;
    for (int j = 0; j * BLOCK < keys; ++j)
      pages.page[j] = cache + (blocks[j] * kv_heads + kv_head) * BLOCK * dim, pages.next[j] = feed.next_page();
    return pages;
  }

  void finish(const AttentionRun& run, int64_t entry, int64_t head, const float* row, const RowStates& state,
              int r) const {
    constexpr float LN_2 = 0.693147180559945309f;
    const float sum = state.sum[r];
    float value = sum > 0 ? state.largest[r] * LN_2 + std::log(sum) : sum == 0 ? NOTHING : sum;
    vec factor = set(sum == 0 ? 0.0f : 1.0f / sum);
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
