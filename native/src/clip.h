// The clip of token entries to +-limit, and its derivative.
#pragma once

#include "arena.h"

namespace innerloop::INNERLOOP_TARGET {

// Derivative of the clip to +-limit: 1 inside, 0 outside and, as in JAX, one half on the edge.
INNERLOOP_INLINE Vector clip_derivative(Vector value, float limit) {
  const Vector size = absolute(value), one = broadcast(1.0f), half = broadcast(0.5f);
  return size < limit ? one : (size == limit ? half : Vector{});
}

// A NaN stays a NaN.
INNERLOOP_INLINE Vector clipped(Vector value, float limit) {
  const Vector high = broadcast(limit), low = broadcast(-limit);
  value = value > high ? high : value;
  return value < low ? low : value;
}

// The clip of whole arrays of tokens, each in a place of its own, with what the way back needs. Training rarely touches
// the clip, so derivatives are written only where an entry was reached: usually clipping is one read of the tokens.
class Clips {
 public:
  Clips(float limit, size_t tokens_size, int num_places, Arena& arena)
      : limit_(limit),
        tokens_size_(tokens_size),
        is_reached_(arena.take<bool>(num_places)),
        derivatives_(arena.take(limit < __builtin_inff() ? tokens_size * num_places : 0)) {}

  bool is_reached(int place) const { return is_reached_[place]; }

  void apply(int place, Vector* tokens) const {
    is_reached_[place] = false;
    if (!(limit_ < __builtin_inff())) return;
    Mask is_reached{};
    for (size_t entry = 0; entry < tokens_size_; ++entry) is_reached |= absolute(tokens[entry]) >= limit_;
    if (!any(is_reached)) return;
    is_reached_[place] = true;
    Vector* derivatives = derivatives_ + tokens_size_ * place;
    for (size_t entry = 0; entry < tokens_size_; ++entry) {
      derivatives[entry] = clip_derivative(tokens[entry], limit_);
      tokens[entry] = clipped(tokens[entry], limit_);
    }
  }

  // The gradient by the clipped tokens becomes the one by the tokens before.
  void differentiate(int place, Vector* gradient) const {
    if (!is_reached_[place]) return;
    const Vector* derivatives = derivatives_ + tokens_size_ * place;
    for (size_t entry = 0; entry < tokens_size_; ++entry) gradient[entry] *= derivatives[entry];
  }

 private:
  float limit_;
  size_t tokens_size_;
  bool* is_reached_;
  Vector* derivatives_;
};

}  // namespace innerloop::INNERLOOP_TARGET
