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

// Accumulators: registers where their number is known when compiling, memory where it is not.
template <int COUNT>
struct Accumulators {
  explicit Accumulators(Vector*) {}
  Vector sums[COUNT] = {};
};
template <>
struct Accumulators<0> {
  explicit Accumulators(Vector* memory) : sums(memory) {}
  Vector* sums;
};

// Attention reads a feature vector by its dot products with `readers`: first one per head, e_q Q_h, for the scores, then
// V_ho for the values.
template <int TOKEN_SIZE, int READERS>  // 0 if only known when running
class EmbeddedLayer {
 public:
  EmbeddedLayer(const EmbeddedProblem& problem, float* sums, Arena& arena)
      : problem_(problem),
        sums_(sums),
        token_size_(problem.token_size),
        readers_count_(problem.num_heads * (1 + problem.output_size)),
        heads_(problem.num_heads),
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
    errors_ = arena.take<float>(PANEL * problem.output_size);
    readers_ = arena.take(readers_count_ * features_count_);
    features_ = arena.take(keys * features_count_);
    slopes_ = arena.take(keys * hidden_);
    dots_ = arena.take<float>(keys * readers_count_);
    dots_gradient_ = arena.take<float>(keys * readers_count_);
    reader_sums_ = arena.take(readers_count_);
    weight_sums_ = arena.take(token_size_ + 1);
  }

  // Sums over the tasks first..last-1.
  void run(int first, int last) {
    const EmbeddedSums where = embedded_sums(problem_);
    for (size_t entry = 0; entry < where.count; ++entry) sums_[entry] = 0;
    loss_ = sums_ + where.loss;
    into_hidden_gradient_ = vectors(sums_ + where.into_hidden);
    embedding_gradient_ = vectors(sums_ + where.embedding);
    queries_gradient_ = vectors(sums_ + where.queries);
    values_gradient_ = vectors(sums_ + where.values);
    const size_t values = size_t(readers_count_ - heads_) * features_count_;
    std::memcpy(readers_ + heads_ * features_count_, problem_.values, values * sizeof(Vector));
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

  // Writes a token's features and the slopes of its hidden units; calls use(i, feature vector i).
  template <class Use>
  INNERLOOP_INLINE void find_features(const float* token, Vector* features, Vector* slopes, Use use) const {
    const Vector* W = vectors(problem_.into_hidden);
    for (int unit = 0; unit < hidden_; ++unit) {
      Vector input = W[token_size_ * hidden_ + unit];
      for (int entry = 0; entry < token_size_; ++entry) input += token[entry] * W[entry * hidden_ + unit];
      const Gelu found = gelu(input);
      slopes[unit] = found.slope;
      use(unit, features[unit] = found.value);
    }
    for (int i = hidden_; i < features_count_; ++i) use(i, features[i] = load(token + size_t(i - hidden_) * LANES));
  }

  // e_q = f_q R and e_q Q_h.
  void embed_queries(int count) {
    const int used = problem_.hidden_stride + problem_.token_size + 1;  // features before the padding
    for (int task = 0; task < count; ++task)
      find_features(token(task, problem_.num_tokens - 1), query_features_ + size_t(task) * features_count_,
                    query_slopes_ + size_t(task) * hidden_, [](int, Vector) {});
    multiply(matrix(floats(query_features_), problem_.feature_stride),
             matrix(vectors(problem_.embedding_transposed), width_), count, used, width_, embedded_, width_);
    const int columns = heads_ * features_count_;
    multiply(matrix(floats(embedded_), problem_.width_stride), matrix(vectors(problem_.queries), columns), count,
             problem_.width, columns, reads_, columns);
  }

  // The keys' features, and their dot products with the readers: scores and values.
  void read_context(int task) {
    const size_t reads = size_t(heads_) * features_count_;
    std::memcpy(readers_, reads_ + task * reads, reads * sizeof(Vector));
    for (int key = 0; key < problem_.num_keys; ++key) {
      Accumulators<READERS> dots(reader_sums_);
      for (int reader = 0; reader < readers_count_; ++reader) dots.sums[reader] = Vector{};
      find_features(token(task, key), features_ + size_t(key) * features_count_, slopes_ + size_t(key) * hidden_,
                    [&](int i, Vector feature) {
                      for (int reader = 0; reader < readers_count_; ++reader)
                        dots.sums[reader] += feature * readers_[reader * features_count_ + i];
                    });
      for (int reader = 0; reader < readers_count_; ++reader)
        dots_[reader * problem_.num_keys + key] = sum_of_lanes(dots.sums[reader]);
    }
  }

  // The loss of a task, and its derivative by the query's entries, the scores and the values.
  void find_errors(int first, int task) {
    const int outputs = problem_.output_size, keys = problem_.num_keys;
    for (int entry = 0; entry < keys * heads_; ++entry) dots_gradient_[entry] = 0;
    for (int output = 0; output < outputs; ++output) {
      float entry = floats(embedded_ + size_t(task) * width_)[problem_.width - outputs + output];
      for (int head = 0; head < heads_; ++head) {
        const float *scores = dots_ + head * keys, *values = dots_ + (heads_ + head * outputs + output) * keys;
        for (int key = 0; key < keys; ++key) entry += scores[key] * values[key];
      }
      const Vector lanes = broadcast(entry);  // all the same: the clip is written for vectors
      const float answer = problem_.answers[size_t(output) * problem_.batch_size + first + task];
      float error = clipped(lanes, problem_.token_clip)[0] + answer;
      *loss_ += 0.5f * error * error;
      error *= clip_derivative(lanes, problem_.token_clip)[0];
      errors_[task * outputs + output] = error;
      for (int head = 0; head < heads_; ++head) {
        const size_t scores = head * keys, values = (heads_ + head * outputs + output) * keys;
        for (int key = 0; key < keys; ++key) {
          dots_gradient_[values + key] = error * dots_[scores + key];
          dots_gradient_[scores + key] += error * dots_[values + key];
        }
      }
    }
  }

  // Gradients by the readers, and by W through the keys.
  void differentiate_context(int task) {
    for (int i = 0; i < features_count_; ++i) {
      Accumulators<READERS> of_readers(reader_sums_);
      Accumulators<TOKEN_SIZE == 0 ? 0 : TOKEN_SIZE + 1> of_weights(weight_sums_);
      for (int reader = 0; reader < readers_count_; ++reader) of_readers.sums[reader] = Vector{};
      for (int entry = 0; entry <= token_size_; ++entry) of_weights.sums[entry] = Vector{};
      for (int key = 0; key < problem_.num_keys; ++key) {
        const Vector feature = features_[size_t(key) * features_count_ + i];
        Vector gradient{};  // by the feature
        for (int reader = 0; reader < readers_count_; ++reader) {
          const float dot_gradient = dots_gradient_[reader * problem_.num_keys + key];
          of_readers.sums[reader] += dot_gradient * feature;
          gradient += dot_gradient * readers_[reader * features_count_ + i];
        }
        if (i >= hidden_) continue;
        gradient *= slopes_[size_t(key) * hidden_ + i];
        for (int entry = 0; entry < token_size_; ++entry)
          of_weights.sums[entry] += token(task, key)[entry] * gradient;
        of_weights.sums[token_size_] += gradient;
      }
      for (int head = 0; head < heads_; ++head)
        reads_gradient_[(size_t(task) * heads_ + head) * features_count_ + i] = of_readers.sums[head];
      for (int value = heads_; value < readers_count_; ++value)
        values_gradient_[size_t(value - heads_) * features_count_ + i] += of_readers.sums[value];
      if (i >= hidden_) continue;
      for (int entry = 0; entry <= token_size_; ++entry)
        into_hidden_gradient_[entry * hidden_ + i] += of_weights.sums[entry];
    }
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
  Size<TOKEN_SIZE> token_size_;
  Size<READERS> readers_count_;
  int heads_;
  int hidden_, features_count_, width_;  // in vectors
  // Of a panel, by task. The reads are e_q Q_h [tasks, num_heads, features].
  float* tokens_;
  Vector *query_features_, *query_slopes_, *query_inputs_gradient_;
  Vector *embedded_, *embedded_gradient_, *reads_, *reads_gradient_;
  float* errors_;
  // Of one task: readers, features and slopes by key, dot products [readers, keys].
  Vector *readers_, *features_, *slopes_;
  float *dots_, *dots_gradient_;
  // Where accumulators are if their number is known only when running.
  Vector *reader_sums_, *weight_sums_;
  // Sums over tasks.
  float* loss_ = nullptr;
  Vector *into_hidden_gradient_ = nullptr, *embedding_gradient_ = nullptr, *queries_gradient_ = nullptr,
         *values_gradient_ = nullptr;
};

}  // namespace innerloop::INNERLOOP_TARGET
