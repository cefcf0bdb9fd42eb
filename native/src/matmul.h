// Small matrix products, one independent product per lane, in register tiles.
//
// An operand is a pointer and two strides, so a transpose costs nothing. `Vectors` holds another matrix in every lane,
// `Scalars` one matrix for all of them (weights).
#pragma once

#include <cstddef>
#include <utility>

#include "simd.h"

namespace innerloop::INNERLOOP_TARGET {

struct Vectors {
  const Vector* data;
  ptrdiff_t row, column;
  INNERLOOP_INLINE Vector at(int i, int j) const { return data[i * row + j * column]; }
};

struct Scalars {
  const float* data;
  ptrdiff_t row, column;
  INNERLOOP_INLINE Vector at(int i, int j) const { return broadcast(data[i * row + j * column]); }
};

// A row-major matrix with rows of `width`, and its transpose.
INNERLOOP_INLINE Vectors matrix(const Vector* data, int width) { return {data, width, 1}; }
INNERLOOP_INLINE Scalars matrix(const float* data, int width) { return {data, width, 1}; }
INNERLOOP_INLINE Vectors transposed(const Vector* data, int width) { return {data, 1, width}; }
INNERLOOP_INLINE Scalars transposed(const float* data, int width) { return {data, 1, width}; }

// The tile's sums must fit in registers beside one row of the right operand: 24 of 32 with AVX-512, 12 of 16 without.
constexpr int TILE_ROWS = INNERLOOP_LANES == 16 ? 6 : 4;
constexpr int TILE_COLUMNS = INNERLOOP_LANES == 16 ? 4 : 3;

enum class Then { store, add };

// One tile of the product, its sums in registers all along. The loops over the tile must be unrolled for that: an array
// that is indexed at run time lives in memory.
template <int ROWS, int COLUMNS, Then THEN, class Left, class Right>
__attribute__((noinline)) void tile(Left left, Right right, int inner, Vector* out, ptrdiff_t out_row) {
  Vector sums[ROWS][COLUMNS];
  INNERLOOP_UNROLL
  for (int i = 0; i < ROWS; ++i)
    INNERLOOP_UNROLL
    for (int k = 0; k < COLUMNS; ++k) sums[i][k] = THEN == Then::add ? out[i * out_row + k] : Vector{};
  for (int j = 0; j < inner; ++j) {
    Vector right_row[COLUMNS];
    INNERLOOP_UNROLL
    for (int k = 0; k < COLUMNS; ++k) right_row[k] = right.at(0, k);
    INNERLOOP_UNROLL
    for (int i = 0; i < ROWS; ++i) {
      const Vector factor = left.at(i, 0);
      INNERLOOP_UNROLL
      for (int k = 0; k < COLUMNS; ++k) sums[i][k] += factor * right_row[k];
    }
    left.data += left.column;
    right.data += right.row;
  }
  INNERLOOP_UNROLL
  for (int i = 0; i < ROWS; ++i)
    INNERLOOP_UNROLL
    for (int k = 0; k < COLUMNS; ++k) out[i * out_row + k] = sums[i][k];
}

// All tile shapes up to the largest, one function each.
template <Then THEN, class Left, class Right>
struct Tiles {
  using Function = void (*)(Left, Right, int, Vector*, ptrdiff_t);

  struct Table {
    Function shapes[TILE_ROWS * TILE_COLUMNS];
  };

  template <size_t... SHAPE>
  static constexpr Table make(std::index_sequence<SHAPE...>) {
    return {{&tile<SHAPE / TILE_COLUMNS + 1, SHAPE % TILE_COLUMNS + 1, THEN, Left, Right>...}};
  }

  static constexpr Table table = make(std::make_index_sequence<TILE_ROWS * TILE_COLUMNS>());

  static void run(int rows, int columns, Left left, Right right, int inner, Vector* out, ptrdiff_t out_row) {
    table.shapes[(rows - 1) * TILE_COLUMNS + columns - 1](left, right, inner, out, out_row);
  }
};

// Size of the next tile along an axis: as large as possible, but the last two share what is left evenly (4 + 3, not
// 6 + 1).
INNERLOOP_INLINE int tile_size(int left_over, int largest) {
  if (left_over <= largest) return left_over;
  return left_over >= 2 * largest ? largest : (left_over + 1) / 2;
}

template <class Operand>
INNERLOOP_INLINE Operand shifted(Operand operand, int row, int column) {
  operand.data += row * operand.row + column * operand.column;
  return operand;
}

// out[rows, columns] = left[rows, inner] right[inner, columns], or is increased by it. The rows of `out` lie `out_row`
// apart.
template <Then THEN = Then::store, class Left, class Right>
void multiply(Left left, Right right, int rows, int inner, int columns, Vector* out, int out_row) {
  for (int i = 0, height; i < rows; i += height) {
    height = tile_size(rows - i, TILE_ROWS);
    for (int k = 0, width; k < columns; k += width) {
      width = tile_size(columns - k, TILE_COLUMNS);
      Tiles<THEN, Left, Right>::run(height, width, shifted(left, i, 0), shifted(right, 0, k), inner,
                                    out + i * out_row + k, out_row);
    }
  }
}

// Square matrices.
template <Then THEN = Then::store, class Left, class Right>
INNERLOOP_INLINE void multiply(Left left, Right right, int size, Vector* out) {
  multiply<THEN>(left, right, size, size, size, out, size);
}

// out[rows] = left[rows, inner] vector[inner], or is increased by it.
template <Then THEN = Then::store, class Left>
INNERLOOP_INLINE void apply(Left left, const Vector* vector, int rows, int inner, Vector* out) {
  multiply<THEN>(left, matrix(vector, 1), rows, inner, 1, out, 1);
}

// The same for a symmetric product: only tiles that touch the upper triangle are computed. `mirror` completes it, once,
// after the last addition.
template <Then THEN, class Left, class Right>
void multiply_upper(Left left, Right right, int size, int inner, Vector* out) {
  constexpr int LARGEST = TILE_ROWS < TILE_COLUMNS ? TILE_ROWS : TILE_COLUMNS;
  for (int i = 0, height; i < size; i += height) {
    height = tile_size(size - i, LARGEST);
    for (int k = i, width; k < size; k += width) {
      width = tile_size(size - k, LARGEST);
      Tiles<THEN, Left, Right>::run(height, width, shifted(left, i, 0), shifted(right, 0, k), inner, out + i * size + k,
                                    size);
    }
  }
}

// Copies the upper triangle to the lower one.
inline void mirror(Vector* symmetric, int size) {
  for (int i = 0; i < size; ++i)
    for (int k = i + 1; k < size; ++k) symmetric[k * size + i] = symmetric[i * size + k];
}

// out = Y + Y^T.
inline void symmetrised(const Vector* Y, int size, Vector* out) {
  for (int i = 0; i < size; ++i)
    for (int k = i; k < size; ++k) out[i * size + k] = out[k * size + i] = Y[i * size + k] + Y[k * size + i];
}

}  // namespace innerloop::INNERLOOP_TARGET
