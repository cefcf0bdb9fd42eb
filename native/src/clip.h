// The clip of token entries to +-limit, and its derivative.
#pragma once

#include "simd.h"

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

// Clips tokens and says whether any entry was reached; only then are the derivatives written. Training rarely touches
// the clip, so usually this is one read of the tokens.
inline bool clip_tokens(Vector* tokens, size_t count, float limit, Vector* derivatives) {
  Mask is_reached{};
  for (size_t entry = 0; entry < count; ++entry) is_reached |= absolute(tokens[entry]) >= limit;
  if (!any(is_reached)) return false;
  for (size_t entry = 0; entry < count; ++entry) {
    derivatives[entry] = clip_derivative(tokens[entry], limit);
    tokens[entry] = clipped(tokens[entry], limit);
  }
  return true;
}

}  // namespace innerloop::INNERLOOP_TARGET
