// The last layer. The loss reads the query alone, so it takes matrix-vector products only.
#pragma once

#include "layers.h"
#include "query_loss.h"

namespace innerloop::INNERLOOP_TARGET {

// What the head of the last layer reads and returns, given S u for any vector u.
//
//     q_h = A_h^T x,   r_h = S q_h,   out = x + sum_h C_h^T r_h,   error = the loss's derivative by out,
//     w_h = C_h error,   v_h = S w_h,
//     dA_h = x v_h^T,   dC_h = r_h error^T,   dx = sum_h A_h v_h + error,
//     dS = sum_h q_h w_h^T (to be symmetrised),
//
// where of `out` only those entries are formed that the loss reads (see QueryLoss).
template <int SIZE>
class LastLayer {
 public:
  LastLayer(const Problem& problem, const Layers& layers, Arena& arena)
      : problem_(problem),
        layers_(layers),
        layer_(problem.num_layers - 1),
        size_(problem.token_size),
        loss_(problem, layers, arena),
        errors_(arena.take(loss_.count)) {}

  // q = A_h^T x.
  void query(int head, const Vector* x, Vector* q) const {
    apply(transposed(layers_.A(layer_, head), size_), x, size_, size_, q);
  }

  // From r_h = S q_h of all heads ([num_heads, size]): the loss and its derivative by the entries that it reads.
  void find_errors(const Vector* x, const Vector* reads, const Vector* answers, Mask is_task) {
    const int count = loss_.count, first = loss_.first;
    for (int entry = 0; entry < count; ++entry) errors_[entry] = x[first + entry];
    for (int head = 0; head < problem_.num_heads; ++head)
      apply<Then::add>(transposed(layers_.C(layer_, head), size_).shifted(first, 0), reads + head * size_, count, size_,
                       errors_);
    loss_.differentiate(answers, is_task, errors_);
    for (int head = 0; head < problem_.num_heads; ++head) {
      Vector* gradient = layers_.C_gradient(layer_, head);
      for (int i = 0; i < size_; ++i)
        for (int entry = 0; entry < count; ++entry)
          gradient[i * size_ + first + entry] += reads[head * size_ + i] * errors_[entry];
    }
  }

  // w = C_h error.
  void weigh(int head, Vector* w) const {
    apply(matrix(layers_.C(layer_, head), size_).shifted(0, loss_.first), errors_, size_, loss_.count, w);
  }

  // From v_h = S w_h of all heads: the gradient of A and of the query token.
  void differentiate(const Vector* x, const Vector* v, Vector* x_gradient) const {
    for (int head = 0; head < problem_.num_heads; ++head)
      multiply<Then::add>(matrix(x, Size<1>()), matrix(v + head * size_, size_), size_, Size<1>(), size_,
                          layers_.A_gradient(layer_, head), size_);
    if (!x_gradient) return;
    for (int i = 0; i < size_; ++i) x_gradient[i] = i < loss_.first ? Vector{} : errors_[i - loss_.first];
    for (int head = 0; head < problem_.num_heads; ++head)
      apply<Then::add>(matrix(layers_.A(layer_, head), size_), v + head * size_, size_, size_, x_gradient);
  }

 private:
  const Problem& problem_;
  const Layers& layers_;
  int layer_;
  Size<SIZE> size_;
  QueryLoss<SIZE> loss_;
  Vector* errors_;
};

}  // namespace innerloop::INNERLOOP_TARGET
