// Layers of attention that move all tokens, forward and backward: softmax, mixed or linear, with or without LayerNorm,
// a causal mask, MLPs and a clip.
#pragma once

#include "attention.h"
#include "block_mlp.h"

namespace innerloop::INNERLOOP_TARGET {

// All layers but the last, and the tokens of every layer. The first `moved_layers` have room for the tokens that they
// move; the one above them, if it is not the last, only for its attention. The last layer's tokens are normalised here,
// too, and its gradient by them starts the way back.
template <int SIZE>  // of a token; 0 if only known when running
class AttentionLayers {
 public:
  // On the way back: the gradient by the tokens after a layer, which becomes the one by the tokens before it; by the
  // tokens as the layer reads them; and by a head's attention, which becomes the one by its scores.
  Vector *tokens_gradient, *read_gradient, *scores_gradient;

  AttentionLayers(const Problem& problem, const Layers& layers, int moved_layers, Arena& arena)
      : problem_(problem),
        layers_(layers),
        size_(problem.token_size),
        heads_(problem.num_heads),
        tokens_count_(problem.num_tokens),
        keys_(problem.num_keys),
        tokens_size_(tokens_count_ * size_),
        row_size_(tokens_count_ * keys_),
        clips_(problem.token_clip, tokens_size_, moved_layers, arena),
        mlps_(problem, layers, moved_layers, arena) {
    const size_t formed_layers = problem.num_layers - 1;
    bool has_mixed = false;
    for (size_t layer = 0; layer < formed_layers; ++layer) has_mixed |= problem.attention[layer] == Attention::mixed;

    tokens_ = arena.take(tokens_size_ * (moved_layers + 1));
    const size_t norms = problem.norm_scale ? moved_layers + 1 : 0;
    read_ = arena.take(tokens_size_ * norms);
    normalised_ = arena.take(tokens_size_ * norms);
    inverses_ = arena.take(tokens_count_ * norms);
    queries_ = arena.take(tokens_size_ * formed_layers * heads_);
    attention_ = arena.take(row_size_ * formed_layers * heads_);
    scores_ = arena.take(has_mixed ? row_size_ * formed_layers * heads_ : 0);
    softmax_ = arena.take(has_mixed ? row_size_ * formed_layers * heads_ : 0);
    values_ = arena.take(keys_ * size_ * moved_layers * heads_);

    scores_gradient = arena.take(formed_layers ? row_size_ : 0);
    queries_gradient_ = arena.take(formed_layers ? tokens_size_ : 0);
    values_gradient_ = arena.take(moved_layers ? keys_ * size_ : 0);
    read_gradient = arena.take(tokens_size_);
    tokens_gradient = arena.take(tokens_size_);
  }

  Vector* tokens(int layer) const { return tokens_ + tokens_size_ * layer; }
  Vector* attention(int layer, int head) const { return attention_ + row_size_ * (layer * heads_ + head); }
  Vector* query_of(Vector* tokens) const { return tokens + tokens_size_ - size_; }

  // The tokens as a layer reads them, once `read` has been called.
  Vector* read_tokens(int layer) const {
    return layers_.normalises(layer) ? read_ + tokens_size_ * layer : tokens(layer);
  }
  void read(int layer) const {
    if (layers_.normalises(layer))
      normalise(tokens(layer), tokens_count_, size_, layers_.norm_scale(layer), layers_.norm_offset(layer),
                normalised(layer), read_tokens(layer));
  }

  // Attention of all tokens to all keys.
  void attend(int layer) const {
    read(layer);
    const Vector* E = read_tokens(layer);
    const AttentionOfScores kind(problem_, layers_, layer);
    for (int head = 0; head < heads_; ++head) {
      multiply(matrix(E, size_), matrix(layers_.A(layer, head), size_), tokens_count_, size_, size_,
               queries(layer, head), size_);
      multiply(matrix(queries(layer, head), size_), transposed(E, size_), tokens_count_, size_, keys_,
               row(layer, head, 0).scores, keys_);
      for (int token = 0; token < tokens_count_; ++token) {
        const AttentionRow row = this->row(layer, head, token);
        kind.apply(row, seen_keys(token));
        for (int key = seen_keys(token); key < keys_; ++key) row.attention[key] = Vector{};
      }
    }
  }

  // Moves all tokens by attention to values K C_h, and by the block's MLP.
  void move(int layer) const {
    const Vector* E = read_tokens(layer);
    Vector* moved = mlps_.attended(layer, tokens(layer + 1));
    for (size_t entry = 0; entry < tokens_size_; ++entry) moved[entry] = tokens(layer)[entry];
    for (int head = 0; head < heads_; ++head) {
      multiply(matrix(E, size_), matrix(layers_.C(layer, head), size_), keys_, size_, size_, values(layer, head),
               size_);
      multiply<Then::add>(matrix(attention(layer, head), keys_), matrix(values(layer, head), size_), tokens_count_,
                          keys_, size_, moved, size_);
    }
    clips_.apply(layer, moved);
    mlps_.move(layer, tokens(layer + 1));
  }

  // Gradients by a layer's tokens are needed for the layers below and for LayerNorm.
  bool needs_tokens(int layer) const { return layer > 0 || layers_.normalises(layer); }

  // From the gradient by the tokens that a layer moved: the weights' gradients, and the gradient by the tokens before
  // it.
  //
  //     dV_h = a_h^T dE',   dC_h = K^T dV_h,   dK = dV_h C_h^T,   da_h = dE' V_h^T.
  void differentiate(int layer) const {
    mlps_.differentiate(layer, tokens_gradient);
    clips_.differentiate(layer, tokens_gradient);
    const auto gradient = matrix(tokens_gradient, size_);
    if (needs_tokens(layer)) clear(read_gradient, tokens_size_);
    for (int head = 0; head < heads_; ++head) {
      multiply(transposed(attention(layer, head), keys_), gradient, keys_, tokens_count_, size_, values_gradient_,
               size_);
      multiply<Then::add>(transposed(read_tokens(layer), size_), matrix(values_gradient_, size_), size_, keys_, size_,
                          layers_.C_gradient(layer, head), size_);
      if (needs_tokens(layer))
        multiply<Then::add>(matrix(values_gradient_, size_), transposed(layers_.C(layer, head), size_), keys_, size_,
                            size_, read_gradient, size_);
      multiply(gradient, transposed(values(layer, head), size_), tokens_count_, size_, keys_, scores_gradient, keys_);
      differentiate_scores(layer, head);
    }
    if (needs_tokens(layer)) add_read_gradient(layer);
  }

  // From the gradient by a head's attention, in scores_gradient: those of A_h, and of the tokens through the scores.
  //
  //     dQ = ds K,   dA = E^T dQ,   dE = dQ A^T,   dK = ds^T Q.
  void differentiate_scores(int layer, int head) const {
    const AttentionOfScores kind(problem_, layers_, layer);
    for (int token = 0; token < tokens_count_; ++token) {
      Vector* gradient = scores_gradient + size_t(token) * keys_;
      const Vector of_share = kind.differentiate(row(layer, head, token), seen_keys(token), gradient);
      if (kind.is_mixed()) layers_.share_gradient(layer) += of_share;
      for (int key = seen_keys(token); key < keys_; ++key) gradient[key] = Vector{};
    }
    const Vector* E = read_tokens(layer);
    multiply(matrix(scores_gradient, keys_), matrix(E, size_), tokens_count_, keys_, size_, queries_gradient_, size_);
    multiply<Then::add>(transposed(E, size_), matrix(queries_gradient_, size_), size_, tokens_count_, size_,
                        layers_.A_gradient(layer, head), size_);
    if (!needs_tokens(layer)) return;
    multiply<Then::add>(matrix(queries_gradient_, size_), transposed(layers_.A(layer, head), size_), tokens_count_,
                        size_, size_, read_gradient, size_);
    multiply<Then::add>(transposed(scores_gradient, keys_), matrix(queries(layer, head), size_), keys_, tokens_count_,
                        size_, read_gradient, size_);
  }

  // Adds the gradient by the tokens as a layer read them to the gradient by the tokens themselves.
  void add_read_gradient(int layer) const {
    if (layers_.normalises(layer))
      differentiate_norm(read_gradient, tokens_count_, size_, layers_.norm_scale(layer), normalised(layer),
                         layers_.norm_scale_gradient(layer), layers_.norm_offset_gradient(layer),
                         layer > 0 ? tokens_gradient : nullptr);
    else
      for (size_t entry = 0; entry < tokens_size_; ++entry) tokens_gradient[entry] += read_gradient[entry];
  }

 private:
  Vector* queries(int layer, int head) const { return queries_ + tokens_size_ * (layer * heads_ + head); }
  Vector* values(int layer, int head) const { return values_ + size_t(keys_) * size_ * (layer * heads_ + head); }
  Normalised normalised(int layer) const {
    return {normalised_ + tokens_size_ * layer, inverses_ + tokens_count_ * layer};
  }
  AttentionRow row(int layer, int head, int token) const {
    const size_t place = size_t(token) * keys_;
    Vector* row = attention(layer, head) + place;
    if (problem_.attention[layer] != Attention::mixed) return {row, row, row};
    const size_t of_head = row_size_ * (layer * heads_ + head) + place;
    return {scores_ + of_head, softmax_ + of_head, row};
  }
  int seen_keys(int token) const { return problem_.is_causal && token < keys_ ? token + 1 : keys_; }

  const Problem& problem_;
  const Layers& layers_;
  Size<SIZE> size_;
  int heads_, tokens_count_, keys_;
  size_t tokens_size_, row_size_;
  // Kept from the way forward, per layer, and per head where there are heads.
  Clips clips_;  // of attention
  BlockMLPs<SIZE> mlps_;
  Vector* tokens_;
  Vector *read_, *normalised_, *inverses_;
  Vector *queries_, *attention_, *scores_, *softmax_, *values_;
  // On the way back.
  Vector *queries_gradient_, *values_gradient_;
};

}  // namespace innerloop::INNERLOOP_TARGET
