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

template <int A, int B, int C, int D, int COUNT, class Part>
INNERLOOP_INLINE void four_rounds(Words (&left)[COUNT], Words (&right)[COUNT], Part left_key, Part right_key) {
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

// Word number counters[chain] of the stream of a key, whose two parts are the same for all lanes or one per lane.
template <int COUNT, class Part>
INNERLOOP_INLINE void threefry(Part high, Part low, const Words (&counters)[COUNT], Words (&words)[COUNT]) {
  const Part third = high ^ low ^ 0x1BD11BDAu;
  Words right[COUNT];
  INNERLOOP_UNROLL
  for (int chain = 0; chain < COUNT; ++chain) {
    words[chain] = Words{} + high;
    right[chain] = counters[chain] + low;
  }
  four_rounds<13, 15, 26, 6>(words, right, low, third + 1);
  four_rounds<17, 29, 16, 24>(words, right, third, high + 2);
  four_rounds<13, 15, 26, 6>(words, right, high, low + 3);
  four_rounds<17, 29, 16, 24>(words, right, low, third + 4);
  four_rounds<13, 15, 26, 6>(words, right, third, high + 5);
  INNERLOOP_UNROLL
  for (int chain = 0; chain < COUNT; ++chain) words[chain] ^= right[chain];
}

// words[chain][lane] = word number firsts[chain] + lane of the key's stream.
template <int COUNT>
INNERLOOP_INLINE void threefry(Key key, const uint32_t (&firsts)[COUNT], Words (&words)[COUNT]) {
  Words counters[COUNT];
  INNERLOOP_UNROLL
  for (int chain = 0; chain < COUNT; ++chain) counters[chain] = lane_numbers() + firsts[chain];
  threefry(key.high, key.low, counters, words);
}

}  // namespace innerloop::INNERLOOP_TARGET
