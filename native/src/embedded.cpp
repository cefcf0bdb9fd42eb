#include "embedded.h"

#include <cstring>

namespace innerloop {
namespace {

size_t padded(size_t size) { return (size + ROW_ALIGNMENT - 1) / ROW_ALIGNMENT * ROW_ALIGNMENT; }

// Where feature `i` lies in a padded row.
size_t feature_place(const EmbeddedProblem& problem, int i) {
  return i < problem.hidden_size ? i : i - problem.hidden_size + problem.hidden_stride;
}

// Visits all entries of rows of features: use(place without padding, row, place in the padded row).
template <class Use>
void visit_features(const EmbeddedProblem& problem, size_t rows, Use use) {
  const int features = problem.hidden_size + problem.token_size + 1;
  for (size_t row = 0; row < rows; ++row)
    for (int i = 0; i < features; ++i) use(row * features + i, row, feature_place(problem, i));
}

// The padded weights of a problem, taken from zeroed memory; from a null base it only counts.
class Layout {
 public:
  explicit Layout(float* base) : base_(base) {}

  float* take(size_t rows, size_t stride) {
    float* taken = base_ ? base_ + used_ : nullptr;
    used_ += rows * stride;
    return taken;
  }

  size_t used() const { return used_; }

 private:
  float* base_;
  size_t used_ = 0;
};

size_t lay_out(EmbeddedProblem& problem, const EmbeddedWeights& weights, float* base) {
  Layout layout(base);
  const size_t width = problem.width, heads = problem.num_heads, outputs = problem.output_size;
  const size_t features = problem.feature_stride, hidden = problem.hidden_stride, width_stride = problem.width_stride;
  float* into_hidden = layout.take(problem.token_size + 1, hidden);
  float* embedding = layout.take(width, features);
  float* embedding_transposed = layout.take(features, width_stride);
  float* queries = layout.take(width * heads, features);
  float* queries_transposed = layout.take(heads * features, width_stride);
  float* values = layout.take(heads * outputs, features);
  if (!base) return layout.used();

  for (int row = 0; row < problem.token_size + 1; ++row)
    std::memcpy(into_hidden + row * hidden, weights.into_hidden + size_t(row) * problem.hidden_size,
                sizeof(float) * problem.hidden_size);
  visit_features(problem, width, [&](size_t place, size_t row, size_t i) {
    embedding[row * features + i] = embedding_transposed[i * width_stride + row] = weights.embedding[place];
  });
  visit_features(problem, width * heads, [&](size_t place, size_t row, size_t i) {
    const size_t entry = row / heads, head = row % heads;
    queries[row * features + i] = weights.queries[place];
    queries_transposed[(head * features + i) * width_stride + entry] = weights.queries[place];
  });
  visit_features(problem, heads * outputs, [&](size_t place, size_t row, size_t i) {
    values[row * features + i] = weights.values[place];
  });
  problem.into_hidden = into_hidden;
  problem.embedding = embedding;
  problem.embedding_transposed = embedding_transposed;
  problem.queries = queries;
  problem.queries_transposed = queries_transposed;
  problem.values = values;
  return layout.used();
}

}  // namespace

EmbeddedSums embedded_sums(const EmbeddedProblem& problem) {
  const size_t width = problem.width, heads = problem.num_heads, features = problem.feature_stride;
  EmbeddedSums sums{};
  sums.into_hidden = ROW_ALIGNMENT;  // behind the loss
  sums.embedding = sums.into_hidden + size_t(problem.token_size + 1) * problem.hidden_stride;
  sums.queries = sums.embedding + width * features;
  sums.values = sums.queries + width * heads * features;
  sums.count = sums.values + heads * problem.output_size * features;
  return sums;
}

void run_embedded_batch(const BlockKernel& kernel, EmbeddedProblem problem, const EmbeddedWeights& weights,
                        int num_threads, const Schedule& schedule, const EmbeddedResults& results) {
  problem.hidden_stride = static_cast<int>(padded(problem.hidden_size));
  problem.token_stride = static_cast<int>(padded(problem.token_size + 1));
  problem.feature_stride = problem.hidden_stride + problem.token_stride;
  problem.width_stride = static_cast<int>(padded(problem.width));
  thread_local ThreadMemory memory;
  const size_t bytes = lay_out(problem, weights, nullptr) * sizeof(float);
  float* base = static_cast<float*>(memory.at_least(bytes));
  std::memset(base, 0, bytes);
  lay_out(problem, weights, base);

  const EmbeddedSums where = embedded_sums(problem);
  Sum sum;
  sum.num_items = problem.batch_size;
  sum.num_sums = where.count;
  sum.scratch_bytes = kernel.embedded_scratch_bytes(problem);
  sum.add_up = [&](int first, int last, void* scratch, float* sums) {
    kernel.run_embedded(problem, first, last, scratch, sums);
  };
  const float* total = sum_over_chunks(std::move(sum), num_threads, schedule);
  const float share = 1.0f / problem.batch_size;
  const size_t features = problem.feature_stride;
  *results.loss = share * total[where.loss];
  for (int row = 0; row < problem.token_size + 1; ++row)
    for (int unit = 0; unit < problem.hidden_size; ++unit)
      results.into_hidden[size_t(row) * problem.hidden_size + unit] =
          share * total[where.into_hidden + size_t(row) * problem.hidden_stride + unit];
  auto write = [&](size_t rows, size_t first, float* out) {
    visit_features(problem, rows, [&](size_t place, size_t row, size_t i) {
      out[place] = share * total[first + row * features + i];
    });
  };
  write(problem.width, where.embedding, results.embedding);
  write(size_t(problem.width) * problem.num_heads, where.queries, results.queries);
  write(size_t(problem.num_heads) * problem.output_size, where.values, results.values);
}

}  // namespace innerloop
