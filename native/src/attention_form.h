// Stacks with softmax or mixed attention, LayerNorm or a causal mask: any stack of attention, in fact, but the other
// forms are faster for what is linear.
//
// The last layer reads the keys only through their dot products with few vectors, its `readers`: q_h = A_h^T x for the
// scores, then the target columns C_ho for the values. So where it reads tokens as the layer before leaves them, that
// layer moves the query alone: of a moved key e + sum_h a_h K C_h, the dot product with u is e . u + a_h . (K C_h u).
// And the gradient by the keys is a sum of (gradient of a dot product) x (reader): of low rank.
#pragma once

#include "attention.h"
#include "clip.h"
#include "layer_norm.h"
#include "tokens.h"

namespace innerloop::INNERLOOP_TARGET {

template <int SIZE>  // of a token; 0 if only known when running
class AttentionForm {
 public:
  AttentionForm(const Problem& problem, const Layers& layers, Arena& arena)
      : problem_(problem),
        layers_(layers),
        reader_(problem, arena),
        size_(problem.token_size),
        heads_(problem.num_heads),
        outputs_(problem.output_size),
        targets_(problem.token_size - problem.output_size),
        tokens_count_(problem.num_tokens),
        keys_(problem.num_keys),
        last_(problem.num_layers - 1),
        readers_count_(problem.num_heads * (1 + problem.output_size)),
        rank_(readers_count_ + 1),
        tokens_size_(tokens_count_ * size_),
        row_size_(tokens_count_ * keys_) {
    reads_moved_keys_ = last_ > 0 && !layers.normalises(last_) && problem.token_clip == __builtin_inff();
    moved_layers_ = reads_moved_keys_ ? last_ - 1 : last_;
    const size_t whole_layers = reads_moved_keys_ ? last_ : moved_layers_;  // whose attention is formed
    for (int layer = 0; layer <= last_; ++layer) has_mixed_ |= problem.attention[layer] == Attention::mixed;

    tokens_ = arena.take(tokens_size_ * (moved_layers_ + 1));
    derivatives_ = arena.take(problem.token_clip < __builtin_inff() ? tokens_size_ * moved_layers_ : 0);
    is_clipped_ = arena.take<bool>(moved_layers_);
    const size_t norms = problem.norm_scale ? moved_layers_ + 1 : 0;
    read_ = arena.take(tokens_size_ * norms);
    normalised_ = arena.take(tokens_size_ * norms);
    inverses_ = arena.take(tokens_count_ * norms);
    queries_ = arena.take(tokens_size_ * whole_layers * heads_);
    attention_ = arena.take(row_size_ * whole_layers * heads_);
    scores_ = arena.take(has_mixed_ ? row_size_ * whole_layers * heads_ : 0);
    softmax_ = arena.take(has_mixed_ ? row_size_ * whole_layers * heads_ : 0);
    values_ = arena.take(keys_ * size_ * moved_layers_ * heads_);

    query_ = arena.take(size_);
    query_gradient_ = arena.take(size_);
    errors_ = arena.take(outputs_);
    readers_ = arena.take(rank_ * size_);
    readers_gradient_ = arena.take(readers_count_ * size_);
    dots_ = arena.take(readers_count_ * keys_);
    dots_gradient_ = arena.take(rank_ * tokens_count_);
    last_attention_ = arena.take(has_mixed_ ? heads_ * keys_ : 0);
    last_softmax_ = arena.take(has_mixed_ ? heads_ * keys_ : 0);
    const size_t heads_before = reads_moved_keys_ ? heads_ : 0;
    moved_readers_ = arena.take(heads_before * rank_ * size_);
    gathered_ = arena.take(heads_before * rank_ * size_);
    read_values_ = arena.take(heads_before * rank_ * keys_);
    attended_ = arena.take(heads_before * rank_ * keys_);

    scores_gradient_ = arena.take(whole_layers ? row_size_ : 0);
    queries_gradient_ = arena.take(whole_layers ? tokens_size_ : 0);
    values_gradient_ = arena.take(moved_layers_ ? keys_ * size_ : 0);
    read_gradient_ = arena.take(tokens_size_);
    gradient_ = arena.take(tokens_size_);
  }

  void run(int block) {
    reader_.begin(block);
    reader_.read(0, tokens_count_, tokens_);
    for (int layer = 0; layer < moved_layers_; ++layer) {
      attend(layer);
      move(layer);
    }
    if (reads_moved_keys_)
      finish_two();
    else
      finish();
    for (int layer = moved_layers_ - 1; layer >= 0; --layer) differentiate(layer);
  }

 private:
  Vector* tokens(int layer) const { return tokens_ + tokens_size_ * layer; }
  Vector* derivatives(int layer) const { return derivatives_ + tokens_size_ * layer; }
  Vector* queries(int layer, int head) const { return queries_ + tokens_size_ * (layer * heads_ + head); }
  Vector* attention(int layer, int head) const { return attention_ + row_size_ * (layer * heads_ + head); }
  Vector* values(int layer, int head) const { return values_ + size_t(keys_) * size_ * (layer * heads_ + head); }
  Vector* query_of(Vector* tokens) const { return tokens + tokens_size_ - size_; }

  // The tokens as a layer reads them, once `read` has been called.
  Vector* read_tokens(int layer) const {
    return layers_.normalises(layer) ? read_ + tokens_size_ * layer : tokens(layer);
  }
  Normalised normalised(int layer) const {
    return {normalised_ + tokens_size_ * layer, inverses_ + tokens_count_ * layer};
  }
  void read(int layer) const {
    if (layers_.normalises(layer))
      normalise(tokens(layer), tokens_count_, size_, layers_.norm_scale(layer), layers_.norm_offset(layer),
                normalised(layer), read_tokens(layer));
  }

  AttentionOfScores kind(int layer) const {
    const Attention kind = problem_.attention[layer];
    return {kind, problem_.logit_scale, kind == Attention::mixed ? layers_.share(layer) : 0.0f};
  }
  AttentionRow row(int layer, int head, int token) const {
    const size_t place = size_t(token) * keys_;
    Vector* row = attention(layer, head) + place;
    if (problem_.attention[layer] != Attention::mixed) return {row, row, row};
    const size_t of_head = row_size_ * (layer * heads_ + head) + place;
    return {scores_ + of_head, softmax_ + of_head, row};
  }
  int seen_keys(int token) const { return problem_.is_causal && token < keys_ ? token + 1 : keys_; }

  // Gradients by a layer's tokens are needed for the layers below and for LayerNorm.
  bool needs_tokens(int layer) const { return layer > 0 || layers_.normalises(layer); }

  // Attention of all tokens to all keys.
  void attend(int layer) const {
    read(layer);
    const Vector* E = read_tokens(layer);
    const AttentionOfScores kind = this->kind(layer);
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

  // Moves all tokens by attention to values K C_h.
  void move(int layer) const {
    const Vector* E = read_tokens(layer);
    Vector* moved = tokens(layer + 1);
    for (size_t entry = 0; entry < tokens_size_; ++entry) moved[entry] = tokens(layer)[entry];
    for (int head = 0; head < heads_; ++head) {
      multiply(matrix(E, size_), matrix(layers_.C(layer, head), size_), keys_, size_, size_, values(layer, head),
               size_);
      multiply<Then::add>(matrix(attention(layer, head), keys_), matrix(values(layer, head), size_), tokens_count_,
                          keys_, size_, moved, size_);
    }
    is_clipped_[layer] = problem_.token_clip < __builtin_inff() &&
                         clip_tokens(moved, tokens_size_, problem_.token_clip, derivatives(layer));
  }

  // The last layer, where it reads its keys as they are, or after LayerNorm.
  void finish() const {
    read(last_);
    Vector *E = read_tokens(last_), *x = query_of(tokens(last_)), *read_query = query_of(E);
    find_readers(read_query);
    multiply(matrix(readers_, size_), transposed(E, size_), readers_count_, size_, keys_, dots_, keys_);
    find_errors(x);
    multiply(matrix(dots_gradient_, tokens_count_), matrix(E, size_), readers_count_, keys_, size_, readers_gradient_,
             size_);
    differentiate_readers(read_query);
    if (!needs_tokens(last_)) return;

    clear(read_gradient_, tokens_size_);
    multiply(transposed(dots_gradient_, tokens_count_), matrix(readers_, size_), keys_, readers_count_, size_,
             read_gradient_, size_);
    for (int i = 0; i < size_; ++i) query_of(read_gradient_)[i] += query_gradient_[i];
    clear(gradient_, tokens_size_);
    for (int output = 0; output < outputs_; ++output) query_of(gradient_)[targets_ + output] = errors_[output];
    add_read_gradient(last_);
  }

  // The last layer and the one before it, whose keys are not moved. Neither has LayerNorm: it would come before the
  // last.
  void finish_two() const {
    const int layer = last_ - 1;
    attend(layer);
    Vector* E = tokens(layer);
    for (int i = 0; i < size_; ++i) query_[i] = query_of(E)[i];
    for (int head = 0; head < heads_; ++head) {
      Vector* gathered = row_of_query(gathered_, head, size_);
      apply(transposed(E, size_), query_attention(layer, head), size_, keys_, gathered);
      apply<Then::add>(transposed(layers_.C(layer, head), size_), gathered, size_, size_, query_);
    }

    find_readers(query_);
    multiply(matrix(readers_, size_), transposed(E, size_), readers_count_, size_, keys_, dots_, keys_);
    for (int head = 0; head < heads_; ++head) {
      Vector *moved = of_head(moved_readers_, head, size_), *read = of_head(read_values_, head, keys_);
      multiply(matrix(readers_, size_), transposed(layers_.C(layer, head), size_), readers_count_, size_, size_, moved,
               size_);
      multiply(matrix(moved, size_), transposed(E, size_), readers_count_, size_, keys_, read, keys_);
      multiply<Then::add>(matrix(read, keys_), transposed(attention(layer, head), keys_), readers_count_, keys_, keys_,
                          dots_, keys_);
    }
    find_errors(query_);

    const auto dots_gradient = matrix(dots_gradient_, tokens_count_);
    multiply(dots_gradient, matrix(E, size_), readers_count_, keys_, size_, readers_gradient_, size_);
    for (int head = 0; head < heads_; ++head) {
      Vector *attended = of_head(attended_, head, keys_), *gathered = of_head(gathered_, head, size_);
      multiply(dots_gradient, matrix(attention(layer, head), keys_), readers_count_, keys_, keys_, attended, keys_);
      multiply(matrix(attended, keys_), matrix(E, size_), readers_count_, keys_, size_, gathered, size_);
      multiply<Then::add>(matrix(gathered, size_), matrix(layers_.C(layer, head), size_), readers_count_, size_, size_,
                          readers_gradient_, size_);
    }
    differentiate_readers(query_);
    differentiate_before_last();
  }

  // The layer before the last one. The gradient by its moved tokens is dots_gradient_^T readers_, to which the query's
  // own gradient is added as one more reader that the query alone has read.
  void differentiate_before_last() const {
    const int layer = last_ - 1;
    const Vector* E = tokens(layer);
    Vector* own_reader = readers_ + readers_count_ * size_;
    Vector* own_row = dots_gradient_ + readers_count_ * tokens_count_;
    for (int i = 0; i < size_; ++i) own_reader[i] = query_gradient_[i];
    for (int output = 0; output < outputs_; ++output) own_reader[targets_ + output] += errors_[output];
    clear(own_row, tokens_count_);
    own_row[tokens_count_ - 1] = broadcast(1.0f);

    if (needs_tokens(layer)) clear(read_gradient_, tokens_size_);
    for (int head = 0; head < heads_; ++head) {
      Vector *moved = row_of_query(moved_readers_, head, size_), *attended = row_of_query(attended_, head, keys_);
      apply(matrix(layers_.C(layer, head), size_), own_reader, size_, size_, moved);
      apply(matrix(E, size_), moved, keys_, size_, row_of_query(read_values_, head, keys_));
      for (int key = 0; key < keys_; ++key) attended[key] = query_attention(layer, head)[key];

      multiply<Then::add>(transposed(of_head(gathered_, head, size_), size_), matrix(readers_, size_), size_, rank_,
                          size_, layers_.C_gradient(layer, head), size_);
      if (needs_tokens(layer))
        multiply<Then::add>(transposed(of_head(attended_, head, keys_), keys_),
                            matrix(of_head(moved_readers_, head, size_), size_), keys_, rank_, size_, read_gradient_,
                            size_);
      multiply(transposed(dots_gradient_, tokens_count_), matrix(of_head(read_values_, head, keys_), keys_),
               tokens_count_, rank_, keys_, scores_gradient_, keys_);
      differentiate_scores(layer, head);
    }
    if (!needs_tokens(layer)) return;
    multiply(transposed(dots_gradient_, tokens_count_), matrix(readers_, size_), tokens_count_, rank_, size_, gradient_,
             size_);
    add_read_gradient(layer);
  }

  // From the gradient by the tokens that a layer moved: the weights' gradients, and the gradient by the tokens before
  // it.
  //
  //     dV_h = a_h^T dE',   dC_h = K^T dV_h,   dK = dV_h C_h^T,   da_h = dE' V_h^T.
  void differentiate(int layer) const {
    if (is_clipped_[layer])
      for (size_t entry = 0; entry < tokens_size_; ++entry) gradient_[entry] *= derivatives(layer)[entry];
    const auto gradient = matrix(gradient_, size_);
    if (needs_tokens(layer)) clear(read_gradient_, tokens_size_);
    for (int head = 0; head < heads_; ++head) {
      multiply(transposed(attention(layer, head), keys_), gradient, keys_, tokens_count_, size_, values_gradient_,
               size_);
      multiply<Then::add>(transposed(read_tokens(layer), size_), matrix(values_gradient_, size_), size_, keys_, size_,
                          layers_.C_gradient(layer, head), size_);
      if (needs_tokens(layer))
        multiply<Then::add>(matrix(values_gradient_, size_), transposed(layers_.C(layer, head), size_), keys_, size_,
                            size_, read_gradient_, size_);
      multiply(gradient, transposed(values(layer, head), size_), tokens_count_, size_, keys_, scores_gradient_, keys_);
      differentiate_scores(layer, head);
    }
    if (needs_tokens(layer)) add_read_gradient(layer);
  }

  // From the gradient by a head's attention, in scores_gradient_: those of A_h, and of the tokens through the scores.
  //
  //     dQ = ds K,   dA = E^T dQ,   dE = dQ A^T,   dK = ds^T Q.
  void differentiate_scores(int layer, int head) const {
    const AttentionOfScores kind = this->kind(layer);
    for (int token = 0; token < tokens_count_; ++token) {
      Vector* gradient = scores_gradient_ + size_t(token) * keys_;
      const Vector of_share = kind.differentiate(row(layer, head, token), seen_keys(token), gradient);
      if (kind.is_mixed()) layers_.share_gradient(layer) += of_share;
      for (int key = seen_keys(token); key < keys_; ++key) gradient[key] = Vector{};
    }
    const Vector* E = read_tokens(layer);
    multiply(matrix(scores_gradient_, keys_), matrix(E, size_), tokens_count_, keys_, size_, queries_gradient_, size_);
    multiply<Then::add>(transposed(E, size_), matrix(queries_gradient_, size_), size_, tokens_count_, size_,
                        layers_.A_gradient(layer, head), size_);
    if (!needs_tokens(layer)) return;
    multiply<Then::add>(matrix(queries_gradient_, size_), transposed(layers_.A(layer, head), size_), tokens_count_,
                        size_, size_, read_gradient_, size_);
    multiply<Then::add>(transposed(scores_gradient_, keys_), matrix(queries(layer, head), size_), keys_, tokens_count_,
                        size_, read_gradient_, size_);
  }

  // Adds the gradient by the tokens as a layer read them to the gradient by the tokens themselves.
  void add_read_gradient(int layer) const {
    if (layers_.normalises(layer))
      differentiate_norm(read_gradient_, tokens_count_, size_, layers_.norm_scale(layer), normalised(layer),
                         layers_.norm_scale_gradient(layer), layers_.norm_offset_gradient(layer),
                         layer > 0 ? gradient_ : nullptr);
    else
      for (size_t entry = 0; entry < tokens_size_; ++entry) gradient_[entry] += read_gradient_[entry];
  }

  // The readers of the last layer, whose query reads as `query`.
  void find_readers(const Vector* query) const {
    for (int head = 0; head < heads_; ++head) {
      apply(transposed(layers_.A(last_, head), size_), query, size_, size_, readers_ + head * size_);
      for (int output = 0; output < outputs_; ++output) {
        Vector* reader = readers_ + value_of(head, output) * size_;
        for (int i = 0; i < size_; ++i) reader[i] = broadcast(layers_.C(last_, head)[i * size_ + targets_ + output]);
      }
    }
  }
  int value_of(int head, int output) const { return heads_ + head * outputs_ + output; }

  // From the dot products of keys and readers: the loss, its derivative by the query's target entries, and by the dot
  // products. Lanes without a task have no error, whatever LayerNorm's offset makes of their tokens.
  void find_errors(const Vector* query) const {
    const AttentionOfScores kind = this->kind(last_);
    for (int output = 0; output < outputs_; ++output) errors_[output] = query[targets_ + output];
    for (int head = 0; head < heads_; ++head) {
      const AttentionRow row = last_row(head);
      kind.apply(row, keys_);
      for (int output = 0; output < outputs_; ++output) {
        const Vector* values = dots_ + size_t(value_of(head, output)) * keys_;
        for (int key = 0; key < keys_; ++key) errors_[output] += row.attention[key] * values[key];
      }
    }
    for (int output = 0; output < outputs_; ++output) {
      const Vector entry = errors_[output];
      Vector error = clipped(entry, problem_.token_clip) + reader_.answers()[output];
      error = reader_.is_task() ? error : Vector{};
      layers_.add_loss(0.5f * error * error);
      errors_[output] = error * clip_derivative(entry, problem_.token_clip);
    }
    for (int head = 0; head < heads_; ++head) {
      const AttentionRow row = last_row(head);
      Vector* scores_gradient = dots_gradient_ + size_t(head) * tokens_count_;
      clear(scores_gradient, tokens_count_);
      for (int output = 0; output < outputs_; ++output) {
        const Vector* values = dots_ + size_t(value_of(head, output)) * keys_;
        Vector* values_gradient = dots_gradient_ + size_t(value_of(head, output)) * tokens_count_;
        clear(values_gradient, tokens_count_);
        for (int key = 0; key < keys_; ++key) {
          values_gradient[key] = errors_[output] * row.attention[key];
          scores_gradient[key] += errors_[output] * values[key];
        }
      }
      const Vector of_share = kind.differentiate(row, keys_, scores_gradient);
      if (kind.is_mixed()) layers_.share_gradient(last_) += of_share;
    }
  }
  AttentionRow last_row(int head) const {
    const size_t place = size_t(head) * keys_;
    Vector* scores = dots_ + place;
    if (problem_.attention[last_] != Attention::mixed) return {scores, scores, scores};
    return {scores, last_softmax_ + place, last_attention_ + place};
  }

  // From the gradient by the readers: those of the last layer's weights and of the query as it was read.
  void differentiate_readers(const Vector* query) const {
    clear(query_gradient_, size_);
    for (int head = 0; head < heads_; ++head) {
      const Vector* of_query = readers_gradient_ + head * size_;
      multiply<Then::add>(matrix(query, Size<1>()), matrix(of_query, size_), size_, Size<1>(), size_,
                          layers_.A_gradient(last_, head), size_);
      apply<Then::add>(matrix(layers_.A(last_, head), size_), of_query, size_, size_, query_gradient_);
      for (int output = 0; output < outputs_; ++output)
        for (int i = 0; i < size_; ++i)
          layers_.C_gradient(last_, head)[i * size_ + targets_ + output] +=
              readers_gradient_[value_of(head, output) * size_ + i];
    }
  }

  // Of rank_ rows per head, the last of which is the query's own.
  Vector* of_head(Vector* rows, int head, int row_size) const { return rows + size_t(head) * rank_ * row_size; }
  Vector* row_of_query(Vector* rows, int head, int row_size) const {
    return of_head(rows, head, row_size) + readers_count_ * row_size;
  }
  const Vector* query_attention(int layer, int head) const {
    return attention(layer, head) + size_t(tokens_count_ - 1) * keys_;
  }

  static void clear(Vector* vectors, size_t count) {
    for (size_t entry = 0; entry < count; ++entry) vectors[entry] = Vector{};
  }

  const Problem& problem_;
  const Layers& layers_;
  TokenReader<SIZE> reader_;
  Size<SIZE> size_;
  int heads_, outputs_, targets_, tokens_count_, keys_, last_;
  int readers_count_, rank_;  // of the last layer; with the query's own gradient
  size_t tokens_size_, row_size_;
  bool reads_moved_keys_ = false, has_mixed_ = false;
  int moved_layers_;  // whose tokens are all moved
  // Kept from the way forward, per layer, and per head where there are heads.
  Vector *tokens_, *derivatives_;
  bool* is_clipped_;
  Vector *read_, *normalised_, *inverses_;
  Vector *queries_, *attention_, *scores_, *softmax_, *values_;
  // Of the last layer; dot products and their gradients by reader.
  Vector *query_, *query_gradient_, *errors_, *readers_, *readers_gradient_, *dots_, *dots_gradient_;
  Vector *last_attention_, *last_softmax_;
  // Of the layer before it, where the last one reads moved keys; per head and reader: C_h u, K C_h u, and, of the
  // gradients by the dot products, a_h^T d and K^T a_h^T d.
  Vector *moved_readers_, *read_values_, *attended_, *gathered_;
  // On the way back.
  Vector *scores_gradient_, *queries_gradient_, *values_gradient_, *read_gradient_, *gradient_;
};

}  // namespace innerloop::INNERLOOP_TARGET
