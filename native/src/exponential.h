// Powers of two by a polynomial, from which the exponentials of softmax and GELU are made.
#pragma once

#include "simd.h"

namespace innerloop::INNERLOOP_TARGET {

// 2^y to 1e-7, relative; 0 or a huge number where that is out of range, NaN for what is not finite.
INNERLOOP_INLINE Vector power_of_two(Vector y) {
#if defined(__AVX512F__) && INNERLOOP_LANES == 16
  const Vector whole = (Vector)_mm512_maskz_roundscale_ps(0xffff, (__m512)y, _MM_FROUND_TO_NEAREST_INT);
#else
  const Vector highest = broadcast(126.0f), lowest = broadcast(-126.0f);
  y = y > highest ? highest : y;
  y = y < lowest ? lowest : y;
  // Adding this number leaves no bit for a fraction; the integer is then in the lowest bits.
  const Vector shifted = y + 12582912.0f;  // 1.5 * 2^23
  const Vector whole = shifted - 12582912.0f;
#endif
  // Minimax polynomial for the relative error on [-1/2, 1/2], 7.5e-8.
  const Vector f = y - whole;
  Vector p = broadcast(0.0013276472f);
  p = p * f + 0.0096755415f;
  p = p * f + 0.0555071328f;
  p = p * f + 0.240221197f;
  p = p * f + 0.693146967f;
  p = p * f + 1.00000007f;
#if defined(__AVX512F__) && INNERLOOP_LANES == 16
  return (Vector)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)whole);
#else
  return p * (Vector)(((Words)shifted << 23) + 0x3f800000u);
#endif
}

}  // namespace innerloop::INNERLOOP_TARGET
