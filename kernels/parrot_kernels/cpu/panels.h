// How a weight is packed, and its product with a few rows of x.
//
// The outputs are cut into panels of PANEL; a panel holds, input by input, the weights of its outputs side by side, so
// that a product reads it from one end to the other. With bf16 the unit is a pair of neighbouring inputs: what one lane
// of a dot product takes. What is missing of the last panel and of the last pair is zero.
#pragma once

#include "simd.h"

namespace parrot {

constexpr int PANEL_VECS = 2;
constexpr int PANEL = PANEL_VECS * LANES;
constexpr int MAX_ROWS = LANES == 16 ? 12 : 6;  // of x at once: their sums fill the registers
constexpr int MAX_PANELS = 4;                   // at once, where few rows alone would wait for each other's sums
constexpr int PREFETCH_STEPS = 32;              // how far ahead of its use a panel is fetched
constexpr int CHUNK_STEPS = 16;                 // between fetches of the panel that comes next
constexpr int LINE_BYTES = 64;

struct pair {
  bf16 low, high;
};

// What is multiplied: a weight's word times a word of x, in PARTS multiply-adds.
struct FloatPanel {
  using weight_word = float;
  using x_word = float;
  static constexpr int PER_WORD = 1, PARTS = 1;
  static vec weights(const float* p, int) { return load(p); }
  static vec repeated(const float* p, int) { return set(*p); }
  static vec multiply_add(vec a, vec b, vec sum) { return fma(a, b, sum); }
};

struct PairPanel {
  using weight_word = pair;
  static constexpr int PER_WORD = 2;
#if defined(__AVX512BF16__)
  using x_word = pair;
  static constexpr int PARTS = 1;
  static __m512bh weights(const pair* p, int) { return (__m512bh)_mm512_loadu_si512(p); }
  static __m512bh repeated(const pair* p, int) {
    int bits;
    std::memcpy(&bits, p, sizeof(bits));
    return (__m512bh)_mm512_set1_epi32(bits);
  }
  static vec multiply_add(__m512bh a, __m512bh b, vec sum) { return _mm512_dpbf16_ps(sum, a, b); }
#else
  struct x_word {
    float part[2];
  };
  static constexpr int PARTS = 2;
  static vec weights(const pair* p, int part) { return part == 0 ? load_low(p) : load_high(p); }
  static vec repeated(const x_word* p, int part) { return set(p->part[part]); }
  static vec multiply_add(vec a, vec b, vec sum) { return fma(a, b, sum); }
#if defined(__AVX512F__)
  static vec load_low(const pair* p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_loadu_si512(p), 16)); }
  static vec load_high(const pair* p) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_loadu_si512(p), high));
  }
#else
  static __m256i bits(const pair* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
  static vec load_low(const pair* p) { return _mm256_castsi256_ps(_mm256_slli_epi32(bits(p), 16)); }
  static vec load_high(const pair* p) {
    const __m256i high = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    return _mm256_castsi256_ps(_mm256_and_si256(bits(p), high));
  }
#endif
#endif
};

template <class T>
struct PanelOf {
  using type = FloatPanel;
};
template <>
struct PanelOf<bf16> {
  using type = PairPanel;
};

inline int64_t num_panels(int64_t out) { return (out + PANEL - 1) / PANEL; }

// Words of one input row.
template <class W>
int64_t depth_of(int64_t in) {
  return (in + W::PER_WORD - 1) / W::PER_WORD;
}

// Lines of a later panel to fetch on the way. Each is asked for once: asking again for a line that is still under way
// takes a place among the few outstanding misses.
struct Fetch {
  const char* from = nullptr;
  int64_t lines_a_chunk = 0;

  // Part `part` of `parts` of a panel.
  template <class W>
  static Fetch share(const typename W::weight_word* panel, int64_t depth, int64_t part, int64_t parts) {
    constexpr int64_t LINES = CHUNK_STEPS * PANEL * sizeof(*panel) / LINE_BYTES;
    const int64_t lines = (LINES + parts - 1) / parts, chunks = (depth + CHUNK_STEPS - 1) / CHUNK_STEPS;
    const int64_t start = part * lines * chunks * LINE_BYTES, size = depth * PANEL * sizeof(*panel);
    return start < size ? Fetch{reinterpret_cast<const char*>(panel) + start, lines} : Fetch{};
  }
};

// sums[ROWS, PANELS * PANEL] = x[ROWS, depth] times PANELS neighbouring panels, added to what they are if it `resumes`.
template <class W, int ROWS, int PANELS>
void multiply_panels(const typename W::x_word* x, int64_t x_stride, const typename W::weight_word* panels,
                     int64_t depth, Fetch next, float* sums, bool resumes) {
  constexpr int VECS = PANELS * PANEL_VECS;
  constexpr int LINES = PANEL * sizeof(typename W::weight_word) / LINE_BYTES;
  const int64_t panel_words = depth * PANEL;
  vec sum[ROWS][VECS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < VECS; ++v) sum[r][v] = resumes ? load(sums + (r * VECS + v) * LANES) : zero();

  auto add_steps = [&](int64_t begin, int64_t end, int64_t ahead) {
    for (int64_t k = begin; k < end; ++k) {
      const typename W::weight_word* step = panels + k * PANEL;
#pragma GCC unroll 16
      for (int i = 0; i < PANELS * LINES; ++i) {
        const auto* fetched = step + ahead + i / LINES * panel_words;
        _mm_prefetch(reinterpret_cast<const char*>(fetched) + i % LINES * LINE_BYTES, _MM_HINT_T0);
      }
#pragma GCC unroll 2
      for (int part = 0; part < W::PARTS; ++part) {
        auto weights = [&](int v) {
          return W::weights(step + v / PANEL_VECS * panel_words + v % PANEL_VECS * LANES, part);
        };
        auto repeated = [&](int r) { return W::repeated(x + r * x_stride + k, part); };
        if constexpr (VECS > ROWS) {  // the fewer of the two stay in registers
          decltype(repeated(0)) a[ROWS];
#pragma GCC unroll 16
          for (int r = 0; r < ROWS; ++r) a[r] = repeated(r);
#pragma GCC unroll 16
          for (int v = 0; v < VECS; ++v) {
            auto b = weights(v);
#pragma GCC unroll 16
            for (int r = 0; r < ROWS; ++r) sum[r][v] = W::multiply_add(a[r], b, sum[r][v]);
          }
        } else {
          decltype(weights(0)) b[VECS];
#pragma GCC unroll 16
          for (int v = 0; v < VECS; ++v) b[v] = weights(v);
#pragma GCC unroll 16
          for (int r = 0; r < ROWS; ++r) {
            auto a = repeated(r);
#pragma GCC unroll 16
            for (int v = 0; v < VECS; ++v) sum[r][v] = W::multiply_add(a, b[v], sum[r][v]);
          }
        }
      }
    }
  };
  if constexpr (PANELS == 1) {
    for (int64_t k = 0; k < depth; k += CHUNK_STEPS) {
      for (int64_t i = 0; i < next.lines_a_chunk; ++i, next.from += LINE_BYTES) _mm_prefetch(next.from, _MM_HINT_T0);
      add_steps(k, k + CHUNK_STEPS < depth ? k + CHUNK_STEPS : depth, PREFETCH_STEPS * PANEL);
    }
  } else {  // the last steps fetch the beginning of the panels that come next
    const int64_t border = depth > PREFETCH_STEPS ? depth - PREFETCH_STEPS : 0;
    add_steps(0, border, PREFETCH_STEPS * PANEL);
    add_steps(border, depth, PREFETCH_STEPS * PANEL + (PANELS - 1) * panel_words);
  }

#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
    for (int v = 0; v < VECS; ++v) store(sums + (r * VECS + v) * LANES, sum[r][v]);
}

}  // namespace parrot
