// The residual MLPs of blocks, forward and backward:
//
//     e <- e + [gelu([r, 1] W), 1] V,    r = e, or e after LayerNorm.
#pragma once

#include "clip.h"
#include "gelu.h"
#include "layer_norm.h"

namespace innerloop::INNERLOOP_TARGET {

// MLPs of consecutive layers that move equally many tokens, with what the way back needs.
template <int SIZE>  // of a token; 0 if only known when running
class BlockMLP {
 public:
  // Of layers first_layer..first_layer+num_layers-1. Of what they write, tokens' entries from `first_written` on are
  // asked for; the others are neither written nor have a gradient.
  BlockMLP(const Problem& problem, const Layers& layers, int first_layer, int num_layers, int num_tokens,
           int first_written, Arena& arena)
      : layers_(layers),
        size_(problem.token_size),
        hidden_(problem.hidden_size),
        first_layer_(first_layer),
        tokens_count_(num_tokens),
        first_written_(first_written),
        written_(problem.token_size - first_written),
        tokens_size_(size_t(num_tokens) * size_),
        units_size_(size_t(num_tokens) * problem.hidden_size) {
    const int kept = layers.has_mlps() ? num_layers : 0, norms = layers.normalises_mlps() ? kept : 0;
    units_ = arena.take(units_size_ * kept);
    slopes_ = arena.take(units_size_ * kept);
    read_ = arena.take(tokens_size_ * norms);
    normalised_ = arena.take(tokens_size_ * norms);
    inverses_ = arena.take(size_t(num_tokens) * norms);
    units_gradient_ = arena.take(kept ? units_size_ : 0);
    read_gradient_ = arena.take(norms ? tokens_size_ : 0);
  }

  // From the tokens before to those after, both [num_tokens, token_size].
  void move(int layer, const Vector* before, Vector* after) const {
    const float *into = layers_.into_hidden(layer), *out_of = layers_.out_of_hidden(layer);
    const float *into_biases = into + size_ * hidden_, *out_of_biases = out_of + hidden_ * size_;
    Vector *units = this->units(layer), *slopes = this->slopes(layer);
    if (layers_.normalises_mlps())
      normalise(before, tokens_count_, size_, layers_.mlp_norm_scale(layer), layers_.mlp_norm_offset(layer),
                normalised(layer), read_ + tokens_size_ * place(layer));
    for (int token = 0; token < tokens_count_; ++token)
      for (int unit = 0; unit < hidden_; ++unit) units[token * hidden_ + unit] = broadcast(into_biases[unit]);
    multiply<Then::add>(matrix(read(layer, before), size_), matrix(into, hidden_), tokens_count_, size_, hidden_, units,
                        hidden_);
    for (size_t unit = 0; unit < units_size_; ++unit) {
      const Gelu found = gelu(units[unit]);
      units[unit] = found.value;
      slopes[unit] = found.slope;
    }
    for (int token = 0; token < tokens_count_; ++token)
      for (int i = first_written_; i < size_; ++i)
        after[token * size_ + i] = before[token * size_ + i] + out_of_biases[i];
    multiply<Then::add>(matrix(units, hidden_), matrix(out_of + first_written_, size_), tokens_count_, hidden_,
                        written_, after + first_written_, size_);
  }

  // The gradient by the tokens after becomes, in place, the one by the tokens before; entries that were not asked for
  // are zero in the former. The weights' gradients are added to.
  //
  //     dh = gelu' (de' V^T),   dV = [h, 1]^T de',   dW = [r, 1]^T dh,   dr = dh W^T.
  void differentiate(int layer, const Vector* before, Vector* gradient) const {
    const float *into = layers_.into_hidden(layer), *out_of = layers_.out_of_hidden(layer);
    Vector *into_gradient = layers_.into_hidden_gradient(layer),
           *out_of_gradient = layers_.out_of_hidden_gradient(layer);
    const Vector *units = this->units(layer), *slopes = this->slopes(layer), *written = gradient + first_written_;
    multiply<Then::add>(transposed(units, hidden_), matrix(written, size_), hidden_, tokens_count_, written_,
                        out_of_gradient + first_written_, size_);
    add_rows(written, size_, written_, out_of_gradient + hidden_ * size_ + first_written_);
    multiply(matrix(written, size_), transposed(out_of + first_written_, size_), tokens_count_, written_, hidden_,
             units_gradient_, hidden_);
    for (size_t unit = 0; unit < units_size_; ++unit) units_gradient_[unit] *= slopes[unit];
    const auto units_gradient = matrix(units_gradient_, hidden_);
    multiply<Then::add>(transposed(read(layer, before), size_), units_gradient, size_, tokens_count_, hidden_,
                        into_gradient, hidden_);
    add_rows(units_gradient_, hidden_, hidden_, into_gradient + size_ * hidden_);
    if (!layers_.normalises_mlps()) {
      multiply<Then::add>(units_gradient, transposed(into, hidden_), tokens_count_, hidden_, size_, gradient, size_);
      return;
    }
    multiply(units_gradient, transposed(into, hidden_), tokens_count_, hidden_, size_, read_gradient_, size_);
    differentiate_norm(read_gradient_, tokens_count_, size_, layers_.mlp_norm_scale(layer), normalised(layer),
                       layers_.mlp_norm_scale_gradient(layer), layers_.mlp_norm_offset_gradient(layer), gradient);
  }

 private:
  size_t place(int layer) const { return layer - first_layer_; }
  Vector* units(int layer) const { return units_ + units_size_ * place(layer); }
  Vector* slopes(int layer) const { return slopes_ + units_size_ * place(layer); }
  const Vector* read(int layer, const Vector* before) const {
    return layers_.normalises_mlps() ? read_ + tokens_size_ * place(layer) : before;
  }
  Normalised normalised(int layer) const {
    return {normalised_ + tokens_size_ * place(layer), inverses_ + size_t(tokens_count_) * place(layer)};
  }

  void add_rows(const Vector* rows, int stride, int count, Vector* sums) const {
    for (int token = 0; token < tokens_count_; ++token)
      for (int i = 0; i < count; ++i) sums[i] += rows[token * stride + i];
  }

  const Layers& layers_;
  Size<SIZE> size_;
  Size<0> hidden_;
  int first_layer_, tokens_count_, first_written_, written_;
  size_t tokens_size_, units_size_;
  // Kept from the way forward, per layer.
  Vector *units_, *slopes_, *read_, *normalised_, *inverses_;
  // On the way back.
  Vector *units_gradient_, *read_gradient_;
};

// The second half of layers that move all tokens: nothing, or an MLP and the clip.
template <int SIZE>
class BlockMLPs {
 public:
  BlockMLPs(const Problem& problem, const Layers& layers, int num_layers, Arena& arena)
      : layers_(layers),
        tokens_size_(size_t(problem.num_tokens) * problem.token_size),
        mlp_(problem, layers, 0, num_layers, problem.num_tokens, 0, arena),
        clips_(problem.token_clip, tokens_size_, layers.has_mlps() ? num_layers : 0, arena),
        between_(arena.take(layers.has_mlps() ? tokens_size_ * num_layers : 0)) {}

  // Where the first half of a layer, attention, has to put its tokens; `after` is where they go in the end.
  Vector* attended(int layer, Vector* after) const {
    return layers_.has_mlps() ? between_ + tokens_size_ * layer : after;
  }

  void move(int layer, Vector* after) const {
    if (!layers_.has_mlps()) return;
    mlp_.move(layer, attended(layer, after), after);
    clips_.apply(layer, after);
  }

  // The gradient by the tokens after the layer becomes the one by the attended tokens.
  void differentiate(int layer, Vector* gradient) const {
    if (!layers_.has_mlps()) return;
    clips_.differentiate(layer, gradient);
    mlp_.differentiate(layer, attended(layer, nullptr), gradient);
  }

 private:
  const Layers& layers_;
  size_t tokens_size_;
  BlockMLP<SIZE> mlp_;
  Clips clips_;
  Vector* between_;
};

}  // namespace innerloop::INNERLOOP_TARGET
