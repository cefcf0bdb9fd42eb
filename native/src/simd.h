// Vectors of floats, one task per lane, by the compilers' vector extension (GCC and Clang).
#pragma once

#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

// INNERLOOP_TARGET is the namespace of the instruction set that this file is compiled for: without it, the linker would
// merge equal names and might run AVX-512 code on a machine that lacks it.
namespace innerloop::INNERLOOP_TARGET {

constexpr int LANES = INNERLOOP_LANES;

typedef float Vector __attribute__((vector_size(4 * INNERLOOP_LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * INNERLOOP_LANES)));
typedef int32_t Mask __attribute__((vector_size(4 * INNERLOOP_LANES)));  // 0 or -1 per lane

#if defined(__clang__)
#define INNERLOOP_UNROLL _Pragma("clang loop unroll(full)")
#else
#define INNERLOOP_UNROLL _Pragma("GCC unroll 16")
#endif
#define INNERLOOP_INLINE inline __attribute__((always_inline))

// Minus zero, not plus: -0 + 0 is 0, so the compiler could not leave the addition out.
INNERLOOP_INLINE Vector broadcast(float value) { return value - Vector{}; }
INNERLOOP_INLINE Vector broadcast(Vector value) { return value; }

INNERLOOP_INLINE Words broadcast(uint32_t value) { return Words{} + value; }

// 0, 1, 2, ...
INNERLOOP_INLINE Words lane_numbers() {
  Words numbers;
  INNERLOOP_UNROLL
  for (int lane = 0; lane < LANES; ++lane) numbers[lane] = lane;
  return numbers;
}

// Loads and stores by memcpy: the arrays have no alignment to speak of.
INNERLOOP_INLINE Vector load(const float* from) {
  Vector vector;
  std::memcpy(&vector, from, sizeof vector);
  return vector;
}

// from[places[lane]] in every lane.
INNERLOOP_INLINE Vector gather(const float* from, Words places) {
#if defined(__AVX512F__) && INNERLOOP_LANES == 16
  return (Vector)_mm512_mask_i32gather_ps(_mm512_setzero_ps(), 0xffff, (__m512i)places, from, 4);
#elif defined(__AVX2__) && INNERLOOP_LANES == 8
  return (Vector)_mm256_i32gather_ps(from, (__m256i)places, 4);
#else
  Vector gathered;
  for (int lane = 0; lane < LANES; ++lane) gathered[lane] = from[places[lane]];
  return gathered;
#endif
}

template <class V, class T>
INNERLOOP_INLINE void store(const V& vector, T* to, int count = LANES) {
  static_assert(sizeof(T) == 4);
  if (count == LANES)
    std::memcpy(to, &vector, sizeof vector);
  else
    std::memcpy(to, &vector, sizeof(T) * count);
}

INNERLOOP_INLINE Vector load(const float* from, int count) {
  if (count == LANES) return load(from);
  Vector vector{};
  std::memcpy(&vector, from, sizeof(float) * count);
  return vector;
}

INNERLOOP_INLINE Vector maximum(Vector a, Vector b) { return a > b ? a : b; }

INNERLOOP_INLINE Vector absolute(Vector a) { return (Vector)((Words)a & 0x7fffffffu); }

INNERLOOP_INLINE bool any(Mask mask) {
#if defined(__AVX512F__) && INNERLOOP_LANES == 16
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#elif defined(__AVX2__) && INNERLOOP_LANES == 8
  return _mm256_movemask_epi8((__m256i)mask) != 0;
#else
  int32_t all = 0;
  for (int lane = 0; lane < LANES; ++lane) all |= mask[lane];
  return all != 0;
#endif
}

INNERLOOP_INLINE Vector square_root(Vector a) {
#if defined(__AVX512F__) && INNERLOOP_LANES == 16
  return (Vector)_mm512_maskz_sqrt_ps(0xffff, (__m512)a);  // the plain one makes GCC 12 warn in its own header
#elif defined(__AVX2__) && INNERLOOP_LANES == 8
  return (Vector)_mm256_sqrt_ps((__m256)a);
#else
  Vector root;
  for (int lane = 0; lane < LANES; ++lane) root[lane] = __builtin_sqrtf(a[lane]);
  return root;
#endif
}

// In a fixed order: halves are added until one lane is left.
INNERLOOP_INLINE float sum_of_lanes(Vector a) {
#if defined(__AVX512F__) && INNERLOOP_LANES == 16 || defined(__AVX2__) && INNERLOOP_LANES == 8
#if INNERLOOP_LANES == 16  // by masked extractions, because the plain ones make GCC 12 warn in its own header
  const __m256 eight = _mm256_add_ps(_mm512_maskz_extractf32x8_ps(0xff, (__m512)a, 0),
                                     _mm512_maskz_extractf32x8_ps(0xff, (__m512)a, 1));
#else
  const __m256 eight = (__m256)a;
#endif
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
#else
  float lanes[LANES];
  std::memcpy(lanes, &a, sizeof a);
  INNERLOOP_UNROLL
  for (int half = LANES / 2; half > 0; half /= 2) {
    INNERLOOP_UNROLL
    for (int lane = 0; lane < half; ++lane) lanes[lane] += lanes[lane + half];
  }
  return lanes[0];
#endif
}

}  // namespace innerloop::INNERLOOP_TARGET
