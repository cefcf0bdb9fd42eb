// Stacks of two or more layers without a clip. A layer is then the same linear map for every token, e <- e M with
// M = I + sum_h A_h S C_h, so only S and the query need to be followed: S' = M^T S M. The cost of a layer does not
// depend on the length of the context.
#pragma once

#include "last_layer.h"
#include "tokens.h"

namespace innerloop::INNERLOOP_TARGET {

// The first K - 2 layers form M and S'. The last two need neither: all that is asked of them are products with 1 + 2
// vectors per head, and M u = u + sum_h A_h S C_h u takes only matrix-vector products (`through_M`). Their gradients
// have low rank: with pairs (a_r, b_r)
//
//     (x, dx'), (S M q_h, w_h), (S M w_h, q_h),    dM = sum_r a_r b_r^T,
//
// q_h, w_h of the last layer (see LastLayer), dx' the gradient by the query between the two layers.
template <int SIZE>  // of a token; 0 if only known when running
class GramForm {
 public:
  GramForm(const Problem& problem, const Layers& layers, Arena& arena)
      : problem_(problem),
        layers_(layers),
        last_layer_(problem, layers, arena),
        reader_(problem, arena),
        size_(problem.token_size),
        heads_(problem.num_heads),
        pairs_(1 + 2 * problem.num_heads),
        square_(size_ * size_) {
    const size_t full_layers = problem.num_layers - 2;  // all but the last two
    piece_ = arena.take(PIECE * size_);
    x_ = arena.take(size_ * (full_layers + 1));
    S_ = arena.take(square_ * (full_layers + 1));
    SC_ = arena.take(square_ * full_layers * heads_);
    M_ = arena.take(square_ * full_layers);
    SM_ = arena.take(square_ * full_layers);
    a_ = take_moved(arena);
    b_ = take_moved(arena);
    reads_ = arena.take(heads_ * size_);
    dM_ = arena.take(square_);
    product_ = arena.take(square_);
    half_dS_ = arena.take(square_);
    dS_ = arena.take(square_);
    dx_ = arena.take(size_);
    next_dx_ = arena.take(size_);
  }

  void run(int block) {
    reader_.begin(block);
    read_tokens();
    const int last_two = problem_.num_layers - 2;
    for (int layer = 0; layer < last_two; ++layer) advance(layer);
    finish(last_two);
    for (int layer = last_two - 1; layer >= 0; --layer) differentiate(layer);
  }

 private:
  static constexpr int PIECE = 16;  // tokens held at a time

  // Vectors u that pass through M or M^T, with what is computed on the way; [pairs, size] or [heads, pairs, size].
  struct Moved {
    Vector *vectors, *moved;
    Vector *inner, *read;  // C_h u and S C_h u for M; A_h^T u and S A_h^T u for M^T
  };

  Vector* x(int layer) const { return x_ + size_ * layer; }
  Vector* S(int layer) const { return S_ + square_ * layer; }
  Vector* SC(int layer, int head) const { return SC_ + square_ * (layer * heads_ + head); }
  Vector* M(int layer) const { return M_ + square_ * layer; }
  Vector* SM(int layer) const { return SM_ + square_ * layer; }

  // S of the keys, piece by piece, and the query.
  void read_tokens() {
    for (int first = 0; first < problem_.num_tokens; first += PIECE) {
      const int last = smaller(first + PIECE, problem_.num_tokens), keys = smaller(last, problem_.num_keys) - first;
      reader_.read(first, last, piece_);
      const auto left = transposed(piece_, size_);
      if (first == 0)
        multiply_upper<Then::store>(left, matrix(piece_, size_), size_, keys, S(0));
      else
        multiply_upper<Then::add>(left, matrix(piece_, size_), size_, keys, S(0));
      if (last == problem_.num_tokens)
        for (int i = 0; i < size_; ++i) x(0)[i] = piece_[(last - 1 - first) * size_ + i];
    }
    mirror(S(0), size_);
  }

  void advance(int layer) {
    for (int i = 0; i < size_; ++i)
      for (int k = 0; k < size_; ++k) M(layer)[i * size_ + k] = broadcast(i == k ? 1.0f : 0.0f);
    for (int head = 0; head < heads_; ++head) {
      multiply(matrix(S(layer), size_), matrix(layers_.C(layer, head), size_), size_, SC(layer, head));
      multiply<Then::add>(matrix(layers_.A(layer, head), size_), matrix(SC(layer, head), size_), size_, M(layer));
    }
    apply(transposed(M(layer), size_), x(layer), size_, size_, x(layer + 1));
    multiply(matrix(S(layer), size_), matrix(M(layer), size_), size_, SM(layer));
    multiply_upper<Then::store>(transposed(M(layer), size_), matrix(SM(layer), size_), size_, size_, S(layer + 1));
    mirror(S(layer + 1), size_);
  }

  Moved take_moved(Arena& arena) const {
    const size_t vectors = pairs_ * size_;
    return {arena.take(vectors), arena.take(vectors), arena.take(vectors * heads_), arena.take(vectors * heads_)};
  }

  // moved = u + sum_h outer_h S inner_h u for one vector u of a side; returns it.
  template <class Inner, class Outer>
  const Vector* move(int layer, const Moved& side, int pair, Inner inner_of, Outer outer_of) const {
    const Vector* u = side.vectors + pair * size_;
    Vector* moved = side.moved + pair * size_;
    copy(u, moved);
    for (int head = 0; head < heads_; ++head) {
      Vector* inner = side.inner + (head * pairs_ + pair) * size_;
      Vector* read = side.read + (head * pairs_ + pair) * size_;
      apply(inner_of(head), u, size_, size_, inner);
      apply(matrix(S(layer), size_), inner, size_, size_, read);
      apply<Then::add>(outer_of(head), read, size_, size_, moved);
    }
    return moved;
  }

  // M u for a vector of side b.
  const Vector* through_M(int layer, int pair) const {
    return move(
        layer, b_, pair, [&](int head) { return matrix(layers_.C(layer, head), size_); },
        [&](int head) { return matrix(layers_.A(layer, head), size_); });
  }

  // M^T u for a vector of side a.
  const Vector* through_M_transposed(int layer, int pair) const {
    return move(
        layer, a_, pair, [&](int head) { return transposed(layers_.A(layer, head), size_); },
        [&](int head) { return transposed(layers_.C(layer, head), size_); });
  }

  // S M u goes to the other side of the pair; returns S' u = M^T S M u.
  const Vector* read_next(int layer, int b_pair, int a_pair) const {
    const Vector* moved = through_M(layer, b_pair);
    apply(matrix(S(layer), size_), moved, size_, size_, a_.vectors + a_pair * size_);
    return through_M_transposed(layer, a_pair);
  }

  // The last two layers, forward and backward.
  void finish(int layer) {
    for (int i = 0; i < size_; ++i) a_.vectors[i] = x(layer)[i];
    const Vector* next_x = through_M_transposed(layer, 0);
    for (int head = 0; head < heads_; ++head) {
      const int q_pair = 1 + heads_ + head, w_pair = 1 + head;
      last_layer_.query(head, next_x, b_.vectors + q_pair * size_);
      copy(read_next(layer, q_pair, w_pair), reads_ + head * size_);
    }
    last_layer_.find_errors(next_x, reads_, reader_.answers(), reader_.is_task());
    for (int head = 0; head < heads_; ++head) {
      const int q_pair = 1 + heads_ + head, w_pair = 1 + head;
      last_layer_.weigh(head, b_.vectors + w_pair * size_);
      copy(read_next(layer, w_pair, q_pair), reads_ + head * size_);
    }
    last_layer_.differentiate(next_x, reads_, b_.vectors);
    copy(through_M(layer, 0), dx_);

    for (int head = 0; head < heads_; ++head) {
      const Vector *a_read = a_.read + head * pairs_ * size_, *b_read = b_.read + head * pairs_ * size_;
      multiply<Then::add>(transposed(a_.vectors, size_), matrix(b_read, size_), size_, pairs_, size_,
                          layers_.A_gradient(layer, head), size_);
      multiply<Then::add>(transposed(a_read, size_), matrix(b_.vectors, size_), size_, pairs_, size_,
                          layers_.C_gradient(layer, head), size_);
    }
    if (layer == 0) return;
    // dS + dS^T, of which M dS' M^T is sum_h (M q_h) (M w_h)^T and the rest A_h^T dM C_h^T.
    multiply(transposed(b_.moved + (1 + heads_) * size_, size_), matrix(b_.moved + size_, size_), size_, heads_, size_,
             half_dS_, size_);
    for (int head = 0; head < heads_; ++head)
      multiply<Then::add>(transposed(a_.inner + head * pairs_ * size_, size_),
                          matrix(b_.inner + head * pairs_ * size_, size_), size_, pairs_, size_, half_dS_, size_);
    symmetrised(half_dS_, size_, dS_);
  }

  // From dS' + dS'^T and dx' after a layer: the weights' gradients, and dS + dS^T and dx before it.
  //
  //     dM = x dx'^T + S M (dS' + dS'^T),   dA_h = dM (S C_h)^T,   dC_h = S A_h^T dM,
  //     dS = M dS' M^T + sum_h A_h^T dM C_h^T,   dx = M dx'.
  void differentiate(int layer) {
    multiply(matrix(SM(layer), size_), matrix(dS_, size_), size_, dM_);
    multiply<Then::add>(matrix(x(layer), Size<1>()), matrix(dx_, size_), size_, Size<1>(), size_, dM_, size_);
    for (int head = 0; head < heads_; ++head) {
      multiply<Then::add>(matrix(dM_, size_), transposed(SC(layer, head), size_), size_,
                          layers_.A_gradient(layer, head));
      multiply(transposed(layers_.A(layer, head), size_), matrix(dM_, size_), size_, product_);
      multiply<Then::add>(matrix(S(layer), size_), matrix(product_, size_), size_, layers_.C_gradient(layer, head));
      if (layer == 0) continue;
      const auto C_transposed = transposed(layers_.C(layer, head), size_);
      if (head == 0)
        multiply(matrix(product_, size_), C_transposed, size_, half_dS_);
      else
        multiply<Then::add>(matrix(product_, size_), C_transposed, size_, half_dS_);
    }
    if (layer == 0) return;
    multiply(matrix(dS_, size_), transposed(M(layer), size_), size_, product_);
    symmetrised(half_dS_, size_, dS_);
    multiply_upper<Then::add>(matrix(M(layer), size_), matrix(product_, size_), size_, size_, dS_);
    mirror(dS_, size_);
    apply(matrix(M(layer), size_), dx_, size_, size_, next_dx_);
    copy(next_dx_, dx_);
  }

  static int smaller(int a, int b) { return a < b ? a : b; }

  void copy(const Vector* from, Vector* to) const {
    for (int i = 0; i < size_; ++i) to[i] = from[i];
  }

  const Problem& problem_;
  const Layers& layers_;
  LastLayer<SIZE> last_layer_;
  TokenReader<SIZE> reader_;
  Size<SIZE> size_;
  int heads_, pairs_;
  size_t square_;
  Vector* piece_;
  // Kept from the way forward, per layer.
  Vector *x_, *S_, *SC_, *M_, *SM_;
  // Of the last two layers: a_ passes through M^T, b_ through M.
  Moved a_, b_;
  Vector* reads_;
  // On the way back; dS_ is always dS + dS^T.
  Vector *dM_, *product_, *half_dS_, *dS_, *dx_, *next_dx_;
};

}  // namespace innerloop::INNERLOOP_TARGET
