// JAX's random words: threefry2x32 with twenty rounds (Salmon et al., Parallel random numbers: as easy as 1, 2, 3,
// 2011) in its "partitionable" arrangement, where word i of a key is the xor of both halves of the block (0, i).
#pragma once

#include "problem.h"
#include "simd.h"

namespace innerloop::INNERLOOP_TARGET {

// Vectors in flight at once. The twenty rounds form one chain of dependent instructions; a single chain would leave
// most of the machine idle (measured with AVX-512: two chains cost twice as much per word as eight). Without AVX-512
// there are sixteen registers, which hold four chains.
constexpr int CHAINS = INNERLOOP_LANES == 16 ? 8 : 4;

template <int BITS>
INNERLOOP_INLINE Words rotated(Words word) {
  return word << BITS | word >> (32 - BITS);
}

// One round on all chains. They advance together, instruction by instruction.
template <int BITS, int COUNT>
INNERLOOP_INLINE void threefry_round(Words (&left)[COUNT], Words (&right)[COUNT]) {
  INNERLOOP_UNROLL
  for (int chain = 0; chain < COUNT; ++chain) {
    left[chain] += right[chain];
    right[chain] = left[chain] ^ rotated<BITS>(right[chain]);
  }
}

template <int A, int B, int C, int D, int COUNT>
INNERLOOP_INLINE void four_rounds(Words (&left)[COUNT], Words (&right)[COUNT], uint32_t left_key, uint32_t right_key) {
  threefry_round<A>(left, right);
  threefry_round<B>(left, right);
  threefry_round<C>(left, right);
  threefry_round<D>(left, right);
  INNERLOOP_UNROLL
  for (int chain = 0; chain < COUNT; ++chain) {
    left[chain] += left_key;
    right[chain] += right_key;
  }
}

// words[chain][lane] = word number firsts[chain] + lane of the key's stream.
template <int COUNT>
INNERLOOP_INLINE void threefry(Key key, const uint32_t (&firsts)[COUNT], Words (&words)[COUNT]) {
  const uint32_t third = key.high ^ key.low ^ 0x1BD11BDAu;
  const Words lanes = lane_numbers() + key.low;
  Words right[COUNT];
  INNERLOOP_UNROLL
  for (int chain = 0; chain < COUNT; ++chain) {
    words[chain] = broadcast(key.high);
    right[chain] = lanes + firsts[chain];
  }
  four_rounds<13, 15, 26, 6>(words, right, key.low, third + 1);
  four_rounds<17, 29, 16, 24>(words, right, third, key.high + 2);
  four_rounds<13, 15, 26, 6>(words, right, key.high, key.low + 3);
  four_rounds<17, 29, 16, 24>(words, right, key.low, third + 4);
  four_rounds<13, 15, 26, 6>(words, right, third, key.high + 5);
  INNERLOOP_UNROLL
  for (int chain = 0; chain < COUNT; ++chain) words[chain] ^= right[chain];
}

}  // namespace innerloop::INNERLOOP_TARGET
