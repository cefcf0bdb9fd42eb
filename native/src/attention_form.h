// Stacks with softmax or mixed attention, LayerNorm or a causal mask, with or without MLPs: any stack of attention, in
// fact, but the other forms are faster for what is linear.
//
// The last layer reads the keys through its readers alone. So where it reads tokens as the layer before leaves them,
// that layer moves the query alone: of a moved key e + sum_h a_h K C_h, the dot product with u is
// e . u + sum_h a_h . (K C_h u). The gradient by the moved keys, of low rank, is not written out either.
#pragma once

#include "attention_layers.h"
#include "readers.h"
#include "tokens.h"

namespace innerloop::INNERLOOP_TARGET {

template <int SIZE>  // of a token; 0 if only known when running
class AttentionForm {
 public:
  AttentionForm(const Problem& problem, const Layers& layers, Arena& arena)
      : layers_(layers),
        reader_(problem, arena),
        size_(problem.token_size),
        heads_(problem.num_heads),
        tokens_count_(problem.num_tokens),
        keys_(problem.num_keys),
        last_(problem.num_layers - 1),
        tokens_size_(tokens_count_ * size_),
        reads_moved_keys_(last_ > 0 && !layers.normalises(last_) && !layers.has_mlps() &&
                          problem.token_clip == __builtin_inff()),
        moved_layers_(reads_moved_keys_ ? last_ - 1 : last_),
        below_(problem, layers, moved_layers_, arena),
        readers_(problem, layers, arena),
        rank_(readers_.count + 1) {
    const size_t heads_before = reads_moved_keys_ ? heads_ : 0;
    query_ = arena.take(size_);
    moved_readers_ = arena.take(heads_before * rank_ * size_);
    gathered_ = arena.take(heads_before * rank_ * size_);
    read_values_ = arena.take(heads_before * rank_ * keys_);
    attended_ = arena.take(heads_before * rank_ * keys_);
  }

  void run(int block) {
    reader_.begin(block);
    reader_.read(0, tokens_count_, below_.tokens(0));
    for (int layer = 0; layer < moved_layers_; ++layer) {
      below_.attend(layer);
      below_.move(layer);
    }
    if (reads_moved_keys_)
      finish_two();
    else
      finish();
    for (int layer = moved_layers_ - 1; layer >= 0; --layer) below_.differentiate(layer);
  }

 private:
  // The last layer, where it reads its keys as they are, or after LayerNorm.
  void finish() const {
    below_.read(last_);
    Vector *E = below_.read_tokens(last_), *x = below_.query_of(below_.tokens(last_)), *read_query = below_.query_of(E);
    readers_.find_readers(read_query);
    readers_.find_dots(E);
    readers_.find_errors(x, reader_.answers(), reader_.is_task());
    readers_.find_gradient(E);
    readers_.differentiate_readers(read_query);
    if (!below_.needs_tokens(last_)) return;

    Vector *gradient = below_.tokens_gradient, *read_gradient = below_.read_gradient;
    clear(read_gradient, tokens_size_);
    multiply(transposed(readers_.dots_gradient, tokens_count_), matrix(readers_.vectors, size_), keys_, readers_.count,
             size_, read_gradient, size_);
    for (int i = 0; i < size_; ++i) below_.query_of(read_gradient)[i] += readers_.query_gradient[i];
    clear(gradient, tokens_size_);
    add_errors(below_.query_of(gradient));
    below_.add_read_gradient(last_);
  }

  // The last layer and the one before it, whose keys are not moved. Neither has LayerNorm: it would come before the
  // last.
  void finish_two() const {
    const int layer = last_ - 1, count = readers_.count;
    below_.attend(layer);
    Vector* E = below_.tokens(layer);
    for (int i = 0; i < size_; ++i) query_[i] = below_.query_of(E)[i];
    for (int head = 0; head < heads_; ++head) {
      Vector* gathered = row_of_query(gathered_, head, size_);
      apply(transposed(E, size_), query_attention(layer, head), size_, keys_, gathered);
      apply<Then::add>(transposed(layers_.C(layer, head), size_), gathered, size_, size_, query_);
    }

    readers_.find_readers(query_);
    readers_.find_dots(E);
    for (int head = 0; head < heads_; ++head) {
      Vector *moved = of_head(moved_readers_, head, size_), *read = of_head(read_values_, head, keys_);
      multiply(matrix(readers_.vectors, size_), transposed(layers_.C(layer, head), size_), count, size_, size_, moved,
               size_);
      multiply(matrix(moved, size_), transposed(E, size_), count, size_, keys_, read, keys_);
      multiply<Then::add>(matrix(read, keys_), transposed(below_.attention(layer, head), keys_), count, keys_, keys_,
                          readers_.dots, keys_);
    }
    readers_.find_errors(query_, reader_.answers(), reader_.is_task());

    readers_.find_gradient(E);
    for (int head = 0; head < heads_; ++head) {
      Vector *attended = of_head(attended_, head, keys_), *gathered = of_head(gathered_, head, size_);
      multiply(matrix(readers_.dots_gradient, tokens_count_), matrix(below_.attention(layer, head), keys_), count,
               keys_, keys_, attended, keys_);
      multiply(matrix(attended, keys_), matrix(E, size_), count, keys_, size_, gathered, size_);
      multiply<Then::add>(matrix(gathered, size_), matrix(layers_.C(layer, head), size_), count, size_, size_,
                          readers_.gradient, size_);
    }
    readers_.differentiate_readers(query_);
    differentiate_before_last();
  }

  // The layer before the last one. The gradient by its moved tokens is dots_gradient^T vectors, to which the query's
  // own gradient is added as one more reader that the query alone has read.
  void differentiate_before_last() const {
    const int layer = last_ - 1;
    const Vector* E = below_.tokens(layer);
    Vector* own_reader = readers_.vectors + readers_.count * size_;
    Vector* own_row = readers_.dots_gradient + readers_.count * tokens_count_;
    for (int i = 0; i < size_; ++i) own_reader[i] = readers_.query_gradient[i];
    add_errors(own_reader);
    clear(own_row, tokens_count_);
    own_row[tokens_count_ - 1] = broadcast(1.0f);

    const auto readers = matrix(readers_.vectors, size_);
    const auto of_dots = transposed(readers_.dots_gradient, tokens_count_);
    const bool needs_tokens = below_.needs_tokens(layer);
    if (needs_tokens) clear(below_.read_gradient, tokens_size_);
    for (int head = 0; head < heads_; ++head) {
      Vector *moved = row_of_query(moved_readers_, head, size_), *attended = row_of_query(attended_, head, keys_);
      apply(matrix(layers_.C(layer, head), size_), own_reader, size_, size_, moved);
      apply(matrix(E, size_), moved, keys_, size_, row_of_query(read_values_, head, keys_));
      for (int key = 0; key < keys_; ++key) attended[key] = query_attention(layer, head)[key];

      multiply<Then::add>(transposed(of_head(gathered_, head, size_), size_), readers, size_, rank_, size_,
                          layers_.C_gradient(layer, head), size_);
      if (needs_tokens)
        multiply<Then::add>(transposed(of_head(attended_, head, keys_), keys_),
                            matrix(of_head(moved_readers_, head, size_), size_), keys_, rank_, size_,
                            below_.read_gradient, size_);
      multiply(of_dots, matrix(of_head(read_values_, head, keys_), keys_), tokens_count_, rank_, keys_,
               below_.scores_gradient, keys_);
      below_.differentiate_scores(layer, head);
    }
    if (!needs_tokens) return;
    multiply(of_dots, readers, tokens_count_, rank_, size_, below_.tokens_gradient, size_);
    below_.add_read_gradient(layer);
  }

  void add_errors(Vector* query_gradient) const {
    for (int entry = 0; entry < readers_.entries; ++entry)
      query_gradient[readers_.first_entry + entry] += readers_.errors[entry];
  }

  // Of rank_ rows per head, the last of which is the query's own.
  Vector* of_head(Vector* rows, int head, int row_size) const { return rows + size_t(head) * rank_ * row_size; }
  Vector* row_of_query(Vector* rows, int head, int row_size) const {
    return of_head(rows, head, row_size) + readers_.count * row_size;
  }
  const Vector* query_attention(int layer, int head) const {
    return below_.attention(layer, head) + size_t(tokens_count_ - 1) * keys_;
  }

  const Layers& layers_;
  TokenReader<SIZE> reader_;
  Size<SIZE> size_;
  int heads_, tokens_count_, keys_, last_;
  size_t tokens_size_;
  bool reads_moved_keys_;
  int moved_layers_;             // that move all tokens
  AttentionLayers<SIZE> below_;  // all but the last layer
  Readers<SIZE> readers_;        // of the last layer
  int rank_;                     // number of readers with the query's own gradient
  // Of the layer before the last, where the last one reads moved keys: the moved query; per head and reader, C_h u,
  // K C_h u, and, of the gradients by the dot products, a_h^T d and K^T a_h^T d.
  Vector *query_, *moved_readers_, *read_values_, *attended_, *gathered_;
};

}  // namespace innerloop::INNERLOOP_TARGET
