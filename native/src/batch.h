// A whole batch on several threads.
#pragma once

#include <functional>

#include "problem.h"

namespace innerloop {

// Weights and results as the Python code has them; [num_distinct_layers, num_heads, token_size, token_size] each.
struct Products {
  const float *W_KQ, *W_PV;
};
struct Results {
  float *loss, *W_KQ_gradient, *W_PV_gradient;  // means over tasks
};

// Starts a piece of work on some other thread.
using Schedule = std::function<void(std::function<void()>)>;

// Fills in `problem.A` and `problem.C`, and computes. The same bits come out for any number of threads.
void run_batch(const BlockKernel& kernel, Problem problem, const Products& products, float damping,
               bool writes_targets_only, int num_threads, const Schedule& schedule, const Results& results);

}  // namespace innerloop
