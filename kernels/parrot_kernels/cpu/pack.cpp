// Packing a weight into panels, and reading its rows again; see panels.h for the layout.
#include <algorithm>

#include "gemm.h"
#include "panels.h"
#include "threads.h"
#include "transpose.h"

using namespace parrot;

namespace {

// One square of words: LANES outputs times LANES words of their inputs, of which `rows` and `words` exist.
template <class W, class T>
void pack_square(const T* weight, int64_t stride, int64_t rows, int64_t inputs, typename W::weight_word* to) {
  using Word = typename W::weight_word;
  constexpr int64_t WIDTH = LANES * W::PER_WORD;
  if (rows >= LANES && inputs >= WIDTH && stride % W::PER_WORD == 0) {
    transpose_square(reinterpret_cast<const Word*>(weight), stride / W::PER_WORD, to, PANEL);
    return;
  }
  T padded[LANES * WIDTH] = {};
  Word turned[LANES * LANES];
  for (int64_t r = 0; r < std::min<int64_t>(rows, LANES); ++r)
    std::memcpy(padded + r * WIDTH, weight + r * stride, std::min(inputs, WIDTH) * sizeof(T));
  transpose_square(reinterpret_cast<const Word*>(padded), LANES, turned, LANES);
  int64_t words = std::min<int64_t>(LANES, depth_of<W>(inputs));
  for (int64_t k = 0; k < words; ++k) std::memcpy(to + k * PANEL, turned + k * LANES, sizeof(Word) * LANES);
}

template <class T>
void pack_panel(const T* weight, int64_t stride, int64_t rows, int64_t in, void* panel) {
  using W = typename PanelOf<T>::type;
  auto* words = static_cast<typename W::weight_word*>(panel);
  const int64_t depth = depth_of<W>(in);
  for (int64_t k = 0; k < depth; k += LANES)
    for (int v = 0; v < PANEL; v += LANES) {
      int64_t input = k * W::PER_WORD;
      pack_square<W>(weight + v * stride + input, stride, rows - v, in - input, words + k * PANEL + v);
    }
}

template <class T>
int64_t panel_bytes(int64_t in) {
  using W = typename PanelOf<T>::type;
  return depth_of<W>(in) * PANEL * sizeof(typename W::weight_word);
}

// data has num_panels(out) * panel_bytes(in) bytes; weight is [out, in], its rows `stride` elements apart.
template <class T>
void pack(const T* weight, int64_t stride, int64_t out, int64_t in, char* data, int threads) {
  const int64_t panels = num_panels(out), bytes = panel_bytes<T>(in);
#pragma omp parallel for num_threads(threads) if (threads > 1 && is_large(out * in))
  for (int64_t p = 0; p < panels; ++p) {
    int64_t row = p * PANEL;
    pack_panel(weight + row * stride, stride, out - row, in, data + p * bytes);
  }
}

}  // namespace

namespace parrot {

// The words of a row lie a panel's width apart, each in a cache line of its own; no load waits for another.
template <class T>
void unpack_row(const Packed<T>& w, int64_t row, T* to) {
  using W = typename PanelOf<T>::type;
  using Word = typename W::weight_word;
  const int64_t whole = w.in / W::PER_WORD;
  const Word* word = static_cast<const Word*>(w.data) + row / PANEL * depth_of<W>(w.in) * PANEL + row % PANEL;
  for (int64_t k = 0; k < whole; ++k, word += PANEL) std::memcpy(to + k * W::PER_WORD, word, sizeof(Word));
  if (w.in % W::PER_WORD != 0) std::memcpy(to + w.in - 1, word, sizeof(T));
}

template void unpack_row(const Packed<float>&, int64_t, float*);
template void unpack_row(const Packed<bf16>&, int64_t, bf16*);

}  // namespace parrot

#define EXPORT(T, SUFFIX)                                                                                         \
  extern "C" int64_t parrot_packed_bytes_##SUFFIX(int64_t out, int64_t in) {                                      \
    return num_panels(out) * panel_bytes<T>(in);                                                                  \
  }                                                                                                               \
  extern "C" void parrot_pack_##SUFFIX(const T* weight, int64_t stride, int64_t out, int64_t in, char* data,      \
                                       int threads) {                                                             \
    pack(weight, stride, out, in, data, threads);                                                                 \
  }

EXPORT(float, f32)
EXPORT(bf16, bf16)
