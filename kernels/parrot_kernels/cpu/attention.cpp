// Attention over a paged KV cache, piece by piece: a piece is a range of keys with the query rows that see it.
//
// A work item is (piece, tile of its rows, KV head). The query heads of a KV head are rows of the same tile, so a tile
// of keys is packed once and then read from L1 by all rows of a prefix group. An item runs a blocked softmax over its
// keys (Dao et al., FlashAttention-2, 2023). A row that has one piece is finished by its item; the other rows' parts
// (output and log-sum-exp in float32) are merged by a second pass, always in the order of the keys. Nothing depends on
// which thread ran what, and a row's arithmetic does not depend on the other rows of its tile.
#include <algorithm>
#include <vector>

#include "tiles.h"

using namespace parrot;

namespace {

constexpr float NOTHING = -INFINITY;

struct Scores {
  float scale, softcap;  // softcap 0: none
  int64_t window;        // 0: none
};

struct RowState {
  float largest, sum, decay;
};

// Turn a row of raw scores into probabilities (relative to the largest score so far) of the keys in [first, last).
template <class Word>
inline void softmax_row(const float* scores, Word* probabilities, int columns, int first, int last, const Scores& how,
                        RowState& state) {
  constexpr int MAX_VECS = TILE_KEYS / LANES;
  vec x[MAX_VECS], highest = set(NOTHING);
  int vecs = columns / LANES;
  for (int v = 0; v < vecs; ++v) {
    vec score = load(scores + v * LANES) * set(how.scale);
    if (how.softcap > 0) score = set(how.softcap) * tanh(score * set(1.0f / how.softcap));
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

struct Plan {
  const int32_t *first_key, *num_keys;          // [pieces]
  const int32_t *block_start, *blocks;          // [pieces + 1], [...]
  const int32_t *row_start, *rows, *parts;      // [pieces + 1], [entries]: the query row and its part (-1: it has one)
  const int32_t *positions;                     // [tokens] of the query rows in their sequences
  const int32_t *merge_rows, *merge_start;      // [merges], [merges + 1]: parts of a row, in the order of the keys
  int64_t pieces, merges;
};

template <class T>
struct Attention {
  using Words = typename WordsOf<T>::type;
  using Word = typename Words::word;

  Plan plan;
  const T *query, *key_cache, *value_cache;
  T* out;
  float *lse, *part_out, *part_lse;
  int64_t heads, kv_heads, query_stride;
  int dim;
  Scores how;

  int fold() const { return static_cast<int>(heads / kv_heads); }
  int entries_per_tile() const { return std::max(1, TILE_ROWS / fold()); }

  struct Item {
    int64_t piece, first_entry, last_entry, kv_head;
  };

  // Compute `item`; meanwhile fetch the keys and values that this thread will want after it.
  void run_item(const Item& item, const Item* next) const {
    const auto [piece, first_entry, last_entry, kv_head] = item;
    alignas(64) Word q[TILE_ROWS * MAX_DIM / Words::PER_WORD], k[MAX_DIM / Words::PER_WORD * TILE_KEYS];
    alignas(64) Word v[TILE_KEYS / Words::PER_WORD * MAX_DIM], p[TILE_ROWS * TILE_KEYS / Words::PER_WORD];
    alignas(64) float s[TILE_ROWS * TILE_KEYS], o[TILE_ROWS * MAX_DIM];
    RowState state[TILE_ROWS];
    float decay[TILE_ROWS];
    const int words = dim / Words::PER_WORD, group = fold();
    const int rows = static_cast<int>(last_entry - first_entry) * group;
    int64_t end = 0;  // keys of the piece that some row of the tile sees
    int64_t start = plan.num_keys[piece];
    for (int r = 0; r < rows; ++r) {
      int64_t row = plan.rows[first_entry + r / group];
      copy_words(query + row * query_stride + (kv_head * group + r % group) * dim, q + r * words, dim);
      state[r] = {NOTHING, 0, 1};
      int64_t first, last;
      seen(piece, row, first, last);
      start = std::min(start, first), end = std::max(end, last);
    }
    std::memset(o, 0, sizeof(float) * rows * dim);
    // Tiles lie at multiples of their size from the start of the piece, whichever of them are needed.
    for (int64_t tile = start / TILE_KEYS * TILE_KEYS; tile < end; tile += TILE_KEYS) {
      int count = static_cast<int>(std::min<int64_t>(TILE_KEYS, end - tile));
      int columns = (count + BLOCK - 1) / BLOCK * BLOCK;
      const int32_t* blocks = plan.blocks + plan.block_start[piece] + tile / BLOCK;
      if (tile + TILE_KEYS < end)
        prefetch(piece, tile + TILE_KEYS, kv_head);
      else if (next != nullptr)
        prefetch(next->piece, 0, next->kv_head);
      for (int j = 0; j < columns; j += BLOCK)
        pack_keys<Words>(page(key_cache, blocks[j / BLOCK], kv_head), k + j, dim);
      multiply<Words>(q, words, k, TILE_KEYS, words, s, TILE_KEYS, rows, columns, nullptr);
      for (int r = 0; r < rows; ++r) {
        int64_t first, last;
        seen(piece, plan.rows[first_entry + r / group], first, last);
        softmax_row(s + r * TILE_KEYS, p + r * (TILE_KEYS / Words::PER_WORD), columns, clamp(first - tile),
                    clamp(last - tile), how, state[r]);
        decay[r] = state[r].decay;
      }
      for (int j = 0; j < count; j += BLOCK)
        pack_values<Words, T>(page(value_cache, blocks[j / BLOCK], kv_head), v + j / Words::PER_WORD * dim,
                              std::min(BLOCK, count - j), dim);
      int depth = (count + Words::PER_WORD - 1) / Words::PER_WORD;
      multiply<Words>(p, TILE_KEYS / Words::PER_WORD, v, dim, depth, o, dim, rows, dim, decay);
    }
    for (int r = 0; r < rows; ++r)
      finish(first_entry + r / group, kv_head * group + r % group, o + r * dim, state[r]);
  }

  // Pages lie apart, so that the hardware does not see them coming.
  void prefetch(int64_t piece, int64_t tile, int64_t kv_head) const {
    const int32_t* blocks = plan.blocks + plan.block_start[piece] + tile / BLOCK;
    int64_t keys = std::min<int64_t>(TILE_KEYS, plan.num_keys[piece] - tile);
    for (int64_t j = 0; j < keys; j += BLOCK)
      for (const T* cache : {key_cache, value_cache}) {
        const char* from = reinterpret_cast<const char*>(page(cache, blocks[j / BLOCK], kv_head));
        for (size_t i = 0; i < BLOCK * dim * sizeof(T); i += 64) _mm_prefetch(from + i, _MM_HINT_T1);
      }
  }

  // The keys [first, last) of a piece that a query row sees: causal, and at most a window back.
  void seen(int64_t piece, int64_t row, int64_t& first, int64_t& last) const {
    int64_t position = plan.positions[row] - plan.first_key[piece];
    last = std::min<int64_t>(std::max<int64_t>(position + 1, 0), plan.num_keys[piece]);
    first = how.window > 0 ? std::min(std::max<int64_t>(position + 1 - how.window, 0), last) : 0;
  }

  static int clamp(int64_t key) { return static_cast<int>(std::min<int64_t>(std::max<int64_t>(key, 0), TILE_KEYS)); }

  const T* page(const T* cache, int64_t block, int64_t kv_head) const {
    return cache + (block * kv_heads + kv_head) * BLOCK * dim;
  }

  void finish(int64_t entry, int64_t head, const float* row, const RowState& state) const {
    float value = state.sum > 0 ? state.largest + std::log(state.sum) : state.sum == 0 ? NOTHING : state.sum;
    vec factor = set(state.sum == 0 ? 0.0f : 1.0f / state.sum);
    if (plan.parts[entry] < 0) {
      int64_t at = plan.rows[entry] * heads + head;
      lse[at] = value;
      for (int i = 0; i < dim; i += LANES) store(out + at * dim + i, load(row + i) * factor);
    } else {
      int64_t at = plan.parts[entry] * heads + head;
      part_lse[at] = value;
      for (int i = 0; i < dim; i += LANES) store(part_out + at * dim + i, load(row + i) * factor);
    }
  }

  void merge(int64_t index) const {
    for (int64_t head = 0; head < heads; ++head) {
      int64_t at = plan.merge_rows[index] * heads + head;
      int32_t begin = plan.merge_start[index], end = plan.merge_start[index + 1];
      float top = NOTHING, sum = 0;
      for (int32_t part = begin; part < end; ++part) top = std::fmax(top, part_lse[part * heads + head]);
      vec sums[MAX_DIM / LANES];
      for (int i = 0; i < dim / LANES; ++i) sums[i] = zero();
      for (int32_t part = begin; part < end; ++part) {
        if (part_lse[part * heads + head] == NOTHING) continue;
        float weight = std::exp(part_lse[part * heads + head] - top);
        sum += weight;
        const float* from = part_out + (part * heads + head) * dim;
        for (int i = 0; i < dim / LANES; ++i) sums[i] = fma(load(from + i * LANES), set(weight), sums[i]);
      }
      lse[at] = sum == 0 ? NOTHING : top + std::log(sum);
      vec factor = set(sum == 0 ? 0.0f : 1.0f / sum);
      for (int i = 0; i < dim / LANES; ++i) store(out + at * dim + i * LANES, sums[i] * factor);
    }
  }

  void run(int threads) const {
    std::vector<int64_t> first_tile(plan.pieces + 1, 0);
    for (int64_t i = 0; i < plan.pieces; ++i) {
      int64_t entries = plan.row_start[i + 1] - plan.row_start[i];
      first_tile[i + 1] = first_tile[i] + (entries + entries_per_tile() - 1) / entries_per_tile();
    }
    const int64_t items = first_tile[plan.pieces] * kv_heads;
    auto locate = [&](int64_t number) {
      int64_t tile = number / kv_heads;
      int64_t piece = std::upper_bound(first_tile.begin(), first_tile.end(), tile) - first_tile.begin() - 1;
      int64_t first = plan.row_start[piece] + (tile - first_tile[piece]) * entries_per_tile();
      int64_t last = std::min<int64_t>(first + entries_per_tile(), plan.row_start[piece + 1]);
      return Item{piece, first, last, number % kv_heads};
    };
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for schedule(dynamic, 1)
      for (int64_t number = 0; number < items; ++number) {
        Item next = locate(std::min(number + threads, items - 1));
        run_item(locate(number), number + threads < items ? &next : nullptr);
      }
#pragma omp for schedule(static)
      for (int64_t i = 0; i < plan.merges; ++i) merge(i);
    }
  }
};

}  // namespace

#define EXPORT(T, SUFFIX)                                                                                             \
  extern "C" void parrot_attention_##SUFFIX(                                                                          \
      const Plan* plan, const T* query, const T* key_cache, const T* value_cache, T* out, float* lse,                 \
      float* part_out, float* part_lse, int64_t heads, int64_t kv_heads, int64_t query_stride, int64_t dim,           \
      float scale, float softcap, int64_t window, int threads) {                                                      \
    Attention<T> attention{*plan, query, key_cache, value_cache, out, lse, part_out, part_lse, heads, kv_heads,       \
                           query_stride, static_cast<int>(dim), {scale, softcap, window}};                            \
    attention.run(threads);                                                                                           \
  }

EXPORT(float, f32)
EXPORT(bf16, bf16)
