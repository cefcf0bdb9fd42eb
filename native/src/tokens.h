// The tokens of a block of tasks, made on the spot or read from arrays.
#pragma once

#include "arena.h"
#include "distributions.h"
#include "matmul.h"
#include "sampler.h"

namespace innerloop::INNERLOOP_TARGET {

// Tokens are rows of token_size vectors, the query's last. Lanes beyond the batch hold zeros, which linear attention
// leaves at zero; where LayerNorm's offset or an MLP's biases move them, their errors are set to zero (QueryLoss).
template <int SIZE>
class TokenReader {
 public:
  TokenReader(const Problem& problem, Arena& arena)
      : problem_(problem),
        size_(problem.token_size),
        task_weights_(arena.take(problem.output_size * problem.input_size)),
        answers_(arena.take(problem.output_size)) {
    if (problem.data.layout != Layout::alternating) return;
    pairs_ = arena.take(problem.num_pairs * pair_size());
    if (problem.data.is_permuted) {
      words_ = arena.take<Words>(problem.num_tokens - 1);
      places_ = arena.take<Words>(problem.num_tokens - 1);
    }
  }

  void begin(int block) {
    first_task_ = block * LANES;
    num_tasks_ = problem_.batch_size - first_task_ < LANES ? problem_.batch_size - first_task_ : LANES;
    if (problem_.data.is_sampled) {
      const float scale = problem_.data.target_scale;
      visit(weight_stream(problem_), 0, problem_.input_size, first_task_, [&](int output, int input, Words words) {
        task_weights_[output * problem_.input_size + input] = scale * normal(words);
      });
    }
    if (problem_.data.layout == Layout::alternating) {
      read_pairs(0, problem_.num_pairs, pairs_, Size<0>(pair_size()));
      take_answers(query_pair());
      if (problem_.data.is_permuted) shuffle();
    }
  }

  // Writes tokens first..last-1.
  void read(int first, int last, Vector* tokens) {
    const bool has_query = last == problem_.num_tokens;
    Vector* query = tokens + (last - 1 - first) * size_;
    switch (problem_.data.layout) {
      case Layout::pairs:
        read_pairs(first, last, tokens, size_);
        if (has_query) finish_query(query);
        break;
      case Layout::alternating:
        for (int token = first; token < last; ++token) alternate(token, tokens + (token - first) * size_);
        break;
      case Layout::given:
        for (int entry = 0; entry < size_; ++entry)
          copy(problem_.data.inputs, problem_.num_tokens, entry, first, last, tokens + entry, size_);
        if (has_query)
          for (int output = 0; output < problem_.output_size; ++output)
            copy(problem_.data.targets, 1, output, 0, 1, answers_ + output, 1);
    }
  }

  // The query's targets [output_size], known once the last token has been read.
  const Vector* answers() const { return answers_; }

  // Which lanes hold a task.
  Mask is_task() const { return lane_numbers() < broadcast(uint32_t(num_tasks_)); }

 private:
  int pair_size() const { return problem_.input_size + problem_.output_size; }
  Vector* query_pair() const { return pairs_ + (problem_.num_pairs - 1) * pair_size(); }

  // Rows (x_j, y_j), the noiseless target of the query included; `width` is the distance of rows.
  template <class Width>
  void read_pairs(int first, int last, Vector* pairs, Width width) {
    if (problem_.data.is_sampled) return sample(first, last, pairs, width);
    const int inputs = problem_.input_size, count = problem_.num_pairs;
    for (int entry = 0; entry < inputs; ++entry)
      copy(problem_.data.inputs, count, entry, first, last, pairs + entry, width);
    for (int output = 0; output < problem_.output_size; ++output)
      copy(problem_.data.targets, count, output, first, last, pairs + inputs + output, width);
  }

  template <class Width>
  void sample(int first, int last, Vector* pairs, Width width) {
    const int inputs = problem_.input_size;
    const Data& data = problem_.data;
    visit(input_stream(problem_), first, last, first_task_, [&](int input, int pair, Words words) {
      pairs[(pair - first) * width + input] = data.input_scale * centred_uniform(words);
    });
    multiply(matrix(pairs, width), transposed(task_weights_, Size<0>(inputs)), last - first, inputs,
             problem_.output_size, pairs + inputs, width);
    const int context = problem_.num_pairs - 1;
    if (data.noise_std > 0) {
      visit(noise_stream(problem_), first, last < context ? last : context, first_task_,
            [&](int output, int pair, Words words) {
              pairs[(pair - first) * width + inputs + output] += data.noise_std * normal(words);
            });
    }
    if (num_tasks_ < LANES)
      for (int entry = 0; entry < (last - first) * width; ++entry) pairs[entry] = is_task() ? pairs[entry] : Vector{};
  }

  // Columns first..last-1 of one row of an array [rows, columns, batch_size].
  void copy(const float* array, int columns, int row, int first, int last, Vector* out, int out_stride) const {
    const float* from = array + size_t(row) * columns * problem_.batch_size + first_task_;
    for (int column = first; column < last; ++column)
      out[(column - first) * out_stride] = load(from + size_t(column) * problem_.batch_size, num_tasks_);
  }

  // A permutation of the context's positions in every lane: the ranks of random words, whose key is made of the bits of
  // two context inputs, as in `AlternatingTokens`.
  void shuffle() {
    const int count = problem_.num_tokens - 1;
    const Words high = (Words)pairs_[0], low = (Words)pairs_[(problem_.num_pairs - 2) * pair_size()];
    for (int first = 0; first < count; first += 2) {  // two tokens a pair
      const Words counters[2] = {Words{} + uint32_t(first), Words{} + uint32_t(first + 1)};
      Words words[2];
      threefry(high, low, counters, words);
      for (int token = 0; token < 2; ++token) {
        words_[first + token] = words[token];
        places_[first + token] = Words{};
      }
    }
    for (int later = 1; later < count; ++later)
      for (int token = 0; token < later; ++token) {
        const Words follows = (Words)(words_[token] > words_[later]);  // -1 or 0
        places_[token] -= follows;
        places_[later] += 1 + follows;
      }
  }

  // An entry of a token's code.
  Vector code(int token, int entry) const {
    const float* codes = problem_.data.codes + entry;
    if (!problem_.data.is_permuted || token == problem_.num_tokens - 1) return broadcast(codes[size_t(token) * size_]);
    return gather(codes, places_[token] * uint32_t(size_));
  }

  // One of x_1, y_1, x_2, .., y_N, x_q with its code.
  void alternate(int token, Vector* out) const {
    const Data& data = problem_.data;
    const bool is_input = token % 2 == 0;
    const Vector* pair = pairs_ + token / 2 * pair_size();
    for (int entry = 0; entry < size_; ++entry) {
      const Vector own = code(token, entry);
      out[entry] = num_tasks_ == LANES ? own : (is_task() ? own : Vector{});
    }
    if (is_input)
      for (int input = 0; input < problem_.input_size; ++input) out[input] += pair[input];
    else
      for (int output = 0; output < problem_.output_size; ++output)
        out[data.content_size - problem_.output_size + output] += pair[problem_.input_size + output];
  }

  void take_answers(const Vector* query) {
    for (int output = 0; output < problem_.output_size; ++output)
      answers_[output] = query[problem_.input_size + output];
  }

  // Takes the answers out of the query's token and puts -W0 x_q there.
  void finish_query(Vector* query) {
    take_answers(query);
    for (int output = 0; output < problem_.output_size; ++output) {
      Vector& entry = query[problem_.input_size + output];
      entry = Vector{};
      for (int input = 0; input < problem_.input_size; ++input)
        entry -= problem_.initial_weights[output * problem_.input_size + input] * query[input];
    }
  }

  const Problem& problem_;
  Size<SIZE> size_;
  Vector* task_weights_;  // W [output_size, input_size]
  Vector* answers_;
  Vector* pairs_ = nullptr;                     // of alternating tokens [num_pairs, input_size + output_size]
  Words *words_ = nullptr, *places_ = nullptr;  // of permuted ones, the context's [num_tokens - 1]
  int first_task_ = 0, num_tasks_ = 0;
};

}  // namespace innerloop::INNERLOOP_TARGET
