// The last layer of attention, which reads the keys only through their dot products with few vectors, its `readers`:
// q_h = A_h^T x for the scores, then columns C_ho for the values, those of the entries that the loss reads. And the
// gradient by the keys is a sum of (gradient of a dot product) x (reader): of low rank.
#pragma once

#include "attention.h"
#include "query_loss.h"

namespace innerloop::INNERLOOP_TARGET {

// To be called in this order: find_readers, find_dots, find_errors, find_gradient, differentiate_readers. Where keys
// were not moved, the caller adds what moving them would do: to `dots` before find_errors, and to `gradient` after
// find_gradient.
template <int SIZE>  // of a token; 0 if only known when running
class Readers {
 public:
  int first_entry, entries;  // of the query, that the loss reads
  // `vectors` and `dots_gradient` have room for one more reader, of the caller's.
  int count;                     // one per head for the scores, then one per head and entry for the values
  Vector *vectors, *gradient;    // [count, token_size]
  Vector *dots, *dots_gradient;  // [count, num_keys], [count, num_tokens]
  Vector* errors;                // the loss's derivative by these entries
  Vector* query_gradient;        // by the query as it was read, through the readers

  Readers(const Problem& problem, const Layers& layers, Arena& arena)
      : loss_(problem, layers, arena),
        problem_(problem),
        layers_(layers),
        size_(problem.token_size),
        heads_(problem.num_heads),
        tokens_count_(problem.num_tokens),
        keys_(problem.num_keys),
        last_(problem.num_layers - 1) {
    const bool is_mixed = problem.attention[last_] == Attention::mixed;
    first_entry = loss_.first;
    entries = loss_.count;
    count = heads_ * (1 + entries);
    query_gradient = arena.take(size_);
    errors = arena.take(entries);
    vectors = arena.take((count + 1) * size_);
    gradient = arena.take(count * size_);
    dots = arena.take(count * keys_);
    dots_gradient = arena.take((count + 1) * tokens_count_);
    attention_ = arena.take(is_mixed ? heads_ * keys_ : 0);
    softmax_ = arena.take(is_mixed ? heads_ * keys_ : 0);
  }

  // The readers where the query reads as `query`.
  void find_readers(const Vector* query) const {
    for (int head = 0; head < heads_; ++head) {
      apply(transposed(layers_.A(last_, head), size_), query, size_, size_, vectors + head * size_);
      for (int entry = 0; entry < entries; ++entry) {
        Vector* reader = vectors + value_of(head, entry) * size_;
        for (int i = 0; i < size_; ++i) reader[i] = broadcast(layers_.C(last_, head)[i * size_ + first_entry + entry]);
      }
    }
  }

  // Their dot products with the keys of E.
  void find_dots(const Vector* E) const {
    multiply(matrix(vectors, size_), transposed(E, size_), count, size_, keys_, dots, keys_);
  }

  // From the dot products of keys and readers: the loss, its derivative by the query's entries, and by the dot
  // products.
  void find_errors(const Vector* query, const Vector* answers, Mask is_task) const {
    const AttentionOfScores kind(problem_, layers_, last_);
    for (int entry = 0; entry < entries; ++entry) errors[entry] = query[first_entry + entry];
    for (int head = 0; head < heads_; ++head) {
      const AttentionRow row = last_row(head);
      kind.apply(row, keys_);
      for (int entry = 0; entry < entries; ++entry) {
        const Vector* values = dots + size_t(value_of(head, entry)) * keys_;
        for (int key = 0; key < keys_; ++key) errors[entry] += row.attention[key] * values[key];
      }
    }
    loss_.differentiate(answers, is_task, errors);
    for (int head = 0; head < heads_; ++head) {
      const AttentionRow row = last_row(head);
      Vector* scores_gradient = dots_gradient + size_t(head) * tokens_count_;
      clear(scores_gradient, tokens_count_);
      for (int entry = 0; entry < entries; ++entry) {
        const Vector* values = dots + size_t(value_of(head, entry)) * keys_;
        Vector* values_gradient = dots_gradient + size_t(value_of(head, entry)) * tokens_count_;
        clear(values_gradient, tokens_count_);
        for (int key = 0; key < keys_; ++key) {
          values_gradient[key] = errors[entry] * row.attention[key];
          scores_gradient[key] += errors[entry] * values[key];
        }
      }
      const Vector of_share = kind.differentiate(row, keys_, scores_gradient);
      if (kind.is_mixed()) layers_.share_gradient(last_) += of_share;
    }
  }

  // The gradient by the readers, through their dot products with the keys of E.
  void find_gradient(const Vector* E) const {
    multiply(matrix(dots_gradient, tokens_count_), matrix(E, size_), count, keys_, size_, gradient, size_);
  }

  // From the gradient by the readers: those of the last layer's weights and of the query as it was read.
  void differentiate_readers(const Vector* query) const {
    clear(query_gradient, size_);
    for (int head = 0; head < heads_; ++head) {
      const Vector* of_query = gradient + head * size_;
      multiply<Then::add>(matrix(query, Size<1>()), matrix(of_query, size_), size_, Size<1>(), size_,
                          layers_.A_gradient(last_, head), size_);
      apply<Then::add>(matrix(layers_.A(last_, head), size_), of_query, size_, size_, query_gradient);
      for (int entry = 0; entry < entries; ++entry)
        for (int i = 0; i < size_; ++i)
          layers_.C_gradient(last_, head)[i * size_ + first_entry + entry] +=
              gradient[value_of(head, entry) * size_ + i];
    }
  }

 private:
  // Readers of scores come first.
  int value_of(int head, int entry) const { return heads_ + head * entries + entry; }
  AttentionRow last_row(int head) const {
    const size_t place = size_t(head) * keys_;
    Vector* scores = dots + place;
    if (problem_.attention[last_] != Attention::mixed) return {scores, scores, scores};
    return {scores, softmax_ + place, attention_ + place};
  }

  QueryLoss<SIZE> loss_;
  const Problem& problem_;
  const Layers& layers_;
  Size<SIZE> size_;
  int heads_, tokens_count_, keys_, last_;
  Vector *attention_, *softmax_;  // of mixed attention
};

}  // namespace innerloop::INNERLOOP_TARGET
