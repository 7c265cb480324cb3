// Products of a few rows with one tile of keys and values, without packing them: each is used for so few rows that
// writing it down and reading it again would cost more than the products. Meanwhile another page is fetched, line by line.
//
// The sums are those of tiles.h in the same order, so a row's result does not tell which of the two computed it.
#pragma once

#include "tiles.h"

namespace parrot {

constexpr int NARROW_ROWS = LANES == 16 ? 4 : 2;  // so that four columns of sums for each row fit the registers

inline void fetch(const void* page, int64_t offset) {
  _mm_prefetch(static_cast<const char*>(page) + offset, _MM_HINT_T0);
}

// The keys or values of a tile, block by block, and the pages to fetch meanwhile.
template <class T>
struct TilePages {
  const T* page[TILE_KEYS / BLOCK];
  const char* next[TILE_KEYS / BLOCK];
};

// scores[ROWS, columns] = q[ROWS, dim] keys[columns, dim]^T, rows of scores TILE_KEYS apart. A sum is a chain of
// dependent additions; going from block to block before the chain goes on keeps several of them in flight.
template <class W, int ROWS, class T>
inline void score_tile(const typename W::word* q, const TilePages<T>& keys, int columns, int dim, float* scores) {
  const int count = dim / W::PER_WORD;
  for (int i = 0; i < count; i += LANES)
    for (int key = 0; key < columns; key += LANES) {
      const T* page = keys.page[key / BLOCK];
      words square[LANES];
      for (int k = 0; k < LANES; ++k) {
        const int64_t at = (key % BLOCK + k) * dim + i * W::PER_WORD;
        square[k] = W::row(page + at, 0);
        fetch(keys.next[key / BLOCK], at * sizeof(T));
      }
      transpose(square);
      vec sums[ROWS];
      for (int r = 0; r < ROWS; ++r) sums[r] = i == 0 ? zero() : load(scores + r * TILE_KEYS + key);
      for (int k = 0; k < LANES; ++k)
        for (int r = 0; r < ROWS; ++r)
          sums[r] = W::multiply_add(W::repeated(q + r * count + i + k), W::operand(square[k]), sums[r]);
      for (int r = 0; r < ROWS; ++r) store(scores + r * TILE_KEYS + key, sums[r]);
    }
}

// Columns i to i + 4 * LANES of the word that row k of the values (and the next, below `count`) makes.
template <class T>
inline void value_words(FloatWords, const T* values, int k, int, int dim, int i, vec (&columns)[4]) {
  for (int v = 0; v < 4; ++v) columns[v] = load(values + k * dim + i + v * LANES);
}

#if defined(__AVX512BF16__)
inline void value_words(PairWords, const bf16* values, int k, int count, int dim, int i, __m512bh (&columns)[4]) {
  for (int v = 0; v < 4; v += 2) {
    const bf16* row = values + k * dim + i + v * LANES;
    words pair[2];
    pair_rows(row, k + 1 < count ? row + dim : nullptr, pair);
    columns[v] = (__m512bh)pair[0], columns[v + 1] = (__m512bh)pair[1];
  }
}
#endif

// o[ROWS, dim] = o * decay + p[ROWS, count] values[count, dim], p's rows TILE_KEYS / PER_WORD words apart.
template <class W, int ROWS, class T>
inline void weigh_tile(const typename W::word* p, const TilePages<T>& values, int count, int dim, const float* decay,
                       float* o) {
  for (int i = 0; i < dim; i += 4 * LANES) {
    vec sums[ROWS][4];
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < 4; ++v) sums[r][v] = load(o + r * dim + i + v * LANES) * set(decay[r]);
    for (int key = 0; key < count; key += W::PER_WORD) {
      const int k = key % BLOCK;
      decltype(W::vector(p)) columns[4];
      value_words(W(), values.page[key / BLOCK], k, count - key + k, dim, i, columns);
      for (int n = 0; n < W::PER_WORD; ++n)
        for (size_t line = 0; line < 4 * LANES * sizeof(T); line += 64)
          fetch(values.next[key / BLOCK], ((k + n) * dim + i) * sizeof(T) + line);
      for (int r = 0; r < ROWS; ++r) {
        auto x = W::repeated(p + r * (TILE_KEYS / W::PER_WORD) + key / W::PER_WORD);
        for (int v = 0; v < 4; ++v) sums[r][v] = W::multiply_add(x, columns[v], sums[r][v]);
      }
    }
    for (int r = 0; r < ROWS; ++r)
      for (int v = 0; v < 4; ++v) store(o + r * dim + i + v * LANES, sums[r][v]);
  }
}

}  // namespace parrot
