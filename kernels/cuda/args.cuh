// What the kernels take: addresses, sizes and strides, passed by value. Plain C++, for hosts too.
#pragma once
#include <cstdint>

namespace emosteer::cuda {

enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2 };

// Rows of a tensor whose leading dimensions collapse to two strides: row n = (n / inner, n % inner).
struct RowView {
  char* data = nullptr;           // a pointer, not a number: the compiler must see that it is global memory
  std::int64_t inner = 1;         // rows in the inner leading dimension
  std::int64_t outer_stride = 0;  // bytes
  std::int64_t inner_stride = 0;  // bytes
  bool aligned = false;           // every row starts at a multiple of 16 bytes
};

// The columns of a SteerTable (R rows of S slots), at fixed addresses. Rows are `line` entries of a slotted column
// apart and `flag_line` bytes of the two flags: in a packed record all of a row lies side by side.
struct Table {
  std::int64_t rows;
  int slots;
  const std::int32_t* direction;
  const float *strength, *low, *high, *rotate;
  const std::uint8_t *preserve_norm, *relative;
  std::int64_t line, flag_line;
};

struct NormArgs {
  unsigned count;
  int dim;
  RowView x, out;
  const void* weight;
  Dtype weight_dtype;
  bool weight_aligned;
  float eps, weight_offset;
  int scratch;  // doubles of shared memory a row
};

struct SteerArgs {
  unsigned count;
  int dim, n_directions;
  RowView x, out;    // the same view in place
  RowView residual;  // data == null: none
  const float* directions;
  bool directions_aligned;
  Table table;
  const std::int32_t* token_row;  // null: a dense batch of `spread` tokens a table row
  unsigned spread;
  double scale;
  int scratch;    // doubles of shared memory a row: the team's cells, then the Gram matrix
  int gram;       // where the Gram matrix starts
  NormArgs norm;  // of steer_rms_norm; `norm.out` takes the normalised stream
};

struct ProjectArgs {
  unsigned count;
  int dim, n_directions;
  RowView x;
  const float* directions;
  const float* center;  // null: none
  bool directions_aligned, center_aligned;
  bool cosine;
  float* dots;  // [N, K]
  int scratch;  // doubles of shared memory a row
};

// Elements of a row that one thread keeps in registers.
constexpr int kElements = 16;
constexpr int kWarp = 32;
// Bytes that the caches take from memory at a time.
constexpr int kLine = 128;
constexpr int kMaxThreads = 512;
constexpr int kMaxDim = kElements * kMaxThreads;
// A warp reads the slots of a table row at once and solves them side by side.
constexpr int kMaxSlots = kWarp;
// Rows that share a block where one warp holds a row; a longer row has a block to itself.
constexpr int kRowsPerBlock = 4;
// Directions of one block of project: their sums share one barrier, and many blocks share a row.
constexpr int kDirectionsPerBlock = 4;

}  // namespace emosteer::cuda
