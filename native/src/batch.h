// A whole batch of a stack of linear attention, on several threads.
#pragma once

#include "chunks.h"
#include "problem.h"

namespace innerloop {

// Weights and results as the Python code has them; [num_distinct_layers, num_heads, token_size, token_size] each.
struct Products {
  const float *W_KQ, *W_PV;
};
struct Results {
  float *loss, *W_KQ_gradient, *W_PV_gradient;  // means over tasks
};

// Fills in `problem.A` and `problem.C`, and computes. The same bits come out for any number of threads.
void run_batch(const BlockKernel& kernel, Problem problem, const Products& products, float damping,
               bool writes_targets_only, int num_threads, const Schedule& schedule, const Results& results);

}  // namespace innerloop
