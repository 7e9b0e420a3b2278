// The program of one table row, a slot a lane, and the scalars of y = a·x + Σ b_j v_j that follow from
// ‖x‖ and the projections p_j. `emosteer.ops.SteerTable` states the formula.
#pragma once
#include "rows.cuh"

namespace emosteer::cuda {

// Below this share of what was added up, a sum of squares has lost too many digits to cancellation.
constexpr float kCancelled = 1e-3f;
// A part of x shorter than this share of it counts as none.
constexpr float kParallel = 1e-6f;
// Directions that repeat each other make the Gram matrix singular; below this it counts as such.
constexpr double kGramTolerance = 1e-6;
// And below this float32 does not tell what one adds to the others.
constexpr float kDependent = 1e-3f;

struct Program {
  unsigned used = 0;     // bit s: slot s steers; 0: the row is left alone
  unsigned rotates = 0;  // bit s: slot s rotates
  int preserve_norm = 0;
  bool relative = false;
  // The slot of this lane; what an unused one holds is of no account.
  int direction = 0;
  float strength = 0, low = 0, high = 0, rotate = 0;

  __device__ __forceinline__ bool needs_norm() const { return relative || rotates || preserve_norm; }
  __device__ __forceinline__ bool is_used(int lane) const { return used >> lane & 1; }
};

// An index outside its range, of the row or of a direction, counts as empty.
__device__ __forceinline__ Program read_program(const Table& table, std::int64_t row, int n_directions, int lane) {
  Program program;
  if (row < 0 || row >= table.rows) return program;
  const std::int64_t at = row * table.line + lane;
  bool used = false;
  if (lane < table.slots) {  // all of a slot at once: nothing here waits for its direction
    program.direction = table.direction[at];
    program.strength = table.strength[at];
    program.low = table.low[at];
    program.high = table.high[at];
    program.rotate = table.rotate[at];
    used = program.direction >= 0 && program.direction < n_directions;
  }
  if (!used) program.rotate = 0;
  program.used = __ballot_sync(kAllLanes, used);
  program.rotates = __ballot_sync(kAllLanes, program.rotate != 0);
  program.preserve_norm = table.preserve_norm[row * table.flag_line];
  program.relative = table.relative[row * table.flag_line] != 0;
  return program;
}

__device__ __forceinline__ float root(float x) { return sqrtf(x); }
__device__ __forceinline__ double root(double x) { return sqrt(x); }
// Of multiples of π: the general ones keep a table in local memory for large angles.
__device__ __forceinline__ void sine_cosine(float turns, float* s, float* c) { sincospif(turns, s, c); }
__device__ __forceinline__ void sine_cosine(double turns, double* s, double* c) { sincospi(turns, s, c); }

// An infinite bound stays infinite where the unit of length is 0.
template <class Real>
__device__ __forceinline__ Real bound(float limit, Real unit) {
  return isinf(limit) ? static_cast<Real>(limit) : limit * unit;
}

template <class Real>
struct Change {
  Real stay = 0;  // adds to a = 1
  Real b = 0;
};

// What the slot of this lane does, before any norm is kept. `length` is that of the direction, 1 up to
// float32 rounding, which only tells for rows that are nearly parallel to it.
template <class Real>
__device__ __forceinline__ Change<Real> solve_slot(const Program& program, int lane, Real p, Real length, Real square,
                                                   Real norm, Real unit) {
  Change<Real> change;
  if (!program.is_used(lane)) return change;
  const Real low = bound(program.low, unit), high = bound(program.high, unit);
  const Real clipped = p < low ? low : (p > high ? high : p);  // min and max would hide a NaN
  change.b = program.strength * unit + (clipped - p);
  if (program.rotate == 0) return change;
  // x = norm·(cos β, sin β) in the plane of v and x turns to β − angle and stops at 0 and π.
  const Real along = p / length, across = square - along * along, outside = across > 0 ? root(across) : 0;
  if (!(outside > norm * kParallel)) return change;
  Real sine, cosine;
  sine_cosine(program.rotate * static_cast<Real>(0.318309886183790671538), &sine, &cosine);
  Real ratio = cosine - along / outside * sine;  // of the parts across v, after and before
  Real after = along * cosine + outside * sine;
  if (ratio < 0) {
    ratio = 0;
    after = program.rotate > 0 ? norm : -norm;
  }
  change.stay = ratio - 1;
  change.b += (after - ratio * along) / length;
  return change;
}

// preserve_norm = 2: y = shrink·inside + g·outside keeps the norm, from the lengths of both parts.
template <class Real>
__device__ __forceinline__ void keep_orthogonal(Real norm, Real inside, Real outside, Real* shrink, Real* g) {
  *shrink = inside > norm ? norm / inside : 1;
  const Real room = norm * norm - inside * inside;
  *g = outside > norm * kParallel && room > 0 ? root(room) / outside : 0;
}

// A Cholesky factor of a Gram matrix [S, S] with diagonal pivoting, by one warp, a lane a slot. Row `pivot` of
// the matrix is overwritten with the column of the factor that it leads to; directions that repeat earlier ones
// are left out.
template <class Real>
struct Factor {
  Real* gram;
  int slots, rank = 0;
  int place = -1;  // of this lane's slot among the pivots
  int order = 0;   // lane i: the slot of pivot i
  Real least = 1;  // of the squares of what each direction adds to those before it

  __device__ __forceinline__ Factor(Real* gram, int slots, unsigned used, int lane) : gram(gram), slots(slots) {
    const bool mine = used >> lane & 1;
    Real rest = mine ? gram[lane * slots + lane] : 0;
    for (const int count = __popc(used); rank < count; ++rank) {
      Real best = mine && place < 0 ? rest : -1;
      int pivot = lane;
#pragma unroll
      for (int distance = kWarp / 2; distance > 0; distance /= 2) {
        const Real other = __shfl_xor_sync(kAllLanes, best, distance);
        const int at = __shfl_xor_sync(kAllLanes, pivot, distance);
        if (other > best || (other == best && at < pivot)) best = other, pivot = at;
      }
      best = __shfl_sync(kAllLanes, best, 0);  // one answer for all, also among NaNs
      pivot = __shfl_sync(kAllLanes, pivot, 0);
      least = best < least ? best : least;
      if (!(best > static_cast<Real>(kGramTolerance))) break;
      const Real diagonal = root(best);
      Real value = mine ? gram[pivot * slots + lane] : 0;
      for (int k = 0; k < rank; ++k) {
        const Real* column = gram + __shfl_sync(kAllLanes, order, k) * slots;
        if (mine) value -= column[lane] * column[pivot];
      }
      value = lane == pivot ? diagonal : value / diagonal;
      if (mine) gram[pivot * slots + lane] = value;
      if (lane == rank) order = pivot;
      if (lane == pivot) place = rank;
      if (place < 0) rest -= value * value;
      __syncwarp();
    }
  }

  // x = Σ share_j v_j + a part orthogonal to every v_j, for p_j = <x, v_j>: the share of this lane, 0 where its
  // slot is unused or left out.
  __device__ __forceinline__ Real share(Real p, int lane) const {
    Real right = p;
    for (int i = 0; i < rank; ++i) {
      const int pivot = __shfl_sync(kAllLanes, order, i);
      const Real* column = gram + pivot * slots;
      const Real solved = __shfl_sync(kAllLanes, right, pivot) / column[pivot];
      if (lane == pivot)
        right = solved;
      else if (place > i)
        right -= column[lane] * solved;
    }
    for (int i = rank - 1; i >= 0; --i) {
      const int pivot = __shfl_sync(kAllLanes, order, i);
      if (lane == pivot) right /= gram[pivot * slots + pivot];
      const Real share = __shfl_sync(kAllLanes, right, pivot);
      if (place >= 0 && place < i) right -= gram[lane * slots + pivot] * share;
    }
    return place >= 0 ? right : 0;
  }
};

}  // namespace emosteer::cuda
