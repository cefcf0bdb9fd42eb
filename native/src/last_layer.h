// The last layer. The loss reads the query's target entries alone, so it takes matrix-vector products only.
#pragma once

#include "layers.h"
#include "prediction_loss.h"

namespace innerloop::INNERLOOP_TARGET {

// What the head of the last layer reads and returns, given S u for any vector u.
//
//     q_h = A_h^T x,   r_h = S q_h,   out = x_targets + sum_h C_h^T r_h,   error = out + answer,
//     w_h = C_h error,   v_h = S w_h,
//     dA_h = x v_h^T,   dC_h = r_h error^T (target columns),   dx = sum_h A_h v_h + error (target entries),
//     dS = sum_h q_h w_h^T (to be symmetrised).
template <int SIZE>
class LastLayer {
 public:
  LastLayer(const Problem& problem, const Layers& layers, Arena& arena)
      : problem_(problem),
        layers_(layers),
        layer_(problem.num_layers - 1),
        size_(problem.token_size),
        errors_(arena.take(problem.output_size)),
        slopes_(arena.take(problem.output_size)) {}

  // q = A_h^T x.
  void query(int head, const Vector* x, Vector* q) const {
    apply(transposed(layers_.A(layer_, head), size_), x, size_, size_, q);
  }

  // From r_h = S q_h of all heads ([num_heads, size]): the loss and its derivative by the target entries.
  void find_errors(const Vector* x, const Vector* reads, const Vector* answers) {
    const int outputs = problem_.output_size, targets = size_ - outputs;
    for (int output = 0; output < outputs; ++output) errors_[output] = x[targets + output];
    for (int head = 0; head < problem_.num_heads; ++head)
      apply<Then::add>(transposed(layers_.C(layer_, head), size_).shifted(targets, 0), reads + head * size_, outputs,
                       size_, errors_);
    layers_.add_loss(differentiate_loss(problem_, answers, errors_, slopes_));
    for (int head = 0; head < problem_.num_heads; ++head) {
      Vector* gradient = layers_.C_gradient(layer_, head);
      for (int i = 0; i < size_; ++i)
        for (int output = 0; output < outputs; ++output)
          gradient[i * size_ + targets + output] += reads[head * size_ + i] * errors_[output];
    }
  }

  // w = C_h error.
  void weigh(int head, Vector* w) const {
    const int outputs = problem_.output_size;
    apply(matrix(layers_.C(layer_, head), size_).shifted(0, size_ - outputs), errors_, size_, outputs, w);
  }

  // From v_h = S w_h of all heads: the gradient of A and of the query token.
  void differentiate(const Vector* x, const Vector* v, Vector* x_gradient) const {
    for (int head = 0; head < problem_.num_heads; ++head)
      multiply<Then::add>(matrix(x, Size<1>()), matrix(v + head * size_, size_), size_, Size<1>(), size_,
                          layers_.A_gradient(layer_, head), size_);
    if (!x_gradient) return;
    const int targets = size_ - problem_.output_size;
    for (int i = 0; i < size_; ++i) x_gradient[i] = i < targets ? Vector{} : errors_[i - targets];
    for (int head = 0; head < problem_.num_heads; ++head)
      apply<Then::add>(matrix(layers_.A(layer_, head), size_), v + head * size_, size_, size_, x_gradient);
  }

 private:
  const Problem& problem_;
  const Layers& layers_;
  int layer_;
  Size<SIZE> size_;
  Vector* errors_;
  Vector* slopes_;  // of the clip
};

}  // namespace innerloop::INNERLOOP_TARGET
