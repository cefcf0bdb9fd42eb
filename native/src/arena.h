// Working memory in vectors. Taken from a null base it only counts, so that the code that lays out a state also says
// how much memory it needs.
#pragma once

#include <cstddef>

#include "simd.h"

namespace innerloop::INNERLOOP_TARGET {

class Arena {
 public:
  explicit Arena(void* base) : base_(static_cast<Vector*>(base)) {}

  template <class T = Vector>
  T* take(size_t count) {
    T* taken = base_ ? reinterpret_cast<T*>(base_ + used_) : nullptr;
    used_ += (count * sizeof(T) + sizeof(Vector) - 1) / sizeof(Vector);
    return taken;
  }

  size_t used_bytes() const { return used_ * sizeof(Vector); }

 private:
  Vector* base_;
  size_t used_ = 0;
};

// Sets vectors to zero.
inline void clear(Vector* vectors, size_t count) {
  for (size_t entry = 0; entry < count; ++entry) vectors[entry] = Vector{};
}

}  // namespace innerloop::INNERLOOP_TARGET
