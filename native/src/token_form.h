// Stacks of linear attention whose tokens are moved one by one: those with a clip or MLPs, and single layers.
//
// Every layer but the last forms M = I + sum_h A_h S C_h and moves all tokens: E' = clip(E M), then by its MLP. The
// last one reads the tokens twice and never forms S.
#pragma once

#include "last_layer.h"
#include "tokens.h"

namespace innerloop::INNERLOOP_TARGET {

template <int SIZE>  // of a token; 0 if only known when running
class TokenForm {
 public:
  TokenForm(const Problem& problem, const Layers& layers, Arena& arena)
      : problem_(problem),
        layers_(layers),
        last_layer_(problem, layers, arena),
        reader_(problem, arena),
        mlps_(problem, layers, problem.num_layers - 1, arena),
        size_(problem.token_size),
        heads_(problem.num_heads),
        tokens_count_(problem.num_tokens),
        keys_(problem.num_keys),
        square_(size_ * size_),
        tokens_size_(tokens_count_ * size_),
        clips_(problem.token_clip, tokens_size_, problem.num_layers - 1, arena) {
    const size_t full_layers = problem.num_layers - 1;  // all but the last
    tokens_ = arena.take(tokens_size_ * (full_layers + 1));
    S_ = arena.take(square_ * full_layers);
    SC_ = arena.take(square_ * full_layers * heads_);
    M_ = arena.take(square_ * full_layers);
    const size_t thin_size = (2 * heads_ + 1) * size_;
    reads_ = arena.take(heads_ * size_);
    left_ = arena.take(thin_size);
    right_ = arena.take(thin_size);
    thin_ = arena.take(thin_size);
    left_A_ = arena.take(thin_size);
    scores_ = arena.take(2 * heads_ * keys_);
    dM_ = arena.take(square_);
    product_ = arena.take(square_);
    dS_ = arena.take(square_);
    gradient_ = arena.take(tokens_size_);
    next_gradient_ = arena.take(tokens_size_);
  }

  void run(int block) {
    reader_.begin(block);
    reader_.read(0, tokens_count_, tokens_);
    for (int layer = 0; layer < problem_.num_layers - 1; ++layer) move(layer);
    finish();
    int layer = problem_.num_layers - 2;
    if (layer < 0) return;
    if (!clips_.is_reached(layer) && !layers_.has_mlps() && 2 * heads_ + 1 < size_)
      differentiate_low_rank(layer--);
    else
      expand(right_);
    for (; layer >= 0; --layer) differentiate(layer);
  }

 private:
  Vector* tokens(int layer) const { return tokens_ + tokens_size_ * layer; }
  Vector* S(int layer) const { return S_ + square_ * layer; }
  Vector* SC(int layer, int head) const { return SC_ + square_ * (layer * heads_ + head); }
  Vector* M(int layer) const { return M_ + square_ * layer; }

  void move(int layer) {
    const Vector* E = tokens(layer);
    multiply_upper<Then::store>(transposed(E, size_), matrix(E, size_), size_, keys_, S(layer));
    mirror(S(layer), size_);
    set_identity(M(layer));
    for (int head = 0; head < heads_; ++head) {
      multiply(matrix(S(layer), size_), matrix(layers_.C(layer, head), size_), size_, SC(layer, head));
      multiply<Then::add>(matrix(layers_.A(layer, head), size_), matrix(SC(layer, head), size_), size_, M(layer));
    }
    Vector *moved = tokens(layer + 1), *attended = mlps_.attended(layer, moved);
    multiply(matrix(E, size_), matrix(M(layer), size_), tokens_count_, size_, size_, attended, size_);
    clips_.apply(layer, attended);
    mlps_.move(layer, moved);
  }

  // The last layer, forward and backward, with S u = E^T (E u) over the keys.
  //
  // The gradient by the tokens before it has rank 2 num_heads + 1: in row form it is scores^T right_ over the keys,
  // plus the query's own row, the last of right_.
  void finish() {
    const Vector *E = tokens(problem_.num_layers - 1), *x = E + tokens_size_ - size_;
    Vector *w = right_, *q = right_ + heads_ * size_, *x_gradient = right_ + 2 * heads_ * size_;
    for (int head = 0; head < heads_; ++head) {
      last_layer_.query(head, x, q + head * size_);
      read(E, q + head * size_, scores_ + head * keys_, reads_ + head * size_);
    }
    last_layer_.find_errors(x, reads_, reader_.answers(), reader_.is_task());
    for (int head = 0; head < heads_; ++head) {
      last_layer_.weigh(head, w + head * size_);
      read(E, w + head * size_, scores_ + (heads_ + head) * keys_, reads_ + head * size_);
    }
    last_layer_.differentiate(x, reads_, problem_.num_layers == 1 ? nullptr : x_gradient);
  }

  void read(const Vector* E, const Vector* u, Vector* scores, Vector* out) const {
    apply(matrix(E, size_), u, keys_, size_, scores);
    apply(transposed(E, size_), scores, size_, keys_, out);
  }

  // From the gradient by the tokens after a layer: the weights' gradients, and the gradient by the tokens before it.
  //
  //     dM = E^T dE',   dA_h = dM (S C_h)^T,   dC_h = S A_h^T dM,   dS = sum_h A_h^T dM C_h^T,
  //     dE = dE' M^T + E (dS + dS^T) over the keys.
  void differentiate(int layer) {
    mlps_.differentiate(layer, gradient_);
    clips_.differentiate(layer, gradient_);
    multiply(transposed(tokens(layer), size_), matrix(gradient_, size_), size_, tokens_count_, size_, dM_, size_);
    for (int head = 0; head < heads_; ++head) {
      multiply<Then::add>(matrix(dM_, size_), transposed(SC(layer, head), size_), size_,
                          layers_.A_gradient(layer, head));
      multiply(transposed(layers_.A(layer, head), size_), matrix(dM_, size_), size_, product_);
      multiply<Then::add>(matrix(S(layer), size_), matrix(product_, size_), size_, layers_.C_gradient(layer, head));
      if (layer == 0) continue;
      const auto C_transposed = transposed(layers_.C(layer, head), size_);
      if (head == 0)
        multiply(matrix(product_, size_), C_transposed, size_, dS_);
      else
        multiply<Then::add>(matrix(product_, size_), C_transposed, size_, dS_);
    }
    if (layer == 0) return;
    multiply(matrix(gradient_, size_), transposed(M(layer), size_), tokens_count_, size_, size_, next_gradient_, size_);
    Vector* swap = gradient_;
    gradient_ = next_gradient_;
    next_gradient_ = swap;
    add_gradient_of_keys(layer);
  }

  // The same for the layer before the last one, where no token was clipped: there dM = left_^T right_ has low rank, and
  // no product of full matrices is left but E (dS + dS^T).
  void differentiate_low_rank(int layer) {
    const Size<0> rank(2 * heads_ + 1);
    const auto left = matrix(left_, size_), right = matrix(right_, size_);
    const Vector *E = tokens(layer), *query = E + tokens_size_ - size_;
    multiply(matrix(scores_, keys_), matrix(E, size_), Size<0>(2 * heads_), keys_, size_, left_, size_);
    for (int i = 0; i < size_; ++i) left_[2 * heads_ * size_ + i] = query[i];
    for (int head = 0; head < heads_; ++head) {
      multiply(right, transposed(SC(layer, head), size_), rank, size_, size_, thin_, size_);
      multiply<Then::add>(transposed(left_, size_), matrix(thin_, size_), size_, rank, size_,
                          layers_.A_gradient(layer, head), size_);
      multiply(left, matrix(layers_.A(layer, head), size_), rank, size_, size_, left_A_, size_);
      multiply(matrix(left_A_, size_), matrix(S(layer), size_), rank, size_, size_, thin_, size_);
      multiply<Then::add>(transposed(thin_, size_), right, size_, rank, size_, layers_.C_gradient(layer, head), size_);
      if (layer == 0) continue;
      multiply(right, transposed(layers_.C(layer, head), size_), rank, size_, size_, thin_, size_);
      if (head == 0)
        multiply(transposed(left_A_, size_), matrix(thin_, size_), size_, rank, size_, dS_, size_);
      else
        multiply<Then::add>(transposed(left_A_, size_), matrix(thin_, size_), size_, rank, size_, dS_, size_);
    }
    if (layer == 0) return;
    multiply(right, transposed(M(layer), size_), rank, size_, size_, thin_, size_);
    expand(thin_);
    add_gradient_of_keys(layer);
  }

  // The gradient by all tokens, from its low-rank form with these rows in place of right_.
  void expand(const Vector* rows) {
    const Vector* query_row = rows + 2 * heads_ * size_;
    Vector* query = gradient_ + tokens_size_ - size_;
    for (int i = 0; i < size_; ++i) query[i] = Vector{};
    multiply(transposed(scores_, keys_), matrix(rows, size_), keys_, 2 * heads_, size_, gradient_, size_);
    for (int i = 0; i < size_; ++i) query[i] += query_row[i];
  }

  // E (dS + dS^T), which the keys add to their gradient.
  void add_gradient_of_keys(int layer) {
    symmetrised(dS_, size_, product_);
    multiply<Then::add>(matrix(tokens(layer), size_), matrix(product_, size_), keys_, size_, size_, gradient_, size_);
  }

  void set_identity(Vector* matrix) const {
    for (int i = 0; i < size_; ++i)
      for (int k = 0; k < size_; ++k) matrix[i * size_ + k] = broadcast(i == k ? 1.0f : 0.0f);
  }

  const Problem& problem_;
  const Layers& layers_;
  LastLayer<SIZE> last_layer_;
  TokenReader<SIZE> reader_;
  BlockMLPs<SIZE> mlps_;
  Size<SIZE> size_;
  int heads_, tokens_count_, keys_;
  size_t square_, tokens_size_;
  // Kept from the way forward, per layer.
  Clips clips_;  // of attention
  Vector *tokens_, *S_, *SC_, *M_;
  // Of the last layer, per head; its gradient in low-rank form, and room for products with its factors.
  Vector *reads_, *left_, *right_, *scores_, *thin_, *left_A_;
  // On the way back.
  Vector *dM_, *product_, *dS_, *gradient_, *next_gradient_;
};

}  // namespace innerloop::INNERLOOP_TARGET
