// Random arrays with the tasks along the last axis, read one block of tasks at a time, in any order: the words are
// counter-based, so an entry depends on its index alone.
#pragma once

#include "threefry.h"

namespace innerloop::INNERLOOP_TARGET {

// An array [rows, columns, batch_size] made from one key.
struct Stream {
  Key key;
  int rows, columns, batch_size;
};

// Calls use(row, column, words) for all rows and for columns first..last-1; lane i has the word of task first_task + i.
// Lanes beyond the batch get words of no meaning.
template <class Use>
INNERLOOP_INLINE void visit(const Stream& stream, int first, int last, int first_task, Use use) {
  const int width = last - first, total = stream.rows * width;
  int row = 0, column = first;
  for (int done = 0; done < total; done += CHAINS) {
    int rows[CHAINS], columns[CHAINS];
    uint32_t firsts[CHAINS];
    for (int chain = 0; chain < CHAINS; ++chain) {
      rows[chain] = row;
      columns[chain] = column;
      firsts[chain] = (uint32_t(row) * stream.columns + column) * stream.batch_size + first_task;
      if (++column == last) {
        column = first;
        ++row;
      }
    }
    Words words[CHAINS];
    threefry(stream.key, firsts, words);
    const int used = total - done < CHAINS ? total - done : CHAINS;
    for (int chain = 0; chain < used; ++chain) use(rows[chain], columns[chain], words[chain]);
  }
}

// The three arrays that a linear-regression task draws, shaped as the Python code shapes them.
INNERLOOP_INLINE Stream input_stream(const Problem& problem) {
  return {problem.data.input_key, problem.input_size, problem.num_tokens, problem.batch_size};
}
INNERLOOP_INLINE Stream weight_stream(const Problem& problem) {
  return {problem.data.weight_key, problem.output_size, problem.input_size, problem.batch_size};
}
INNERLOOP_INLINE Stream noise_stream(const Problem& problem) {
  return {problem.data.noise_key, problem.output_size, problem.num_tokens - 1, problem.batch_size};
}

}  // namespace innerloop::INNERLOOP_TARGET
