// The linear layer; see gemm.h, and panels.h for the product itself.
#include "gemm.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <utility>

#include "panels.h"
#include "threads.h"

using namespace parrot;

namespace {

constexpr int64_t BLOCK_BYTES = 512 << 10;  // of x: half of a second-level cache, the rest is for panels
constexpr int64_t DEPTH = 1024;             // words of a row of x in such a block, and of a panel meanwhile
constexpr int64_t PANELS_TOGETHER = 16;     // whose sums wait, where rows are longer than that, for the next words
constexpr int64_t ALIAS_BYTES = 4096;         // lines that far apart fight for the same places in a first-level cache

// Memory of this thread, kept from call to call.
class Scratch {
 public:
  ~Scratch() { std::free(memory_); }
  void* of(size_t bytes) {
    if (bytes > size_) {
      std::free(memory_);
      size_ = (bytes + 4095) / 4096 * 4096;
      memory_ = std::aligned_alloc(64, size_);
      if (memory_ == nullptr) std::abort();
    }
    return memory_;
  }

 private:
  void* memory_ = nullptr;
  size_t size_ = 0;
};
thread_local Scratch words_scratch, sums_scratch;

// Panels to take at once so that the sums are enough to keep the multipliers busy.
constexpr int panels_for(int rows) {
  if (LANES == 16) return rows <= 3 ? 4 : rows <= 6 ? 2 : 1;
  return rows == 1 ? 4 : rows == 2 ? 2 : 1;
}

template <class W>
using Kernel = void (*)(const typename W::x_word*, int64_t, const typename W::weight_word*, int64_t, Fetch, float*,
                        bool);

template <class W, int... ROWS>
constexpr std::array<std::array<Kernel<W>, 2>, MAX_ROWS> kernels(std::integer_sequence<int, ROWS...>) {
  return {{{multiply_panels<W, ROWS + 1, 1>, multiply_panels<W, ROWS + 1, panels_for(ROWS + 1)>}...}};
}

// By the number of rows less one, then for one panel or for panels_for(rows) of them.
template <class W>
constexpr auto KERNELS = kernels<W>(std::make_integer_sequence<int, MAX_ROWS>{});

inline void copy_words(const float* x, int64_t in, float* words) { std::memcpy(words, x, in * sizeof(float)); }

inline void copy_words(const bf16* x, int64_t in, PairPanel::x_word* words) {
  if (in % 2 != 0) words[in / 2] = {};
#if defined(__AVX512BF16__)
  std::memcpy(words, x, in * sizeof(bf16));
#else
  auto* wide = reinterpret_cast<float*>(words);
  for (int64_t i = 0; i < in; i += LANES) store_some(wide + i, load_some(x + i, in - i), in - i);
#endif
}

// Rows of x as words: x itself where that will do, else copied.
template <class W>
struct Words {
  const typename W::x_word* data;
  int64_t stride;
};

template <class W, class T>
Words<W> words_of(const T* x, int64_t x_stride, int64_t rows, int64_t in) {
  using Word = typename W::x_word;
  constexpr bool IS_SAME = sizeof(Word) == W::PER_WORD * sizeof(T);
  const bool is_apart = rows <= MAX_ROWS || x_stride * sizeof(T) % ALIAS_BYTES != 0;
  if (IS_SAME && is_apart && in % W::PER_WORD == 0 && x_stride % W::PER_WORD == 0)
    return {reinterpret_cast<const Word*>(x), x_stride / W::PER_WORD};
  int64_t stride = (depth_of<W>(in) * sizeof(Word) + 127) / 64 * 64 / sizeof(Word);
  auto* words = static_cast<Word*>(words_scratch.of(rows * stride * sizeof(Word)));
  for (int64_t r = 0; r < rows; ++r) copy_words(x + r * x_stride, in, words + r * stride);
  return {words, stride};
}

template <class T, class Out>
void finish(const float* sums, int64_t rows, int64_t width, int64_t columns, const T* bias, Out* out,
            int64_t out_stride) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t j = 0; j < columns; j += LANES) {
      vec y = load(sums + r * width + j);
      if (bias != nullptr) y = y + load_some(bias + j, columns - j);
      store_some(out + r * out_stride + j, y, columns - j);
    }
}

// A few rows: all of a panel, or of several, at once.
template <class W, class T, class Out>
void multiply_few(const Words<W>& a, int64_t rows, const Packed<T>& w, Out* out, int64_t out_stride, Share share) {
  const int64_t depth = depth_of<W>(w.in), several = panels_for(rows);
  const auto* weights = static_cast<const typename W::weight_word*>(w.data);
  alignas(64) float sums[MAX_ROWS * MAX_PANELS * PANEL];
  for (int64_t p = share.first, taken; p < share.last; p += taken) {
    taken = p + several <= share.last ? several : 1;
    const int64_t column = p * PANEL, width = taken * PANEL;
    KERNELS<W>[rows - 1][taken > 1](a.data, a.stride, weights + p * depth * PANEL, depth, Fetch{}, sums, false);
    finish(sums, rows, width, std::min(width, w.out - column), w.bias ? w.bias + column : nullptr, out + column,
           out_stride);
  }
}

// Many rows: tiles of them meet one panel after the other, DEPTH words at a time, so that the words of x stay in the
// second-level cache while the panels pass. While they meet a panel, each tile fetches its share of the next one.
template <class W, class T, class Out>
void multiply_many(const Words<W>& a, int64_t rows, const Packed<T>& w, Out* out, int64_t out_stride, Share share) {
  const int64_t depth = depth_of<W>(w.in), tiles = (rows + MAX_ROWS - 1) / MAX_ROWS;
  const auto* weights = static_cast<const typename W::weight_word*>(w.data);
  const int64_t together = depth > DEPTH ? PANELS_TOGETHER : share.last - share.first;
  alignas(64) float tile_sums[MAX_ROWS * PANEL];
  float* waiting = nullptr;
  if (depth > DEPTH) waiting = static_cast<float*>(sums_scratch.of(together * rows * PANEL * sizeof(float)));
  for (int64_t group = share.first; group < share.last; group += together) {
    const int64_t group_end = std::min(group + together, share.last);
    for (int64_t k = 0; k == 0 || k < depth; k += DEPTH) {  // once for rows of no words too
      const int64_t words = std::min(DEPTH, depth - k);
      for (int64_t p = group; p < group_end; ++p) {
        const auto* panel = weights + (p * depth + k) * PANEL;
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t begin = rows * t / tiles, count = rows * (t + 1) / tiles - begin, column = p * PANEL;
          const Fetch next = p + 1 < group_end ? Fetch::share<W>(panel + depth * PANEL, words, t, tiles) : Fetch{};
          float* sums = waiting ? waiting + ((p - group) * rows + begin) * PANEL : tile_sums;
          KERNELS<W>[count - 1][0](a.data + begin * a.stride + k, a.stride, panel, words, next, sums, k > 0);
          if (k + words == depth)
            finish(sums, count, PANEL, std::min<int64_t>(PANEL, w.out - column), w.bias ? w.bias + column : nullptr,
                   out + begin * out_stride + column, out_stride);
        }
      }
    }
  }
}

}  // namespace

namespace parrot {

template <class T, class Out>
void gemm_part(const T* x, int64_t x_stride, int64_t rows, const Packed<T>& w, Out* out, int64_t out_stride, int thread,
               int threads) {
  using W = typename PanelOf<T>::type;
  const Share share(num_panels(w.out), thread, threads);
  const int64_t row_bytes = std::max<int64_t>(1, std::min(DEPTH, depth_of<W>(w.in)) * sizeof(typename W::x_word));
  const int64_t block = std::max<int64_t>(MAX_ROWS, BLOCK_BYTES / row_bytes / MAX_ROWS * MAX_ROWS);
  for (int64_t row = 0; row < rows; row += block) {
    const int64_t count = std::min(block, rows - row);
    const Words<W> a = words_of<W>(x + row * x_stride, x_stride, count, w.in);
    if (count <= MAX_ROWS)
      multiply_few<W>(a, count, w, out + row * out_stride, out_stride, share);
    else
      multiply_many<W>(a, count, w, out + row * out_stride, out_stride, share);
  }
}

template void gemm_part(const float*, int64_t, int64_t, const Packed<float>&, float*, int64_t, int, int);
template void gemm_part(const bf16*, int64_t, int64_t, const Packed<bf16>&, bf16*, int64_t, int, int);
template void gemm_part(const bf16*, int64_t, int64_t, const Packed<bf16>&, float*, int64_t, int, int);

}  // namespace parrot
