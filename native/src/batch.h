// A whole batch of a stack of attention, on several threads.
#pragma once

#include "chunks.h"
#include "problem.h"

namespace innerloop {

// Arrays as the Python code has them: products [num_distinct_layers, num_heads, token_size, token_size], softmax's
// shares [num_distinct_layers], LayerNorm's scale and offset [num_distinct_layers, token_size], and the block MLPs'
// weights as in Problem. Pointers to weights that a stack lacks are null.
template <class Array>
struct StackArrays {
  Array W_KQ, W_PV, shares, norm_scale, norm_offset, into_hidden, out_of_hidden, mlp_norm_scale, mlp_norm_offset;
};

// Fills in the weights of `problem`, and computes. The same bits come out for any number of threads.
// Loss and gradient are means over the batch.
void run_batch(const BlockKernel& kernel, Problem problem, const StackArrays<const float*>& weights, float damping,
               bool writes_targets_only, int num_threads, const Schedule& schedule, float* loss,
               const StackArrays<float*>& gradient);

}  // namespace innerloop
