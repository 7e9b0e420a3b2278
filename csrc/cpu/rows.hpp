// What the row kernels take, and the table of them that each instruction set fills in.
//
// Everything is a raw address, a size or a stride: no framework type appears below the bindings.
#pragma once
#include <cstdint>

namespace emosteer {

enum class Dtype : int { f32 = 0, bf16 = 1, f16 = 2 };

constexpr int kMaxSlots = 32;

// Rows of a tensor whose leading dimensions collapse to two strides: row n = (n / inner, n % inner).
struct RowView {
  std::uintptr_t data = 0;
  std::int64_t inner = 1;         // rows in the inner leading dimension
  std::int64_t outer_stride = 0;  // bytes
  std::int64_t inner_stride = 0;  // bytes
  std::uintptr_t at(std::int64_t n) const {
    if (inner == 1) return data + static_cast<std::uintptr_t>(n * outer_stride);  // a division a row tells
    return data + static_cast<std::uintptr_t>((n / inner) * outer_stride + (n % inner) * inner_stride);
  }
};

// The columns of a SteerTable (R rows of S slots), at fixed addresses. Rows are `line` entries of a slotted column
// apart and `flag_line` bytes of the two flags: in a packed record all of a row lies side by side.
struct Table {
  std::int64_t rows, slots;
  const std::int32_t* direction;
  const float *strength, *low, *high, *rotate;
  const std::uint8_t *preserve_norm, *relative;
  std::int64_t line, flag_line;
};

struct SteerArgs {
  Dtype dtype;
  std::int64_t count, dim;
  RowView x, out;    // the same view in place
  RowView residual;  // data == 0: none
  RowView normed;    // data == 0: no norm after steering
  std::uintptr_t weight = 0;
  Dtype weight_dtype = Dtype::f32;
  float eps = 0, weight_offset = 0;
  const float* directions;
  std::int64_t n_directions;
  const Table* table;
  const std::int32_t* token_row;  // null: a dense batch
  double scale;
};

struct NormArgs {
  Dtype dtype, weight_dtype;
  std::int64_t dim;
  RowView x, out;
  std::uintptr_t weight;
  float eps, weight_offset;
};

struct ProjectArgs {
  Dtype dtype;
  std::int64_t dim, n_directions;
  RowView x;
  const float* directions;  // null: write only the rows and their norms
  const float* center;      // null: none
  bool cosine;
  float* dots;   // [N, K]
  float* rows;   // [N, D] of x − center; null: not wanted
  float* norms;  // [N]; null: not wanted
};

struct MomentArgs {
  Dtype dtype;
  std::int64_t count, dim;
  RowView x;
  const std::int32_t* group;  // null: all in group 0
  const float* weight;        // null: all 1
  const double* shift;
  double* sum;              // [C, D]; written on the columns of the call alone
  float* rows;              // [N, D] of sqrt(w)·(x − shift), 0 where not counted; null: not wanted
  std::int64_t row_stride;  // of rows, in floats
};

// Row functions work on rows [begin, end), `moments` on columns [begin, end) of all rows.
struct Kernels {
  const char* name;
  void (*steer)(const SteerArgs&, std::int64_t begin, std::int64_t end);
  void (*rms_norm)(const NormArgs&, std::int64_t begin, std::int64_t end);
  void (*project)(const ProjectArgs&, std::int64_t begin, std::int64_t end);
  void (*moments)(const MomentArgs&, std::int64_t begin, std::int64_t end);
};

const Kernels& best_kernels();

// Scratch of one thread, kept between calls: `n` floats (which = 0 to 3) or doubles (which = 0, 1).
float* scratch_floats(int which, std::int64_t n);
double* scratch_doubles(int which, std::int64_t n);

}  // namespace emosteer
