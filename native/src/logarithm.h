// The natural logarithm near and below 1, for normal random numbers and for the cross-entropy.
#pragma once

#include "simd.h"

namespace innerloop::INNERLOOP_TARGET {

// log(1 + y) for -1 < y <= 0: the logarithm of the rounded sum t, and the first-order effect of its rounding.
// The polynomial for log(1 + f), sqrt(1/2) <= 1 + f < sqrt(2), is the one of the Cephes library.
INNERLOOP_INLINE Vector log_one_plus(Vector y) {
  const Vector t = 1.0f + y;
  const float largest_mantissa = 1.41421356f;
  Words bits = (Words)t;
  Mask exponent = (Mask)(bits >> 23) - 127;
  Vector mantissa = (Vector)((bits & 0x007fffffu) | 0x3f800000u);  // in [1, 2)
  const Mask is_large = mantissa > largest_mantissa;
  mantissa = is_large ? mantissa * 0.5f : mantissa;
  exponent -= is_large;  // the mask is -1
  const Vector f = mantissa - 1.0f;
  const Vector square = f * f;
  Vector p = broadcast(7.0376836292e-2f);
  p = p * f - 1.1514610310e-1f;
  p = p * f + 1.1676998740e-1f;
  p = p * f - 1.2420140846e-1f;
  p = p * f + 1.4249322787e-1f;
  p = p * f - 1.6668057665e-1f;
  p = p * f + 2.0000714765e-1f;
  p = p * f - 2.4999993993e-1f;
  p = p * f + 3.3333331174e-1f;
  const Vector e = __builtin_convertvector(exponent, Vector);
  Vector log = p * f * square - 2.12194440e-4f * e - 0.5f * square + f + 0.693359375f * e;
  return log + (y - (t - 1.0f)) / t;
}

}  // namespace innerloop::INNERLOOP_TARGET
