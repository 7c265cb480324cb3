// Drawing a token of each row of logits, without a sort: see gpu/sampling.py, whose twin this is.
//
// A draw is the arg-max of logits plus Gumbel noise over the allowed tokens. Top-k, top-p and min-p allow a token only
// if they allow all likelier ones. So a token is drawn from all of them first; counting and weighing those above it
// says whether it is allowed, and if not, the next one is drawn from those above it, with the same noise.
#pragma once

#include "noise.h"
#include "threads.h"

namespace parrot {

// Logits [rows, vocab] with rows `stride` apart; the others [rows], keys [rows, 2]. Temperature 0 is the arg-max, top_k
// 0, top_p 1 and min_p 0 allow all tokens.
struct Sampling {
  const float *logits, *temperature, *top_p, *min_p;
  const int32_t *top_k, *keys;
  int64_t* ids;
  int64_t stride, vocab;

  int64_t width() const { return vocab; }
  bool fits(int64_t) const { return true; }

  void part(int64_t rows, int thread, int threads) const {
    Share share(rows, thread, threads);
    for (int64_t row = share.first; row < share.last; ++row) ids[row] = token(row);
  }

 private:
  static constexpr float NEVER = -INFINITY;
  static constexpr float LOG2_E = 1.44269504088896341f;
  // A token this far below the best one has a probability below float32's rounding, times 2 ** 20 of them.
  static constexpr float NEGLIGIBLE = 32.0f;

  struct Row {
    const float* logits;
    int64_t vocab;
    float temperature;
    Key key;

    // Call f(logits over temperature, number of the first) for each vector; what is behind the last is -inf.
    template <class F>
    void each(F f) const {
      const vec divisor = set(temperature > 0 ? temperature : 1.0f);
      int64_t i = 0;
      for (; i + LANES <= vocab; i += LANES) f(load(logits + i) / divisor, i);
      if (i == vocab) return;
      float rest[LANES];
      std::fill(std::copy(logits + i, logits + vocab, rest), rest + LANES, NEVER);
      f(load(rest) / divisor, i);
    }

    float at(int64_t i) const { return logits[i] / (temperature > 0 ? temperature : 1.0f); }
  };

  struct Drawn {
    int64_t token;
    float top;  // the highest logit of all
  };

  // Of the tokens with a logit x, and of x's neighbours. A token's mass is its probability over that of the best.
  struct Above {
    float count, mass, total;       // how many are above x, their mass, and the mass of all
    float next_above, next_below;  // the lowest logit above x, and the highest that is not
  };

  int64_t token(int64_t r) const {
    const Row row{logits + r * stride, vocab, temperature[r], {keys[2 * r], keys[2 * r + 1]}};
    const Drawn drawn = draw(row, NEVER, NEVER);
    if (!(row.temperature > 0) || !(drawn.top > NEVER && drawn.top < INFINITY)) return drawn.token;
    return allowed(row, drawn, top_k[r] > 0 ? std::min<int64_t>(top_k[r], vocab) : vocab, top_p[r], min_p[r]);
  }

  // Draw from the tokens with a logit > `above` and >= `floor`; of equals the first is taken.
  static Drawn draw(const Row& row, float above, float floor) {
    vec best = set(NEVER), top = set(NEVER), token = as_floats(lane_indices());
    row.each([&](vec x, int64_t first) {
      top = larger(x, top);  // the second operand where one is NaN
      vec value = where_less(set(above), x, x, set(NEVER));
      value = where_less(x, set(floor), set(NEVER), value);
      if (row.temperature > 0) {
        if (largest(value) == NEVER) return;  // making noise is most of the work; a later draw is from few tokens
        value = value + gumbel_noise(first, row.key);
      }
      token = where_less(best, value, as_floats(lane_indices(first)), token);
      best = larger(value, best);
    });
    float values[LANES];
    uint32_t tokens[LANES];
    store(values, best);
    store_words(tokens, as_words(token));
    const float value = largest(best);
    int64_t lowest = row.vocab - 1;
    for (int lane = 0; lane < LANES; ++lane)
      if (values[lane] == value) lowest = std::min<int64_t>(lowest, tokens[lane]);
    return {lowest, largest(top)};
  }

  // Return what was drawn, or if it is not allowed, what is drawn next and is. A token with the highest logit always is.
  static int64_t allowed(const Row& row, Drawn drawn, int64_t top_k, float top_p, float min_p) {
    if (top_k == row.vocab && top_p >= 1 && min_p <= 0) return drawn.token;
    const float top = drawn.top;
    const float floor = min_p > 0 ? top + std::min(std::log(std::max(min_p, 1e-30f)), 0.0f) : NEVER;
    for (int64_t token = drawn.token;; ) {
      const float x = row.at(token);
      const Above above = weigh(row, top, x);
      bool is_allowed = above.count < static_cast<float>(top_k) && x >= floor;
      if (is_allowed && top_p < 1) {
        const float total =
            top_k < row.vocab ? mass_of_best(row, top, x, static_cast<float>(top_k), top_p, above) : above.total;
        is_allowed = above.mass < top_p * total;
      }
      if (is_allowed || above.count == 0) return token;
      token = draw(row, x, floor).token;
    }
  }

  // Return the mass of the `top_k` best, of which x is one, as well as it must be known to compare the mass above x with
  // a share of it. Bisects for the logit of the last of them, between `low` and `high`, which move from the logit of one
  // token to that of another: what is sought is at most the mass from low on (`total`), and at least that above high.
  static float mass_of_best(const Row& row, float top, float x, float top_k, float top_p, const Above& above) {
    float low = top - NEGLIGIBLE, high = x, total = above.total, least = above.mass + std::exp(x - top);
    while (low < high && above.mass >= top_p * least && above.mass < top_p * total) {
      float middle = low + (high - low) * 0.5f;
      if (middle >= high) middle = low;
      const Above there = weigh(row, top, middle);
      if (there.count < top_k) {
        high = there.next_below;
        least = std::max(least, there.mass);
      } else {
        low = there.next_above;
        total = there.mass;
      }
    }
    return total;
  }

  static Above weigh(const Row& row, float top, float x) {
    vec count = zero(), mass = zero(), total = zero(), next_above = set(INFINITY), next_below = set(NEVER);
    const vec limit = set(x);
    row.each([&](vec value, int64_t) {
      const vec weight = exp2_down((value - set(top)) * set(LOG2_E));
      count = count + where_less(limit, value, set(1.0f), zero());
      mass = mass + where_less(limit, value, weight, zero());
      total = total + where_less(value, set(INFINITY), weight, zero());  // without NaN
      next_above = smaller(where_less(limit, value, value, set(INFINITY)), next_above);
      next_below = larger(where_less(limit, value, set(NEVER), value), next_below);
    });
    return {sum(count), sum(mass), sum(total), -largest(zero() - next_above), largest(next_below)};
  }
};

}  // namespace parrot
