// Attention from scores, a row at a time: the keys that one token reads, of every task.
#pragma once

#include "exponential.h"
#include "layers.h"

namespace innerloop::INNERLOOP_TARGET {

// One row: the scores, their softmax, and what attention makes of both. Where it takes one of them as it is, the
// pointers are equal, and nothing is copied.
struct AttentionRow {
  Vector *scores, *softmax, *attention;
};

// How a layer makes attention of scores, and the way back.
//
//     p = softmax(f s),   a = s, p, or m p + (1 - m) s,
//     dp = m da,   ds = (1 - m) da + f p (dp - p . dp),   dm = (p - s) . da.
class AttentionOfScores {
 public:
  AttentionOfScores(const Problem& problem, const Layers& layers, int layer)
      : kind_(problem.attention[layer]),
        logit_scale_(problem.logit_scale),
        share_(is_mixed() ? layers.share(layer) : 0.0f) {}

  bool is_mixed() const { return kind_ == Attention::mixed; }

  void apply(const AttentionRow& row, int keys) const {
    if (kind_ == Attention::linear) return;
    find_softmax(row.scores, row.softmax, keys);
    if (!is_mixed()) return;
    for (int key = 0; key < keys; ++key)
      row.attention[key] = share_ * row.softmax[key] + (1 - share_) * row.scores[key];
  }

  // Turns the gradient by a row of attention into the gradient by its scores; returns the share's.
  Vector differentiate(const AttentionRow& row, int keys, Vector* gradient) const {
    Vector share_gradient{};
    if (kind_ == Attention::linear) return share_gradient;
    Vector mean{};
    for (int key = 0; key < keys; ++key) mean += row.softmax[key] * gradient[key];
    if (!is_mixed()) {
      for (int key = 0; key < keys; ++key) gradient[key] = row.softmax[key] * (gradient[key] - mean) * logit_scale_;
      return share_gradient;
    }
    for (int key = 0; key < keys; ++key) {
      const Vector of_attention = gradient[key];
      share_gradient += of_attention * (row.softmax[key] - row.scores[key]);
      gradient[key] = (1 - share_) * of_attention + share_ * logit_scale_ * row.softmax[key] * (of_attention - mean);
    }
    return share_gradient;
  }

 private:
  // Shifted by the largest score, so that nothing overflows. May work in place.
  void find_softmax(const Vector* scores, Vector* softmax, int keys) const {
    constexpr float LOG2_E = 1.4426950409f;
    const float factor = LOG2_E * logit_scale_;
    Vector largest = scores[0], sum{};
    for (int key = 1; key < keys; ++key) largest = maximum(largest, scores[key]);
    for (int key = 0; key < keys; ++key) {
      softmax[key] = power_of_two((scores[key] - largest) * factor);
      sum += softmax[key];
    }
    const Vector inverse = 1.0f / sum;
    for (int key = 0; key < keys; ++key) softmax[key] *= inverse;
  }

  Attention kind_;
  float logit_scale_, share_;
};

}  // namespace innerloop::INNERLOOP_TARGET
