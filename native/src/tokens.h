// The tokens of a block of tasks, made on the spot or read from arrays.
#pragma once

#include "arena.h"
#include "distributions.h"
#include "matmul.h"
#include "sampler.h"

namespace innerloop::INNERLOOP_TARGET {

// Concatenated tokens: (x_j, y_j) for the context and, last, the query's (x_q, -W0 x_q). Tokens are rows of token_size
// vectors. Lanes beyond the batch hold zeros, which stay zeros in every layer: such tasks have no loss and no gradient.
template <int SIZE>
class TokenReader {
 public:
  TokenReader(const Problem& problem, Arena& arena)
      : problem_(problem),
        size_(problem.token_size),
        task_weights_(arena.take(problem.output_size * problem.input_size)),
        answers_(arena.take(problem.output_size)) {}

  void begin(int block) {
    first_task_ = block * LANES;
    num_tasks_ = problem_.batch_size - first_task_ < LANES ? problem_.batch_size - first_task_ : LANES;
    if (!problem_.data.is_sampled) return;
    const float scale = problem_.data.target_scale;
    visit(weight_stream(problem_), 0, problem_.input_size, first_task_, [&](int output, int input, Words words) {
      task_weights_[output * problem_.input_size + input] = scale * normal(words);
    });
  }

  // Writes tokens first..last-1.
  void read(int first, int last, Vector* tokens) {
    if (problem_.data.is_sampled)
      sample(first, last, tokens);
    else
      copy(first, last, tokens);
    if (last == problem_.num_tokens) finish_query(tokens + (last - 1 - first) * size_);
  }

  // The query's targets [output_size], known once the last token has been read.
  const Vector* answers() const { return answers_; }

 private:
  void sample(int first, int last, Vector* tokens) {
    const int inputs = problem_.input_size;
    const Data& data = problem_.data;
    visit(input_stream(problem_), first, last, first_task_, [&](int input, int token, Words words) {
      tokens[(token - first) * size_ + input] = data.input_scale * centred_uniform(words);
    });
    multiply(matrix(tokens, size_), transposed(task_weights_, Size<0>(inputs)), last - first, inputs,
             problem_.output_size, tokens + inputs, size_);
    const int context = problem_.num_tokens - 1;
    if (data.noise_std > 0) {
      visit(noise_stream(problem_), first, last < context ? last : context, first_task_,
            [&](int output, int token, Words words) {
              tokens[(token - first) * size_ + inputs + output] += data.noise_std * normal(words);
            });
    }
    if (num_tasks_ < LANES) {
      const Mask is_task = lane_numbers() < broadcast(uint32_t(num_tasks_));
      for (int entry = 0; entry < (last - first) * size_; ++entry) tokens[entry] = is_task ? tokens[entry] : Vector{};
    }
  }

  void copy(int first, int last, Vector* tokens) {
    const int inputs = problem_.input_size;
    for (int entry = 0; entry < problem_.token_size; ++entry) {
      const float* row = entry < inputs ? problem_.data.inputs + size_t(entry) * row_length()
                                        : problem_.data.targets + size_t(entry - inputs) * row_length();
      for (int token = first; token < last; ++token)
        tokens[(token - first) * size_ + entry] =
            load(row + size_t(token) * problem_.batch_size + first_task_, num_tasks_);
    }
  }

  size_t row_length() const { return size_t(problem_.num_tokens) * problem_.batch_size; }

  // Takes the answers out of the query's token and puts -W0 x_q there.
  void finish_query(Vector* query) {
    for (int output = 0; output < problem_.output_size; ++output) {
      Vector& entry = query[problem_.input_size + output];
      answers_[output] = entry;
      entry = Vector{};
      for (int input = 0; input < problem_.input_size; ++input)
        entry -= problem_.initial_weights[output * problem_.input_size + input] * query[input];
    }
  }

  const Problem& problem_;
  Size<SIZE> size_;
  Vector* task_weights_;  // W [output_size, input_size]
  Vector* answers_;
  int first_task_ = 0, num_tasks_ = 0;
};

}  // namespace innerloop::INNERLOOP_TARGET
