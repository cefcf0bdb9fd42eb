// From what the last layer's attention makes of the query to the loss, and back: the clip, the block's MLP if there is
// one, and what the prediction costs.
#pragma once

#include "block_mlp.h"
#include "prediction_loss.h"

namespace innerloop::INNERLOOP_TARGET {

template <int SIZE>  // of a token; 0 if only known when running
class QueryLoss {
 public:
  // The loss reads the last `count` entries of the attended query, from `first` on: its targets, or all for an MLP.
  int first, count;

  QueryLoss(const Problem& problem, const Layers& layers, Arena& arena)
      : first(layers.has_mlps() ? 0 : problem.token_size - problem.output_size),
        count(problem.token_size - first),
        problem_(problem),
        layers_(layers),
        last_(problem.num_layers - 1),
        targets_(problem.token_size - problem.output_size),
        mlp_(problem, layers, last_, 1, 1, targets_, arena),
        clip_(problem.token_clip, count, 1, arena),
        slopes_(arena.take(problem.output_size)),
        moved_(arena.take(count)) {}

  // Adds the loss of the entries, which become the loss's derivatives by them. Lanes without a task have neither,
  // whatever offsets and biases make of their tokens.
  void differentiate(const Vector* answers, Mask is_task, Vector* entries) const {
    if (!layers_.has_mlps()) return differentiate_targets(answers, is_task, entries);
    clip_.apply(0, entries);
    clear(moved_, targets_);
    mlp_.move(last_, entries, moved_);
    differentiate_targets(answers, is_task, moved_ + targets_);
    mlp_.differentiate(last_, entries, moved_);
    clip_.differentiate(0, moved_);
    for (int i = 0; i < count; ++i) entries[i] = moved_[i];
  }

 private:
  void differentiate_targets(const Vector* answers, Mask is_task, Vector* targets) const {
    const Vector loss = differentiate_loss(problem_, answers, targets, slopes_);
    layers_.add_loss(is_task ? loss : Vector{});
    for (int output = 0; output < problem_.output_size; ++output)
      targets[output] = is_task ? targets[output] : Vector{};
  }

  const Problem& problem_;
  const Layers& layers_;
  int last_, targets_;
  BlockMLP<SIZE> mlp_;
  Clips clip_;      // between attention and MLP
  Vector* slopes_;  // of the clip of the targets
  Vector* moved_;   // the query after the MLP, then the gradient by the attended query
};

}  // namespace innerloop::INNERLOOP_TARGET
