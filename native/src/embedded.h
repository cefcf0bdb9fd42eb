// A whole batch of one layer on embedded tokens, on several threads.
#pragma once

#include "chunks.h"
#include "problem.h"

namespace innerloop {

// Weights as the Python code has them: without padding, F = hidden_size + token_size + 1 features. Gradients likewise.
struct EmbeddedWeights {
  const float* into_hidden;  // [token_size + 1, hidden_size]
  const float* embedding;    // [width, F]
  const float* queries;      // [width, num_heads, F]
  const float* values;       // [num_heads, output_size, F]
};
struct EmbeddedResults {
  float *loss, *into_hidden, *embedding, *queries, *values;  // means over tasks
};

// Fills in the strides and weights of `problem`, and computes. The same bits come out for any number of threads.
void run_embedded_batch(const BlockKernel& kernel, EmbeddedProblem problem, const EmbeddedWeights& weights,
                        int num_threads, const Schedule& schedule, const EmbeddedResults& results);

}  // namespace innerloop
