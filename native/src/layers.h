// The weights of every layer and head, and the sums that a block of tasks adds to.
#pragma once

#include "arena.h"
#include "matmul.h"
#include "problem.h"

namespace innerloop::INNERLOOP_TARGET {

// The weights, and the sums over tasks (one per lane) of the loss and of the gradients with respect to them.
class Layers {
 public:
  Layers(const Problem& problem, Arena& arena)
      : problem_(problem), where_(stack_sums(problem)), sums_(arena.take(where_.count)) {}

  void clear() {
    for (size_t entry = 0; entry < where_.count; ++entry) sums_[entry] = Vector{};
  }

  // Laid out as stack_sums() says.
  void write_sums(float* sums) const {
    for (size_t entry = 0; entry < where_.count; ++entry) sums[entry] = sum_of_lanes(sums_[entry]);
  }

  const float* A(int layer, int head) const { return problem_.A + offset(layer, head); }
  const float* C(int layer, int head) const { return problem_.C + offset(layer, head); }
  Vector* A_gradient(int layer, int head) const { return sums_ + where_.A + offset(layer, head); }
  Vector* C_gradient(int layer, int head) const { return sums_ + where_.C + offset(layer, head); }
  void add_loss(Vector loss) const { sums_[where_.loss] += loss; }

  // Softmax's share in mixed attention, for layers that have it.
  float share(int layer) const { return problem_.shares[distinct(layer)]; }
  Vector& share_gradient(int layer) const { return sums_[where_.shares + distinct(layer)]; }

  // LayerNorm's weights, for layers that have it.
  bool normalises(int layer) const { return layer >= problem_.first_norm; }
  const float* norm_scale(int layer) const { return problem_.norm_scale + norm_place(layer); }
  const float* norm_offset(int layer) const { return problem_.norm_offset + norm_place(layer); }
  Vector* norm_scale_gradient(int layer) const { return sums_ + where_.norm_scale + norm_place(layer); }
  Vector* norm_offset_gradient(int layer) const { return sums_ + where_.norm_offset + norm_place(layer); }

  // The block MLPs' weights, and those of LayerNorm before them, for stacks that have them.
  bool has_mlps() const { return problem_.hidden_size > 0; }
  bool normalises_mlps() const { return problem_.mlp_norm_scale; }
  const float* into_hidden(int layer) const { return problem_.into_hidden + into_hidden_place(layer); }
  const float* out_of_hidden(int layer) const { return problem_.out_of_hidden + out_of_hidden_place(layer); }
  Vector* into_hidden_gradient(int layer) const { return sums_ + where_.into_hidden + into_hidden_place(layer); }
  Vector* out_of_hidden_gradient(int layer) const { return sums_ + where_.out_of_hidden + out_of_hidden_place(layer); }
  const float* mlp_norm_scale(int layer) const { return problem_.mlp_norm_scale + norm_place(layer); }
  const float* mlp_norm_offset(int layer) const { return problem_.mlp_norm_offset + norm_place(layer); }
  Vector* mlp_norm_scale_gradient(int layer) const { return sums_ + where_.mlp_norm_scale + norm_place(layer); }
  Vector* mlp_norm_offset_gradient(int layer) const { return sums_ + where_.mlp_norm_offset + norm_place(layer); }

 private:
  int distinct(int layer) const { return problem_.num_distinct_layers == 1 ? 0 : layer; }
  size_t into_hidden_place(int layer) const {
    return size_t(distinct(layer)) * (problem_.token_size + 1) * problem_.hidden_size;
  }
  size_t out_of_hidden_place(int layer) const {
    return size_t(distinct(layer)) * (problem_.hidden_size + 1) * problem_.token_size;
  }
  size_t norm_place(int layer) const { return size_t(distinct(layer)) * problem_.token_size; }
  size_t offset(int layer, int head) const {
    const size_t square = size_t(problem_.token_size) * problem_.token_size;
    return (size_t(distinct(layer)) * problem_.num_heads + head) * square;
  }

  const Problem& problem_;
  StackSums where_;
  Vector* sums_;
};

}  // namespace innerloop::INNERLOOP_TARGET
