#include "batch.h"

#include <vector>

namespace innerloop {

StackSums stack_sums(const Problem& problem) {
  const size_t layers = problem.num_distinct_layers, size = problem.token_size;
  const size_t products = layers * problem.num_heads * size * size, norms = problem.norm_scale ? layers * size : 0;
  const size_t hidden = problem.hidden_size, mlp_norms = problem.mlp_norm_scale ? layers * size : 0;
  StackSums sums{};
  sums.A = 1;  // behind the loss
  sums.C = sums.A + products;
  sums.shares = sums.C + products;
  sums.norm_scale = sums.shares + (problem.shares ? layers : 0);
  sums.norm_offset = sums.norm_scale + norms;
  sums.into_hidden = sums.norm_offset + norms;
  sums.out_of_hidden = sums.into_hidden + layers * (size + 1) * hidden;
  sums.mlp_norm_scale = sums.out_of_hidden + (hidden ? layers * (hidden + 1) * size : 0);
  sums.mlp_norm_offset = sums.mlp_norm_scale + mlp_norms;
  sums.count = sums.mlp_norm_offset + mlp_norms;
  return sums;
}

namespace {

// Visits corresponding entries of a row-form matrix and of its transpose.
template <class Use>
void visit_transposed(const Problem& problem, Use use) {
  const int size = problem.token_size;
  const size_t matrices = size_t(problem.num_distinct_layers) * problem.num_heads;
  for (size_t matrix = 0; matrix < matrices; ++matrix)
    for (int i = 0; i < size; ++i)
      for (int k = 0; k < size; ++k) use((matrix * size + i) * size + k, (matrix * size + k) * size + i, k);
}

}  // namespace

void run_batch(const BlockKernel& kernel, Problem problem, const StackArrays<const float*>& weights, float damping,
               bool writes_targets_only, int num_threads, const Schedule& schedule, float* loss,
               const StackArrays<float*>& gradient) {
  problem.shares = weights.shares;
  problem.norm_scale = weights.norm_scale;
  problem.norm_offset = weights.norm_offset;
  problem.into_hidden = weights.into_hidden;
  problem.out_of_hidden = weights.out_of_hidden;
  problem.mlp_norm_scale = weights.mlp_norm_scale;
  problem.mlp_norm_offset = weights.mlp_norm_offset;
  const StackSums where = stack_sums(problem);
  thread_local std::vector<float> row_form;
  row_form.resize(2 * (where.C - where.A));
  float *A = row_form.data(), *C = A + (where.C - where.A);
  const int targets = problem.token_size - problem.output_size;
  auto C_factor = [&](int column) { return writes_targets_only && column < targets ? 0.0f : damping; };
  visit_transposed(problem, [&](size_t entry, size_t transposed, int column) {
    A[entry] = weights.W_KQ[transposed];
    C[entry] = C_factor(column) * weights.W_PV[transposed];
  });
  problem.A = A;
  problem.C = C;

  Sum sum;
  sum.num_items = (problem.batch_size + kernel.lanes - 1) / kernel.lanes;
  sum.num_sums = where.count;
  sum.scratch_bytes = kernel.scratch_bytes(problem);
  sum.add_up = [&](int first, int last, void* scratch, float* sums) {
    kernel.run_blocks(problem, first, last, scratch, sums);
  };
  const float* total = sum_over_chunks(std::move(sum), num_threads, schedule);
  const float share = 1.0f / problem.batch_size;
  *loss = share * total[where.loss];
  visit_transposed(problem, [&](size_t entry, size_t transposed, int column) {
    gradient.W_KQ[transposed] = share * total[where.A + entry];
    gradient.W_PV[transposed] = share * C_factor(column) * total[where.C + entry];
  });
  auto write = [&](size_t first, size_t last, float* out) {
    for (size_t entry = first; entry < last; ++entry) out[entry - first] = share * total[entry];
  };
  write(where.shares, where.norm_scale, gradient.shares);
  write(where.norm_scale, where.norm_offset, gradient.norm_scale);
  write(where.norm_offset, where.into_hidden, gradient.norm_offset);
  write(where.into_hidden, where.out_of_hidden, gradient.into_hidden);
  write(where.out_of_hidden, where.mlp_norm_scale, gradient.out_of_hidden);
  write(where.mlp_norm_scale, where.mlp_norm_offset, gradient.mlp_norm_scale);
  write(where.mlp_norm_offset, where.count, gradient.mlp_norm_offset);
}

}  // namespace innerloop
