// The work of one attention: items (piece, tile of its rows, KV head), handed out to threads as they come for them.
#pragma once

#include <algorithm>
#include <atomic>
#include <vector>

#include "plan.h"
#include "simd.h"

namespace parrot {

constexpr int BLOCK = 16;      // keys of a cache block
constexpr int TILE_KEYS = 64;  // keys that are packed and multiplied at once
constexpr int TILE_ROWS = 64;  // rows (query x head of one KV head) of an item

struct Tile {
  int32_t piece, first_entry, last_entry;
  int64_t cost;
};

// The tiles of rows of a plan's pieces, where a KV head has `fold` query heads; the last rows of a piece, which see the
// most keys, first.
class Tiles {
 public:
  Tiles() = default;
  Tiles(const Plan& plan, int64_t fold) {
    const int32_t step = static_cast<int32_t>(std::max<int64_t>(1, TILE_ROWS / fold));
    tiles_.reserve(plan.pieces);
    for (int32_t piece = 0; piece < plan.pieces; ++piece) {
      const int32_t first = plan.row_start[piece], count = plan.row_start[piece + 1] - first;
      for (int32_t i = (count - 1) / step * step; i >= 0; i -= step) {
        const int32_t entries = std::min(step, count - i);
        const int64_t cost = plan.num_keys[piece] * std::max<int64_t>(entries * fold, READING_ROWS);
        tiles_.push_back({piece, first + i, first + i + entries, cost});
        cost_ += cost;
      }
    }
  }

  bool empty() const { return tiles_.empty(); }
  int64_t size() const { return static_cast<int64_t>(tiles_.size()); }
  const Tile& operator[](int64_t i) const { return tiles_[i]; }

  // How many there are up to the last one whose heads `threads` threads should share, for one of them would still be at
  // it when the others are done with all the rest. Pieces are in the order of their cost, so these come early.
  int64_t num_large(int threads) const {
    const int64_t share = SHARES * threads;
    for (int64_t i = std::min(size(), 2 * share); i > 0; --i)
      if (tiles_[i - 1].cost * share > cost_) return i;
    return 0;
  }

 private:
  static constexpr int64_t READING_ROWS = 16;  // rows that are multiplied in the time that reading a key takes
  static constexpr int64_t SHARES = 4;         // of a thread: a tile that is more than one is large

  std::vector<Tile> tiles_;
  int64_t cost_ = 0;
};

struct Item {
  Tile tile;
  int64_t kv_head;
  int64_t first_key, last_key;  // of the piece: what some row of the tile sees, from the start of a tile of keys on
};

// The keys [first, last) of a piece that a query row sees: causal, and at most a window back (0: no limit).
inline void seen(const Plan& plan, int64_t piece, int64_t row, int64_t window, int64_t& first, int64_t& last) {
  int64_t position = plan.positions[row] - plan.first_key[piece];
  last = std::min<int64_t>(std::max<int64_t>(position + 1, 0), plan.num_keys[piece]);
  first = window > 0 ? std::min(std::max<int64_t>(position + 1 - window, 0), last) : 0;
}

// One thread's items. It claims them a little before it computes them, for it also knows which pages (the keys or the
// values of a block for one KV head) it will read next: they lie anywhere in memory, so that the hardware does not see
// them coming, and are fetched line by line while the pages before them are read.
class Feed {
 public:
  // `taken` counts the items that the `threads` threads have claimed. A page has `page_bytes`.
  Feed(const Plan& plan, const Tiles& tiles, std::atomic<int64_t>& taken, const void* keys,
       const void* values, int64_t kv_heads, int64_t page_bytes, int64_t window, int threads)
      : plan_(plan),
        tiles_(tiles),
        taken_(taken),
        caches_{static_cast<const char*>(keys), static_cast<const char*>(values)},
        kv_heads_(kv_heads),
        page_bytes_(page_bytes),
        window_(window),
        single_items_(tiles.num_large(threads) * kv_heads) {
    for (int64_t bytes = 0; bytes < AHEAD_BYTES; bytes += page_bytes) next_page();
  }

  // Return the next item, or null if there are none.
  const Item* next() {
    if (begun_ == claimed_) claim();
    return begun_ == claimed_ ? nullptr : &items_[begun_++ % MAX_CLAIMED];
  }

  // Return the page to fetch while the next one in order is read: of each tile of keys the blocks' keys, then their
  // values. At the end any page will do.
  const char* next_page() {
    if (page_ < 2 * num_blocks_ || next_tile()) {
      const bool is_value = page_ >= num_blocks_;
      const int64_t block = blocks_[page_++ - (is_value ? num_blocks_ : 0)];
      last_ = caches_[is_value] + (block * kv_heads_ + items_[fetched_ % MAX_CLAIMED].kv_head) * page_bytes_;
    }
    return last_;
  }

 private:
  static constexpr int64_t AHEAD_BYTES = 16384;  // of pages between the one that is fetched and the one that is read
  static constexpr int64_t MAX_CLAIMED = 16;

  // Take one more item; false if there are none.
  bool claim() {
    if (run_ == 0 && !is_done_) take_run();
    is_done_ = is_done_ || number_ >= tiles_.size() * kv_heads_;
    if (is_done_) return false;
    const int64_t number = number_++;
    --run_;
    Item& item = items_[claimed_++ % MAX_CLAIMED];
    item = {tiles_[number / kv_heads_], number % kv_heads_, 0, 0};
    item.first_key = plan_.num_keys[item.tile.piece];
    for (int32_t entry = item.tile.first_entry; entry < item.tile.last_entry; ++entry) {
      int64_t first, last;
      seen(plan_, item.tile.piece, plan_.rows[entry], window_, first, last);
      item.first_key = std::min(item.first_key, first), item.last_key = std::max(item.last_key, last);
    }
    item.first_key = item.first_key / TILE_KEYS * TILE_KEYS;
    return true;
  }

  void take_run() {
    number_ = taken_.load(std::memory_order_relaxed);
    do
      run_ = number_ < single_items_ ? 1 : kv_heads_;
    while (!taken_.compare_exchange_weak(number_, number_ + run_, std::memory_order_relaxed));
  }

  // Go on to the tile of keys after the one whose pages are all fetched; false while no item follows.
  bool next_tile() {
    key_ += TILE_KEYS;
    while (fetched_ < 0 || key_ >= items_[fetched_ % MAX_CLAIMED].last_key) {
      if (fetched_ + 1 == claimed_ && (claimed_ + 1 >= begun_ + MAX_CLAIMED || !claim())) return false;
      key_ = items_[++fetched_ % MAX_CLAIMED].first_key;
    }
    const Item& item = items_[fetched_ % MAX_CLAIMED];
    blocks_ = plan_.blocks + plan_.block_start[item.tile.piece] + key_ / BLOCK;
    num_blocks_ = (std::min<int64_t>(TILE_KEYS, item.last_key - key_) + BLOCK - 1) / BLOCK;
    page_ = 0;
    return true;
  }

  const Plan& plan_;
  const Tiles& tiles_;
  std::atomic<int64_t>& taken_;
  const char* caches_[2];
  const int64_t kv_heads_, page_bytes_, window_;
  // Items are taken one by one up to here, then all heads of a tile at once, for their pages are neighbours.
  const int64_t single_items_;
  Item items_[MAX_CLAIMED];
  int64_t claimed_ = 0, begun_ = 0;  // how many items
  int64_t run_ = 0, number_ = 0;     // what is left of the run, and its next item
  bool is_done_ = false;             // nothing is left to claim
  // Where fetching is: the item, its tile of keys, the tile's blocks, and which of their pages is next.
  int64_t fetched_ = -1, key_ = 0, num_blocks_ = 0, page_ = 0;
  const int32_t* blocks_ = nullptr;
  const char* last_ = nullptr;
};

}  // namespace parrot
