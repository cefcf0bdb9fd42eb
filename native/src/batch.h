// A whole batch of a stack of attention, on several threads.
#pragma once

#include "chunks.h"
#include "problem.h"

namespace innerloop {

// Weights and results as the Python code has them: products [num_distinct_layers, num_heads, token_size, token_size],
// softmax's shares [num_distinct_layers], and LayerNorm's scale and offset [num_distinct_layers, token_size]; null if
// missing.
struct StackWeights {
  const float *W_KQ, *W_PV, *shares, *norm_scale, *norm_offset;
};
struct StackResults {
  float *loss, *W_KQ_gradient, *W_PV_gradient, *shares_gradient, *norm_scale_gradient, *norm_offset_gradient;  // means
};

// Fills in the weights of `problem`, and computes. The same bits come out for any number of threads.
void run_batch(const BlockKernel& kernel, Problem problem, const StackWeights& weights, float damping,
               bool writes_targets_only, int num_threads, const Schedule& schedule, const StackResults& results);

}  // namespace innerloop
