#include "batch.h"

#include <vector>

namespace innerloop {

size_t num_sums(const Problem& problem) {
  return 1 + 2 * size_t(problem.num_distinct_layers) * problem.num_heads * problem.token_size * problem.token_size;
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

void run_batch(const BlockKernel& kernel, Problem problem, const Products& products, float damping,
               bool writes_targets_only, int num_threads, const Schedule& schedule, const Results& results) {
  const size_t num_weights = (num_sums(problem) - 1) / 2;
  thread_local std::vector<float> weights;
  weights.resize(2 * num_weights);
  float *A = weights.data(), *C = A + num_weights;
  auto C_factor = [&](int column) { return writes_targets_only && column < problem.input_size ? 0.0f : damping; };
  visit_transposed(problem, [&](size_t entry, size_t transposed, int column) {
    A[entry] = products.W_KQ[transposed];
    C[entry] = C_factor(column) * products.W_PV[transposed];
  });
  problem.A = A;
  problem.C = C;

  Sum sum;
  sum.num_items = (problem.batch_size + kernel.lanes - 1) / kernel.lanes;
  sum.num_sums = num_sums(problem);
  sum.scratch_bytes = kernel.scratch_bytes(problem);
  sum.add_up = [&](int first, int last, void* scratch, float* sums) {
    kernel.run_blocks(problem, first, last, scratch, sums);
  };
  const float* total = sum_over_chunks(std::move(sum), num_threads, schedule);
  const float share = 1.0f / problem.batch_size;
  *results.loss = share * total[0];
  visit_transposed(problem, [&](size_t entry, size_t transposed, int column) {
    results.W_KQ_gradient[transposed] = share * total[1 + entry];
    results.W_PV_gradient[transposed] = share * C_factor(column) * total[1 + num_weights + entry];
  });
}

}  // namespace innerloop
