#include "solve.hpp"

#include <algorithm>
#include <cmath>

namespace emosteer {
namespace {

constexpr double kGramTolerance = 1e-6;
constexpr double kParallel = 1e-6;
constexpr double kPi = 3.14159265358979323846;

double bound(float limit, double unit) { return std::isinf(limit) ? limit : limit * unit; }

// std::min/max would hide a NaN projection.
double clip(double p, double low, double high) { return p < low ? low : (p > high ? high : p); }

}  // namespace

void read_program(const SteerArgs& args, std::int64_t row, Program* program) {
  const Table& table = *args.table;
  program->count = 0;
  program->preserve_norm = table.preserve_norm[row * table.flag_line];
  program->relative = table.relative[row * table.flag_line] != 0;
  program->rotates = false;
  program->adds = true;
  program->scale = args.scale;
  for (std::int64_t s = row * table.line, end = s + table.slots; s < end; ++s) {
    if (table.direction[s] < 0) continue;
    const int j = program->count++;
    program->v[j] = args.directions + table.direction[s] * args.dim;
    program->strength[j] = table.strength[s];
    program->low[j] = table.low[s];
    program->high[j] = table.high[s];
    program->rotate[j] = table.rotate[s];
    program->rotates |= table.rotate[s] != 0;
    program->adds &= table.rotate[s] == 0 && table.low[s] == -HUGE_VALF && table.high[s] == HUGE_VALF;
  }
}

Update solve_slots(const Program& program, const double* p, double square, const double* length) {
  Update update;
  const double norm = program.needs_norm() ? std::sqrt(square) : 0;
  const double unit = program.relative ? program.scale * norm : program.scale;
  for (int j = 0; j < program.count; ++j) {
    double b =
        program.strength[j] * unit + (clip(p[j], bound(program.low[j], unit), bound(program.high[j], unit)) - p[j]);
    if (program.rotate[j] != 0) {
      const double unit_length = length ? length[j] : 1, along = p[j] / unit_length;
      const double outside = std::sqrt(std::max(square - along * along, 0.0));
      if (outside > norm * kParallel) {
        const double after = std::clamp(std::atan2(outside, along) - program.rotate[j], 0.0, kPi);
        const double ratio = std::sin(after) * norm / outside;
        update.a += ratio - 1;
        b += (std::cos(after) * norm - ratio * along) / unit_length;
      }
    }
    update.b[j] = b;
    update.changed |= b != 0;  // true for NaN
  }
  update.changed |= update.a != 1;
  return update;
}

void solve_share(int count, double* gram, const double* p, double* share) {
  // Cholesky with diagonal pivoting; the factor overwrites the lower triangle in pivot order.
  int order[kMaxSlots];
  double rest[kMaxSlots], y[kMaxSlots];
  double l[kMaxSlots][kMaxSlots];
  for (int i = 0; i < count; ++i) {
    order[i] = i;
    rest[i] = gram[i * count + i];
    share[i] = 0;
  }
  int rank = 0;
  for (; rank < count; ++rank) {
    int best = rank;
    for (int i = rank + 1; i < count; ++i)
      if (rest[order[i]] > rest[order[best]]) best = i;
    if (!(rest[order[best]] > kGramTolerance)) break;
    std::swap(order[rank], order[best]);
    const int pivot = order[rank];
    const double diagonal = std::sqrt(rest[pivot]);
    l[pivot][rank] = diagonal;
    for (int i = rank + 1; i < count; ++i) {
      const int at = order[i];
      double value = gram[at * count + pivot];
      for (int k = 0; k < rank; ++k) value -= l[at][k] * l[pivot][k];
      l[at][rank] = value / diagonal;
      rest[at] -= l[at][rank] * l[at][rank];
    }
  }
  for (int i = 0; i < rank; ++i) {
    y[i] = p[order[i]];
    for (int k = 0; k < i; ++k) y[i] -= l[order[i]][k] * y[k];
    y[i] /= l[order[i]][i];
  }
  for (int i = rank - 1; i >= 0; --i) {
    double value = y[i];
    for (int k = i + 1; k < rank; ++k) value -= l[order[k]][i] * share[order[k]];
    share[order[i]] = value / l[order[i]][i];
  }
}

void keep_orthogonal(double norm, double inside, double outside, double* shrink, double* g) {
  *shrink = inside > norm ? norm / inside : 1;
  const double room = std::sqrt(std::max(norm * norm - inside * inside, 0.0));
  *g = outside > norm * kParallel ? room / outside : 0;
}

}  // namespace emosteer
