// LayerNorm of tokens: centred, divided by the standard deviation of a token's entries, scaled and shifted.
#pragma once

#include "layers.h"

namespace innerloop::INNERLOOP_TARGET {

// What the way back needs: the tokens before scale and offset, and one over their standard deviation.
struct Normalised {
  Vector *tokens, *inverse;
};

//     n = (e - mean e) / sqrt(var e + 1e-5),   read = scale n + offset.
template <class Width>
void normalise(const Vector* tokens, int count, Width size, const float* scale, const float* offset,
               const Normalised& normalised, Vector* read) {
  const float share = 1.0f / size;
  for (int row = 0; row < count; ++row) {
    const Vector* token = tokens + row * size;
    Vector* n = normalised.tokens + row * size;
    Vector sum{}, squares{};
    for (int i = 0; i < size; ++i) sum += token[i];
    const Vector mean = share * sum;
    for (int i = 0; i < size; ++i) {
      n[i] = token[i] - mean;
      squares += n[i] * n[i];
    }
    const Vector inverse = 1.0f / square_root(share * squares + 1e-5f);
    normalised.inverse[row] = inverse;
    for (int i = 0; i < size; ++i) {
      n[i] *= inverse;
      read[row * size + i] = scale[i] * n[i] + offset[i];
    }
  }
}

// From the gradient by what was read: those of scale and offset and, unless null, by the tokens; all are added to.
//
//     dn = scale dread,   de = (dn - mean dn - n mean(n dn)) / standard deviation.
template <class Width>
void differentiate_norm(const Vector* read_gradient, int count, Width size, const float* scale,
                        const Normalised& normalised, Vector* scale_gradient, Vector* offset_gradient,
                        Vector* tokens_gradient) {
  const float share = 1.0f / size;
  for (int row = 0; row < count; ++row) {
    const Vector *gradient = read_gradient + row * size, *n = normalised.tokens + row * size;
    Vector sum{}, along{};
    for (int i = 0; i < size; ++i) {
      scale_gradient[i] += gradient[i] * n[i];
      offset_gradient[i] += gradient[i];
      sum += scale[i] * gradient[i];
      along += scale[i] * gradient[i] * n[i];
    }
    if (!tokens_gradient) continue;
    for (int i = 0; i < size; ++i)
      tokens_gradient[row * size + i] +=
          normalised.inverse[row] * (scale[i] * gradient[i] - share * sum - n[i] * (share * along));
  }
}

}  // namespace innerloop::INNERLOOP_TARGET
