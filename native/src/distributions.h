// Random words to floats, as jax.random does it.
#pragma once

#include "logarithm.h"

namespace innerloop::INNERLOOP_TARGET {

// The top 23 bits as a float in [1, 2).
INNERLOOP_INLINE Vector in_one_to_two(Words words) { return (Vector)(words >> 9 | 0x3f800000u); }

// jax.random.uniform with minval -1/2, maxval 1/2. Every operation is exact, so the floats are JAX's own.
INNERLOOP_INLINE Vector centred_uniform(Words words) { return in_one_to_two(words) - 1.5f; }

// The inverse error function by Giles' polynomials (Approximating the erfinv function, 2010), as XLA has it.
INNERLOOP_INLINE Vector inverse_error_function(Vector u) {
  // u^2 has to be rounded before 1 - u^2 is formed, as XLA has it: near the ends of (-1, 1) a fused multiply-add would
  // give another, better number. Setting the sign by an integer operation keeps the compiler from fusing the two.
  const Vector minus_square = (Vector)((Words)(u * u) | 0x80000000u);
  const Vector w = -log_one_plus(minus_square);
  const Vector v = w - 2.5f;
  Vector p = broadcast(2.81022636e-08f);
  p = p * v + 3.43273939e-07f;
  p = p * v - 3.5233877e-06f;
  p = p * v - 4.39150654e-06f;
  p = p * v + 0.00021858087f;
  p = p * v - 0.00125372503f;
  p = p * v - 0.00417768164f;
  p = p * v + 0.246640727f;
  p = p * v + 1.50140941f;
  const Mask is_tail = w >= 5.0f;
  if (any(is_tail)) {  // 1 value in 300
    const Vector s = square_root(w) - 3.0f;
    Vector q = broadcast(-0.000200214257f);
    q = q * s + 0.000100950558f;
    q = q * s + 0.00134934322f;
    q = q * s - 0.00367342844f;
    q = q * s + 0.00573950773f;
    q = q * s - 0.0076224613f;
    q = q * s + 0.00943887047f;
    q = q * s + 1.00167406f;
    q = q * s + 2.83297682f;
    p = is_tail ? q : p;
  }
  return p * u;
}

// jax.random.normal: sqrt(2) erfinv(u), u uniform in (-1, 1). Agrees with JAX to a few units in the last place: XLA's
// logarithm is another one.
INNERLOOP_INLINE Vector normal(Words words) {
  const float lowest = -0.99999994f;  // the float after -1
  const Vector u = maximum((in_one_to_two(words) - 1.0f) * 2.0f + lowest, broadcast(lowest));
  return 1.41421356f * inverse_error_function(u);
}

}  // namespace innerloop::INNERLOOP_TARGET
