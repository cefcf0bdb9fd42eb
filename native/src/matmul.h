// Small matrix products, one independent product per lane, in register tiles.
//
// An operand is a pointer and two strides, so a transpose costs nothing. An operand of vectors is another matrix in
// every lane, one of floats the same matrix in all of them (weights).
#pragma once

#include <cstddef>
#include <type_traits>
#include <utility>

#include "simd.h"

namespace innerloop::INNERLOOP_TARGET {

// A size that is known when compiling, or (0) only when running. Code for both is written once: with N known, strides
// become constants and loops over tiles unroll.
template <int N>
struct Size {
  constexpr Size() = default;
  constexpr explicit Size(int) {}
  constexpr operator int() const { return N; }
};
template <>
struct Size<0> {
  int value;
  constexpr explicit Size(int size) : value(size) {}
  constexpr operator int() const { return value; }
};

template <class T>
constexpr bool is_known = false;
template <int N>
constexpr bool is_known<Size<N>> = N > 0;

template <class Scalar, class Row, class Column>
struct Operand {
  const Scalar* data;
  Row row;
  Column column;

  INNERLOOP_INLINE Vector at(int i, int j) const { return broadcast(data[ptrdiff_t(i) * row + ptrdiff_t(j) * column]); }

  INNERLOOP_INLINE Operand shifted(int i, int j) const {
    return {data + ptrdiff_t(i) * row + ptrdiff_t(j) * column, row, column};
  }
};

// A row-major matrix with rows of `width` entries, and its transpose.
template <class Scalar, class Width>
INNERLOOP_INLINE Operand<Scalar, Width, Size<1>> matrix(const Scalar* data, Width width) {
  return {data, width, {}};
}
template <class Scalar, class Width>
INNERLOOP_INLINE Operand<Scalar, Size<1>, Width> transposed(const Scalar* data, Width width) {
  return {data, {}, width};
}

// A tile's sums must fit in registers beside one row of the right operand: 24 of 32 with AVX-512, 12 of 16 without. A
// single column (a matrix-vector product) takes twelve rows, so that enough sums are in flight to hide the latency of
// the additions.
constexpr int TILE_ROWS = INNERLOOP_LANES == 16 ? 6 : 4;
constexpr int TILE_COLUMNS = INNERLOOP_LANES == 16 ? 4 : 3;
constexpr int COLUMN_ROWS = 12;

enum class Then { store, add };

// One tile of the product, its sums in registers all along. The loops over the tile must be unrolled for that: an array
// that is indexed at run time lives in memory.
template <int ROWS, int COLUMNS, Then THEN, class Left, class Right, class Inner, class OutRow>
INNERLOOP_INLINE void tile(Left left, Right right, Inner inner, Vector* out, OutRow out_row) {
  Vector sums[ROWS][COLUMNS];
  INNERLOOP_UNROLL
  for (int i = 0; i < ROWS; ++i) {
    INNERLOOP_UNROLL
    for (int k = 0; k < COLUMNS; ++k) sums[i][k] = THEN == Then::add ? out[ptrdiff_t(i) * out_row + k] : Vector{};
  }
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
  for (int i = 0; i < ROWS; ++i) {
    INNERLOOP_UNROLL
    for (int k = 0; k < COLUMNS; ++k) out[ptrdiff_t(i) * out_row + k] = sums[i][k];
  }
}

// Size of the next tile along an axis: as large as possible, but the last two share what is left evenly (4 + 3, not
// 6 + 1).
INNERLOOP_INLINE constexpr int tile_size(int left_over, int largest) {
  if (left_over <= largest) return left_over;
  return left_over >= 2 * largest ? largest : (left_over + 1) / 2;
}

// Largest tiles of a product. Of a symmetric product, UPPER computes only the tiles that touch the upper triangle,
// which are square.
template <bool UPPER, class Columns>
struct Tiling {
  static constexpr bool IS_COLUMN = std::is_same_v<Columns, Size<1>>;
  static constexpr int HEIGHT = IS_COLUMN ? COLUMN_ROWS : (UPPER ? TILE_COLUMNS : TILE_ROWS);
  static constexpr int WIDTH = IS_COLUMN ? 1 : TILE_COLUMNS;
};

// All tiles of a product of known size, from (I, K) on, one after the other in one function.
template <Then THEN, bool UPPER, int ROWS, int COLUMNS, int I, int K, class Left, class Right, class Inner,
          class OutRow>
INNERLOOP_INLINE void known_tiles(Left left, Right right, Inner inner, Vector* out, OutRow out_row) {
  using Largest = Tiling<UPPER, Size<COLUMNS>>;
  constexpr int height = tile_size(ROWS - I, Largest::HEIGHT), width = tile_size(COLUMNS - K, Largest::WIDTH);
  tile<height, width, THEN>(left.shifted(I, 0), right.shifted(0, K), inner, out + ptrdiff_t(I) * out_row + K, out_row);
  if constexpr (K + width < COLUMNS)
    known_tiles<THEN, UPPER, ROWS, COLUMNS, I, K + width>(left, right, inner, out, out_row);
  else if constexpr (I + height < ROWS)
    known_tiles<THEN, UPPER, ROWS, COLUMNS, I + height, UPPER ? I + height : 0>(left, right, inner, out, out_row);
}

// For sizes known only when running: a function for every shape of a tile.
template <int ROWS, int COLUMNS, Then THEN, class Left, class Right, class Inner, class OutRow>
__attribute__((noinline)) void separate_tile(Left left, Right right, Inner inner, Vector* out, OutRow out_row) {
  tile<ROWS, COLUMNS, THEN>(left, right, inner, out, out_row);
}

template <int HEIGHT, int WIDTH, Then THEN, class Left, class Right, class Inner, class OutRow>
struct TileTable {
  void (*shapes[HEIGHT * WIDTH])(Left, Right, Inner, Vector*, OutRow);

  template <size_t... SHAPE>
  static constexpr TileTable make(std::index_sequence<SHAPE...>) {
    return {{&separate_tile<SHAPE / WIDTH + 1, SHAPE % WIDTH + 1, THEN, Left, Right, Inner, OutRow>...}};
  }
};

// out[rows, columns] = left[rows, inner] right[inner, columns], or is increased by it. The rows of `out` lie `out_row`
// apart.
template <Then THEN = Then::store, bool UPPER = false, class Left, class Right, class Rows, class Inner, class Columns,
          class OutRow>
__attribute__((noinline)) void multiply(Left left, Right right, Rows rows, Inner inner, Columns columns, Vector* out,
                                        OutRow out_row) {
  if constexpr (is_known<Rows> && is_known<Columns>) {
    known_tiles<THEN, UPPER, Rows{}, Columns{}, 0, 0>(left, right, inner, out, out_row);
  } else {
    constexpr int HEIGHT = Tiling<UPPER, Columns>::HEIGHT, WIDTH = Tiling<UPPER, Columns>::WIDTH;
    using Table = TileTable<HEIGHT, WIDTH, THEN, Left, Right, Inner, OutRow>;
    static constexpr Table table = Table::make(std::make_index_sequence<HEIGHT * WIDTH>());
    for (int i = 0, height; i < rows; i += height) {
      height = tile_size(rows - i, HEIGHT);
      for (int k = UPPER ? i : 0, width; k < columns; k += width) {
        width = tile_size(columns - k, WIDTH);
        table.shapes[(height - 1) * WIDTH + width - 1](left.shifted(i, 0), right.shifted(0, k), inner,
                                                       out + ptrdiff_t(i) * out_row + k, out_row);
      }
    }
  }
}

// Square matrices.
template <Then THEN = Then::store, class Left, class Right, class Width>
INNERLOOP_INLINE void multiply(Left left, Right right, Width size, Vector* out) {
  multiply<THEN>(left, right, size, size, size, out, size);
}

// The upper triangle of a symmetric product. `mirror` completes it, once, after the last addition.
template <Then THEN = Then::store, class Left, class Right, class Width, class Inner>
INNERLOOP_INLINE void multiply_upper(Left left, Right right, Width size, Inner inner, Vector* out) {
  multiply<THEN, true>(left, right, size, inner, size, out, size);
}

// out[rows] = left[rows, inner] vector[inner], or is increased by it.
template <Then THEN = Then::store, class Left, class Rows, class Inner>
INNERLOOP_INLINE void apply(Left left, const Vector* vector, Rows rows, Inner inner, Vector* out) {
  multiply<THEN>(left, matrix(vector, Size<1>()), rows, inner, Size<1>(), out, Size<1>());
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
