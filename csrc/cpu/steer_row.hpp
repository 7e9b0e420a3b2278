// Steering one row: in float32 where its sums hold, in double where they overflow, vanish or cancel. For rows.cpp
// alone, as lanes.hpp.
#pragma once
#include "row_loops.hpp"

namespace emosteer {
namespace {

// In double throughout, norms taken from the vectors themselves: for rows whose sums overflow, vanish
// or cancel in single precision, and for several directions under preserve_norm = 2.
template <class T, class U>
bool steer_exactly(const Program& program, const T* stored, U* y, std::int64_t dim) {
  const float* x = floats(stored, scratch_floats(1, dim), dim);
  double* row = scratch_doubles(0, dim);
  double* inside = scratch_doubles(1, dim);
  double p[kMaxSlots], share[kMaxSlots], gram[kMaxSlots * kMaxSlots];
  double square = 0;
  for (std::int64_t i = 0; i < dim; ++i) row[i] = x[i];
#pragma omp simd reduction(+ : square)
  for (std::int64_t i = 0; i < dim; ++i) square += row[i] * row[i];
  double length[kMaxSlots];
  for (int j = 0; j < program.count; ++j) {
    p[j] = dot_double(row, program.v[j], dim);
    length[j] = program.rotates ? length_of(program.v[j], dim) : 1;
  }
  const Update update = solve_slots(program, p, square, length);
  const double norm = __builtin_sqrt(square);
  if (!update.changed) return false;
  const bool split = program.preserve_norm == 2;
  if (split) {
    gram_matrix(program, dim, gram);
    solve_share(program.count, gram, p, share);
  }
  // y = inside + outside, all of it "outside" unless the two are told apart.
  for (std::int64_t i = 0; i < dim; ++i) inside[i] = 0;
  for (int j = 0; j < program.count; ++j) {
    const double in = split ? update.a * share[j] + update.b[j] : update.b[j], out = split ? share[j] : 0;
    const float* v = program.v[j];
#pragma omp simd
    for (std::int64_t i = 0; i < dim; ++i) {
      inside[i] += in * v[i];
      row[i] -= out * v[i];
    }
  }
  double shrink = 1, g = update.a;
  double inside_square = 0, outside_square = 0, total_square = 0;
#pragma omp simd reduction(+ : inside_square, outside_square, total_square)
  for (std::int64_t i = 0; i < dim; ++i) {
    const double whole = inside[i] + update.a * row[i];
    inside_square += inside[i] * inside[i];
    outside_square += row[i] * row[i];
    total_square += whole * whole;
  }
  if (split) {
    keep_orthogonal(norm, __builtin_sqrt(inside_square), __builtin_sqrt(outside_square), &shrink, &g);
  } else if (program.preserve_norm == 1 && total_square > 0) {
    shrink = norm / __builtin_sqrt(total_square);
    g = update.a * shrink;
  }
  float* result = scratch_floats(1, dim);
  for (std::int64_t i = 0; i < dim; ++i) result[i] = static_cast<float>(shrink * inside[i] + g * row[i]);
  scaled(as_f32(result), 1, y, dim);
  return true;
}

// Below this share of what was added up, a sum of squares has lost too many digits to cancellation.
constexpr double kCancelled = 1e-3;

inline bool single_precision_holds(double square) { return square > 1e-30 && square < 1e30; }

template <class T, class U>
bool steer_by_several(const Program& program, const T* stored, U* y, std::int64_t dim) {
  const float* x = floats(stored, scratch_floats(1, dim), dim);
  double p[kMaxSlots], square;
  dot_and_square(as_f32(x), program.v[0], dim, &p[0], &square);
  for (int j = 1; j < program.count; ++j) p[j] = dot(x, program.v[j], dim);
  if (program.preserve_norm == 2) return steer_exactly(program, stored, y, dim);
  if (program.needs_norm() && !single_precision_holds(square)) return steer_exactly(program, stored, y, dim);
  if (program.rotates)
    for (int j = 0; j < program.count; ++j)
      if (!(square - p[j] * p[j] > kCancelled * square)) return steer_exactly(program, stored, y, dim);

  const Update update = solve_slots(program, p, square);
  if (!update.changed) return false;
  f32* sum = as_f32(scratch_floats(3, dim));  // not y: the row may still be needed
  scaled_sum(as_f32(x), program.v[0], static_cast<float>(update.a), static_cast<float>(update.b[0]), sum, dim);
  for (int j = 1; j < program.count; ++j) scaled_sum(sum, program.v[j], 1, static_cast<float>(update.b[j]), sum, dim);
  float g = 1;
  if (program.preserve_norm == 1) {
    const double after = square_of(sum, dim);
    if (!(after > kCancelled * square)) return steer_exactly(program, stored, y, dim);
    g = static_cast<float>(__builtin_sqrt(square / after));
  }
  scaled(sum, g, y, dim);
  return true;
}

// What is to be done with a row of one slot: leave it, compute y = a·x + b·v, or compute in double.
enum class Way { keep, sum, exactly };

inline Way solve_row(const Program& program, double p, double square, float* a_out, float* b_out) {
  const double outside = square - p * p;
  const bool split = program.preserve_norm == 2;
  if (program.needs_norm() && !single_precision_holds(square)) return Way::exactly;
  if ((program.rotates || split) && !(outside > kCancelled * square)) return Way::exactly;

  double a = 1, b;
  if (program.adds) {  // the common case, without the call; p − p passes on a NaN
    b = program.strength[0] * (program.relative ? program.scale * __builtin_sqrt(square) : program.scale) + (p - p);
    if (b == 0) return Way::keep;
  } else {
    const Update update = solve_slots(program, &p, square);
    if (!update.changed) return Way::keep;
    a = update.a;
    b = update.b[0];
  }
  if (program.preserve_norm == 1) {
    const double added = a * a * square + b * b, after = added + 2 * a * b * p;  // ‖y‖²
    if (!(after > kCancelled * added)) return Way::exactly;
    const double g = __builtin_sqrt(square / after);
    a *= g;
    b *= g;
  } else if (split) {
    const double inside = a * p + b;
    double shrink, g;
    keep_orthogonal(__builtin_sqrt(square), __builtin_fabs(inside), __builtin_sqrt(outside), &shrink, &g);
    a = g;
    b = shrink * inside - g * p;
  }
  *a_out = static_cast<float>(a);
  *b_out = static_cast<float>(b);
  return Way::sum;
}

// y = steered x, rounded once, of R rows with the same program of one slot. `y` may be `x`; a row that
// stays bit for bit as it is gets changed[r] = false and nothing written.
template <int R, class T, class U>
inline void steer_rows_by_one(const Program& program, const T* const* x, U* const* y, std::int64_t dim, bool* changed) {
  double p[R], square[R];
  float a[R], b[R];
  Way way[R];
  bool all_sums = true;
  dots_and_squares<R>(x, program.v[0], dim, p, square);
  for (int r = 0; r < R; ++r) {
    way[r] = solve_row(program, p[r], square[r], &a[r], &b[r]);
    all_sums &= way[r] == Way::sum;
    changed[r] = way[r] != Way::keep;
  }
  if (all_sums) return scaled_sums<R>(x, program.v[0], a, b, y, dim);
  for (int r = 0; r < R; ++r) {
    if (way[r] == Way::sum) scaled_sum(x[r], program.v[0], a[r], b[r], y[r], dim);
    if (way[r] == Way::exactly) changed[r] = steer_exactly(program, x[r], y[r], dim);
  }
}

template <class T, class U>
inline bool steer_row(const Program& program, const T* x, U* y, std::int64_t dim) {
  if (program.count > 1) return steer_by_several(program, x, y, dim);
  bool changed;
  steer_rows_by_one<1>(program, &x, &y, dim, &changed);
  return changed;
}

}  // namespace
}  // namespace emosteer
