// How the threads of one parallel region share work and wait for each other.
#pragma once

#include <immintrin.h>
#include <sched.h>

#include <atomic>
#include <cstdint>

namespace parrot {

// The share [first, last) of `count` that is thread `thread`'s.
struct Share {
  int64_t first, last;
  Share(int64_t count, int thread, int threads)
      : first(count * thread / threads), last(count * (thread + 1) / threads) {}
};

// All threads of a region meet here. Waiting spins, for operations are short; but another process may have the core of
// the thread that we wait for, so after a while the core is offered to it.
class Barrier {
 public:
  void wait(int threads) {
    if (threads == 1) return;
    const uint32_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
      if (spins < SPINS)
        _mm_pause();
      else
        sched_yield();
  }

 private:
  static constexpr int SPINS = 2000;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> round_{0};
};

// Whether work on this many elements is worth waking other threads for.
inline bool is_large(int64_t elements) { return elements >= 1 << 15; }

}  // namespace parrot
