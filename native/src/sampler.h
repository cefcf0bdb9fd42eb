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

// Walks over the entries of columns first..last-1, row by row.
struct Cursor {
  int first, last, row, column;

  INNERLOOP_INLINE void advance() {
    if (++column == last) {
      column = first;
      ++row;
    }
  }
};

// The words of the cursor's next COUNT entries.
template <int COUNT, class Use>
INNERLOOP_INLINE void visit_next(const Stream& stream, Cursor& cursor, int first_task, Use use) {
  int rows[COUNT], columns[COUNT];
  uint32_t firsts[COUNT];
  for (int chain = 0; chain < COUNT; ++chain) {
    rows[chain] = cursor.row;
    columns[chain] = cursor.column;
    firsts[chain] = (uint32_t(cursor.row) * stream.columns + cursor.column) * stream.batch_size + first_task;
    cursor.advance();
  }
  Words words[COUNT];
  threefry(stream.key, firsts, words);
  for (int chain = 0; chain < COUNT; ++chain) use(rows[chain], columns[chain], words[chain]);
}

// Calls use(row, column, words) for all rows and for columns first..last-1; lane i has the word of task first_task + i.
// Lanes beyond the batch get words of no meaning.
template <class Use>
INNERLOOP_INLINE void visit(const Stream& stream, int first, int last, int first_task, Use use) {
  Cursor cursor{first, last, 0, first};
  int left_over = stream.rows * (last - first);
  for (; left_over >= CHAINS; left_over -= CHAINS) visit_next<CHAINS>(stream, cursor, first_task, use);
  for (; left_over >= 2; left_over -= 2) visit_next<2>(stream, cursor, first_task, use);
  if (left_over > 0) visit_next<1>(stream, cursor, first_task, use);
}

// The three arrays that a linear-regression task draws, shaped as the Python code shapes them.
INNERLOOP_INLINE Stream input_stream(const Problem& problem) {
  return {problem.data.input_key, problem.input_size, problem.num_pairs, problem.batch_size};
}
INNERLOOP_INLINE Stream weight_stream(const Problem& problem) {
  return {problem.data.weight_key, problem.output_size, problem.input_size, problem.batch_size};
}
INNERLOOP_INLINE Stream noise_stream(const Problem& problem) {
  return {problem.data.noise_key, problem.output_size, problem.num_pairs - 1, problem.batch_size};
}

}  // namespace innerloop::INNERLOOP_TARGET
