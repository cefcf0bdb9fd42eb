// GELU units by the tanh approximation, as JAX has them, and their derivative.
#pragma once

#include "exponential.h"

namespace innerloop::INNERLOOP_TARGET {

struct Gelu {
  Vector value, slope;
};

// gelu(x) = x (1 + tanh u) / 2 = x s with s = 1 / (1 + e^-2u), u = sqrt(2 / pi) (x + .044715 x^3):
// gelu'(x) = s + x s (1 - s) 2 u'.
INNERLOOP_INLINE Gelu gelu(Vector x) {
  constexpr float FACTOR = 1.5957691216f, CUBIC = 0.044715f, LOG2_E = 1.4426950409f;  // 2 sqrt(2 / pi)
  const Vector square = x * x;
  const Vector s = 1.0f / (1.0f + power_of_two(x * (square * (-LOG2_E * FACTOR * CUBIC) - LOG2_E * FACTOR)));
  const Vector value = x * s;
  return {value, s + (value - value * s) * (square * (3.0f * FACTOR * CUBIC) + FACTOR)};
}

}  // namespace innerloop::INNERLOOP_TARGET
