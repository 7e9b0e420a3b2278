// The scalars of one row update, y = a·x + Σ b_j v_j, from ‖x‖² and the projections p_j.
#pragma once
#include "rows.hpp"

namespace emosteer {

// The used slots of one table row.
struct Program {
  int count = 0;
  int preserve_norm = 0;
  bool relative = false;
  bool rotates = false;
  bool adds = true;  // no slot clamps or rotates
  double scale = 1;
  const float* v[kMaxSlots];
  float strength[kMaxSlots], low[kMaxSlots], high[kMaxSlots], rotate[kMaxSlots];
  bool needs_norm() const { return relative || rotates || preserve_norm != 0; }
};

struct Update {
  double a = 1;
  double b[kMaxSlots];
  bool changed = false;
};

void read_program(const SteerArgs& args, std::int64_t row, Program* program);

// Before any norm is kept. `square` is ‖x‖² (ignored unless needs_norm); `length` holds the lengths of
// the directions, 1 up to float32 rounding, which only tell for rows that are nearly parallel to one.
Update solve_slots(const Program& program, const double* p, double square, const double* length = nullptr);

// x = Σ share_j v_j + a part orthogonal to every v_j: solves gram·share = p, leaving out directions
// that repeat earlier ones. `gram` is [count, count] and is overwritten.
void solve_share(int count, double* gram, const double* p, double* share);

// preserve_norm = 2, from ‖x‖, the length of the inside part and that of the orthogonal part:
// y = shrink·inside + g·outside.
void keep_orthogonal(double norm, double inside, double outside, double* shrink, double* g);

}  // namespace emosteer
