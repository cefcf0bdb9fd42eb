// What a wrong prediction costs, as innerloop.tasks.prediction_loss has it.
#pragma once

#include "clip.h"
#include "exponential.h"
#include "logarithm.h"
#include "problem.h"

namespace innerloop::INNERLOOP_TARGET {

// The cross-entropy of the logits -entries with these answers, t, which are probabilities (or all zero: then so are the
// loss and its derivatives, t - softmax(logits)). The entries become the derivatives by them.
INNERLOOP_INLINE Vector differentiate_cross_entropy(const Vector* answers, Vector* entries, int count) {
  constexpr float LOG2_E = 1.4426950409f;
  Vector lowest = entries[0];
  for (int output = 1; output < count; ++output) lowest = entries[output] < lowest ? entries[output] : lowest;
  Vector loss{}, sum{}, total{};
  for (int output = 0; output < count; ++output) {
    const Vector above = entries[output] - lowest;
    loss += answers[output] * above;
    total += answers[output];
    entries[output] = power_of_two(-LOG2_E * above);
    sum += entries[output];
  }
  const Vector share = 1.0f / sum;  // of the likeliest class
  for (int output = 0; output < count; ++output) entries[output] = answers[output] - total * share * entries[output];
  return loss - total * log_one_plus(share - 1.0f);
}

// The loss of the predictions -entries, clipped. The entries become the loss's derivatives by them; `slopes` is room for
// as many vectors.
INNERLOOP_INLINE Vector differentiate_loss(const Problem& problem, const Vector* answers, Vector* entries,
                                           Vector* slopes) {
  const int count = problem.output_size;
  for (int output = 0; output < count; ++output) {
    slopes[output] = clip_derivative(entries[output], problem.token_clip);
    entries[output] = clipped(entries[output], problem.token_clip);
  }
  Vector loss{};
  if (problem.loss == Loss::cross_entropy) {
    loss = differentiate_cross_entropy(answers, entries, count);
  } else {
    for (int output = 0; output < count; ++output) {
      entries[output] += answers[output];
      loss += 0.5f * entries[output] * entries[output];
    }
  }
  for (int output = 0; output < count; ++output) entries[output] *= slopes[output];
  return loss;
}

}  // namespace innerloop::INNERLOOP_TARGET
