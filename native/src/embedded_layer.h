// One layer of linear attention on embedded tokens; the formulas stand beside `EmbeddedProblem`.
//
// Unlike in stacks of linear attention, hidden units, features or the embedding's entries are the innermost index, not
// tasks: the weights are large, and their gradients, one product each of a panel of tasks, would not fit into the
// caches with a lane per task. A panel goes through the query's part together; its tasks go one by one through the
// context's, whose features stay in the first-level cache.
#pragma once

#include "arena.h"
#include "gelu.h"
#include "last_layer.h"
#include "matmul.h"
#include "problem.h"

namespace innerloop::INNERLOOP_TARGET {

class EmbeddedLayer {
 public:
  EmbeddedLayer(const EmbeddedProblem& problem, float* sums, Arena& arena)
      : problem_(problem),
        sums_(sums),
        heads_(problem.num_heads),
        values_count_(problem.num_heads * problem.output_size),
        hidden_(problem.hidden_stride / LANES),
        features_count_(problem.feature_stride / LANES),
        width_(problem.width_stride / LANES) {
    const size_t tokens = problem.num_tokens, keys = problem.num_keys;
    tokens_ = arena.take<float>(PANEL * tokens * problem.token_stride);
    query_features_ = arena.take(PANEL * features_count_);
    query_slopes_ = arena.take(PANEL * hidden_);
    query_inputs_gradient_ = arena.take(PANEL * hidden_);
    embedded_ = arena.take(PANEL * width_);
    embedded_gradient_ = arena.take(PANEL * width_);
    reads_ = arena.take(PANEL * heads_ * features_count_);
    reads_gradient_ = arena.take(PANEL * heads_ * features_count_);
    features_ = arena.take(keys * features_count_);
    slopes_ = arena.take(keys * hidden_);
    inputs_gradient_ = arena.take(keys * hidden_);
    scores_ = arena.take<float>(keys * heads_);
    values_ = arena.take<float>(keys * values_count_);
    scores_gradient_ = arena.take<float>(keys * heads_);
    values_gradient_ = arena.take<float>(keys * values_count_);
    errors_ = arena.take<float>(PANEL * problem.output_size);
  }

  // Sums over the tasks first..last-1.
  void run(int first, int last) {
    const EmbeddedSums where = embedded_sums(problem_);
    for (size_t entry = 0; entry < where.count; ++entry) sums_[entry] = 0;
    loss_ = sums_ + where.loss;
    into_hidden_gradient_ = vectors(sums_ + where.into_hidden);
    embedding_gradient_ = vectors(sums_ + where.embedding);
    queries_gradient_ = vectors(sums_ + where.queries);
    value_weights_gradient_ = vectors(sums_ + where.values);
    for (; first < last; first += PANEL) run_panel(first, last - first < PANEL ? last - first : PANEL);
  }

 private:
  static constexpr int PANEL = 32;  // tasks

  static const Vector* vectors(const float* floats) { return reinterpret_cast<const Vector*>(floats); }
  static Vector* vectors(float* floats) { return reinterpret_cast<Vector*>(floats); }
  static const float* floats(const Vector* vectors) { return reinterpret_cast<const float*>(vectors); }

  void run_panel(int first, int count) {
    read_tokens(first, count);
    embed_queries(count);
    for (int task = 0; task < count; ++task) {
      read_context(task);
      find_errors(first, task);
      differentiate_context(task);
    }
    differentiate_queries(count);
  }

  const float* token(int task, int token) const {
    return tokens_ + (size_t(task) * problem_.num_tokens + token) * problem_.token_stride;
  }

  // [t, 1, 0, ..] of every token.
  void read_tokens(int first, int count) {
    const int size = problem_.token_size, tokens = problem_.num_tokens, stride = problem_.token_stride;
    for (int row = 0; row < count * tokens; ++row)
      for (int entry = size; entry < stride; ++entry) tokens_[size_t(row) * stride + entry] = entry == size;
    for (int entry = 0; entry < size; ++entry)
      for (int token = 0; token < tokens; ++token) {
        const float* from = problem_.tokens + (size_t(entry) * tokens + token) * problem_.batch_size + first;
        for (int task = 0; task < count; ++task) tokens_[(size_t(task) * tokens + token) * stride + entry] = from[task];
      }
  }

  // Features of `count` tokens that lie `stride` floats apart, and the slopes of their hidden units.
  void find_features(const float* tokens, int stride, int count, Vector* features, Vector* slopes) const {
    multiply(matrix(tokens, stride), matrix(vectors(problem_.into_hidden), hidden_), count, problem_.token_size + 1,
             hidden_, features, features_count_);
    for (int row = 0; row < count; ++row) {
      Vector* own = features + size_t(row) * features_count_;
      for (int unit = 0; unit < hidden_; ++unit) {
        const Gelu found = gelu(own[unit]);
        own[unit] = found.value;
        slopes[size_t(row) * hidden_ + unit] = found.slope;
      }
      for (int rest = hidden_; rest < features_count_; ++rest)
        own[rest] = load(tokens + size_t(row) * stride + size_t(rest - hidden_) * LANES);
    }
  }

  // e_q = f_q R and e_q Q_h.
  void embed_queries(int count) {
    const int used = problem_.hidden_stride + problem_.token_size + 1;  // features before the padding
    find_features(token(0, problem_.num_tokens - 1), problem_.num_tokens * problem_.token_stride, count,
                  query_features_, query_slopes_);
    multiply(matrix(floats(query_features_), problem_.feature_stride),
             matrix(vectors(problem_.embedding_transposed), width_), count, used, width_, embedded_, width_);
    const int columns = heads_ * features_count_;
    multiply(matrix(floats(embedded_), problem_.width_stride), matrix(vectors(problem_.queries), columns), count,
             problem_.width, columns, reads_, columns);
  }

  // The keys' features, scores and values.
  void read_context(int task) {
    find_features(token(task, 0), problem_.token_stride, problem_.num_keys, features_, slopes_);
    read_features(reads_ + size_t(task) * heads_ * features_count_, heads_, scores_);
    read_features(vectors(problem_.values), values_count_, values_);
  }

  // dots[row, key] = f_key . vectors[row].
  void read_features(const Vector* rows, int count, float* dots) const {
    for (int row = 0; row < count; ++row)
      for (int key = 0; key < problem_.num_keys; ++key) {
        const Vector *left = rows + size_t(row) * features_count_, *right = features_ + size_t(key) * features_count_;
        Vector sum{};
        for (int i = 0; i < features_count_; ++i) sum += left[i] * right[i];
        dots[size_t(row) * problem_.num_keys + key] = sum_of_lanes(sum);
      }
  }

  // The loss of a task, and its derivative by the query's entries, the scores and the values.
  void find_errors(int first, int task) {
    const int outputs = problem_.output_size, keys = problem_.num_keys;
    for (int entry = 0; entry < keys * heads_; ++entry) scores_gradient_[entry] = 0;
    for (int output = 0; output < outputs; ++output) {
      float entry = floats(embedded_ + size_t(task) * width_)[problem_.width - outputs + output];
      for (int head = 0; head < heads_; ++head) {
        const float *scores = scores_ + head * keys, *values = values_ + (head * outputs + output) * keys;
        for (int key = 0; key < keys; ++key) entry += scores[key] * values[key];
      }
      const Vector lanes = broadcast(entry);  // all the same: the clip is written for vectors
      float error = clipped(lanes, problem_.token_clip)[0] + problem_.answers[size_t(output) * problem_.batch_size + first + task];
      *loss_ += 0.5f * error * error;
      error *= clip_derivative(lanes, problem_.token_clip)[0];
      errors_[task * outputs + output] = error;
      for (int head = 0; head < heads_; ++head) {
        const size_t value_row = size_t(head * outputs + output) * keys;
        for (int key = 0; key < keys; ++key) {
          values_gradient_[value_row + key] = error * scores_[head * keys + key];
          scores_gradient_[head * keys + key] += error * values_[value_row + key];
        }
      }
    }
  }

  // Gradients by W and V, and by the vectors that read the scores.
  void differentiate_context(int task) {
    const int keys = problem_.num_keys;
    const Vector* reads = reads_ + size_t(task) * heads_ * features_count_;
    multiply(transposed(scores_gradient_, keys), matrix(reads, features_count_), keys, heads_, hidden_,
             inputs_gradient_, hidden_);
    multiply<Then::add>(transposed(values_gradient_, keys), matrix(vectors(problem_.values), features_count_), keys,
                        values_count_, hidden_, inputs_gradient_, hidden_);
    for (int entry = 0; entry < keys * hidden_; ++entry) inputs_gradient_[entry] *= slopes_[entry];
    multiply<Then::add>(transposed(token(task, 0), problem_.token_stride), matrix(inputs_gradient_, hidden_),
                        problem_.token_size + 1, keys, hidden_, into_hidden_gradient_, hidden_);
    multiply(matrix(scores_gradient_, keys), matrix(features_, features_count_), heads_, keys, features_count_,
             reads_gradient_ + size_t(task) * heads_ * features_count_, features_count_);
    multiply<Then::add>(matrix(values_gradient_, keys), matrix(features_, features_count_), values_count_, keys,
                        features_count_, value_weights_gradient_, features_count_);
  }

  // Gradients by Q and R, and by W through the queries.
  void differentiate_queries(int count) {
    const int outputs = problem_.output_size, columns = heads_ * features_count_;
    multiply(matrix(floats(reads_gradient_), heads_ * problem_.feature_stride),
             matrix(vectors(problem_.queries_transposed), width_), count, heads_ * problem_.feature_stride, width_,
             embedded_gradient_, width_);
    float* gradient = reinterpret_cast<float*>(embedded_gradient_);
    for (int task = 0; task < count; ++task)
      for (int output = 0; output < outputs; ++output)
        gradient[task * problem_.width_stride + problem_.width - outputs + output] += errors_[task * outputs + output];

    multiply<Then::add>(transposed(floats(embedded_), problem_.width_stride), matrix(reads_gradient_, columns),
                        problem_.width, count, columns, queries_gradient_, columns);
    multiply<Then::add>(transposed(floats(embedded_gradient_), problem_.width_stride),
                        matrix(query_features_, features_count_), problem_.width, count, features_count_,
                        embedding_gradient_, features_count_);
    multiply(matrix(floats(embedded_gradient_), problem_.width_stride),
             matrix(vectors(problem_.embedding), features_count_), count, problem_.width, hidden_,
             query_inputs_gradient_, hidden_);
    for (int entry = 0; entry < count * hidden_; ++entry) query_inputs_gradient_[entry] *= query_slopes_[entry];
    multiply<Then::add>(
        transposed(token(0, problem_.num_tokens - 1), problem_.num_tokens * problem_.token_stride),
        matrix(query_inputs_gradient_, hidden_), problem_.token_size + 1, count, hidden_, into_hidden_gradient_, hidden_);
  }

  const EmbeddedProblem& problem_;
  float* sums_;
  int heads_, values_count_;
  int hidden_, features_count_, width_;  // in vectors
  // Of a panel, by task. The reads are e_q Q_h [tasks, num_heads, features].
  float* tokens_;
  Vector *query_features_, *query_slopes_, *query_inputs_gradient_;
  Vector *embedded_, *embedded_gradient_, *reads_, *reads_gradient_;
  float* errors_;
  // Of one task, by key: features, and scores and values [.., keys].
  Vector *features_, *slopes_, *inputs_gradient_;
  float *scores_, *values_, *scores_gradient_, *values_gradient_;
  // Sums over tasks.
  float* loss_ = nullptr;
  Vector *into_hidden_gradient_ = nullptr, *embedding_gradient_ = nullptr, *queries_gradient_ = nullptr,
         *value_weights_gradient_ = nullptr;
};

}  // namespace innerloop::INNERLOOP_TARGET
