// The weights of every layer and head, and the sums that a block of tasks adds to.
#pragma once

#include "arena.h"
#include "matmul.h"
#include "problem.h"

namespace innerloop::INNERLOOP_TARGET {

// A, C and the sums over tasks (one per lane) of the loss and of the gradients with respect to A and C.
class Layers {
 public:
  Layers(const Problem& problem, Arena& arena)
      : problem_(problem),
        count_(size_t(problem.num_distinct_layers) * problem.num_heads * square()),
        loss_(arena.take(1)),
        A_gradients_(arena.take(count_)),
        C_gradients_(arena.take(count_)) {}

  void clear() {
    *loss_ = Vector{};
    for (size_t entry = 0; entry < count_; ++entry) A_gradients_[entry] = C_gradients_[entry] = Vector{};
  }

  // Laid out as num_sums() says.
  void write_sums(float* sums) const {
    sums[0] = sum_of_lanes(*loss_);
    for (size_t entry = 0; entry < count_; ++entry) {
      sums[1 + entry] = sum_of_lanes(A_gradients_[entry]);
      sums[1 + count_ + entry] = sum_of_lanes(C_gradients_[entry]);
    }
  }

  const float* A(int layer, int head) const { return problem_.A + offset(layer, head); }
  const float* C(int layer, int head) const { return problem_.C + offset(layer, head); }
  Vector* A_gradient(int layer, int head) const { return A_gradients_ + offset(layer, head); }
  Vector* C_gradient(int layer, int head) const { return C_gradients_ + offset(layer, head); }
  void add_loss(Vector loss) const { *loss_ += loss; }

 private:
  size_t square() const { return size_t(problem_.token_size) * problem_.token_size; }
  size_t offset(int layer, int head) const {
    const int distinct = problem_.num_distinct_layers == 1 ? 0 : layer;
    return (size_t(distinct) * problem_.num_heads + head) * square();
  }

  const Problem& problem_;
  size_t count_;
  Vector *loss_, *A_gradients_, *C_gradients_;
};

}  // namespace innerloop::INNERLOOP_TARGET
