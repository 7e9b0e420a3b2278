// steer and steer_rms_norm: one read of a row, its update y = a·x + Σ b_j v_j in registers, one write.
#pragma once
#include "exact.cuh"
#include "norm.cuh"

namespace emosteer::cuda {

enum class Outcome { unchanged, steered, inexact };  // inexact: float32 does not hold it, x may be lost

template <class T>
__device__ __forceinline__ void load_stream(const Team& team, const Stream<T>& stream, float (&x)[kElements]) {
#pragma unroll
  for (int i = 0; i < kElements / kPacket<T>; ++i)
    stream.template read<kPacket<T>>(team.start<T>(i), x + i * kPacket<T>);
}

// One direction: it stays in registers between the dot product and the update.
template <class T>
__device__ __forceinline__ Outcome steer_by_one(Team& team, const SteerArgs& args, const Program& program,
                                                float (&x)[kElements]) {
  const int slot = __ffs(program.used) - 1;
  float v[kElements];
  load_row<T>(team, Directions(args).of(program, slot), args.dim, args.directions_aligned, v);
  const float dots = sum_of_lanes(dot<float>(x, v)), squares = sum_of_lanes(dot<float>(x, x));
  const float sums = team.sum_of_warps(team.lane == 0 ? dots : squares);
  const float p = __shfl_sync(kAllLanes, sums, 0), square = __shfl_sync(kAllLanes, sums, 1);

  const float across = square - p * p;
  const bool split = program.preserve_norm == 2;
  if (program.needs_norm() && !single_precision_holds(square)) return Outcome::inexact;
  if ((program.rotates || split) && !(across > kCancelled * square)) return Outcome::inexact;

  const float norm = sqrtf(square), scale = static_cast<float>(args.scale);
  const Change<float> change =
      solve_slot(program, team.lane, p, 1.f, square, norm, program.relative ? scale * norm : scale);
  float a = 1 + __shfl_sync(kAllLanes, change.stay, slot), b = __shfl_sync(kAllLanes, change.b, slot);
  if (b == 0 && a == 1) return Outcome::unchanged;
  if (program.preserve_norm == 1) {
    const float added = a * a * square + b * b, after = added + 2 * a * b * p;  // ‖y‖²
    if (!(after > kCancelled * added)) return Outcome::inexact;
    const float g = sqrtf(square / after);
    a *= g;
    b *= g;
  } else if (split) {
    const float inside = a * p + b;
    float shrink, g;
    keep_orthogonal(norm, fabsf(inside), sqrtf(across), &shrink, &g);
    a = g;
    b = shrink * inside - g * p;
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) x[i] = a * x[i] + b * v[i];
  return Outcome::steered;
}

// <x, v_s> for the slot s of each lane.
template <class T>
__device__ __forceinline__ float projections(Team& team, const SteerArgs& args, const Program& program,
                                             const float (&x)[kElements]) {
  const Directions directions(args);
  float p = 0;
  for (unsigned left = program.used; left; left &= left - 1) {
    const int s = __ffs(left) - 1;
    float v[kElements];
    load_row<T>(team, directions.of(program, s), args.dim, args.directions_aligned, v);
    const float sum = sum_of_lanes(dot<float>(x, v));
    if (team.lane == s) p = sum;
  }
  return team.sum_of_warps(p);
}

// y += Σ b_s v_s, with b_s in lane s.
template <class T>
__device__ __forceinline__ void add_directions(const Team& team, const SteerArgs& args, const Program& program, float b,
                                               float (&y)[kElements]) {
  const Directions directions(args);
  for (unsigned left = program.used; left; left &= left - 1) {
    const int s = __ffs(left) - 1;
    const float of_slot = __shfl_sync(kAllLanes, b, s);
    float v[kElements];
    load_row<T>(team, directions.of(program, s), args.dim, args.directions_aligned, v);
#pragma unroll
    for (int i = 0; i < kElements; ++i) y[i] += of_slot * v[i];
  }
}

// preserve_norm = 2 of several directions: x becomes shrink·inside + g·outside. What is orthogonal to the
// directions is taken out twice: the second time removes what rounding left in it the first time.
template <class T>
__device__ __forceinline__ Outcome keep_norm_outside(Team& team, const SteerArgs& args, const Program& program,
                                                     double* shared, unsigned n, float square, float p, float b,
                                                     float a, float (&x)[kElements]) {
  float* gram = reinterpret_cast<float*>(shared);
  const Directions directions(args);
  gram_matrix<T>(team, directions, program, gram, args.table.slots);
  float share = 0, certain = 0;
  const bool solver = team.warp == 0;
  Factor<float> factor(gram, args.table.slots, solver ? program.used : 0, team.lane);
  if (solver) certain = factor.least > kDependent, share = factor.share(p, team.lane);
  if (team.sum_of_warps(certain) == 0) return Outcome::inexact;  // of every lane the same
  share = team.sum_of_warps(share);
  add_directions<T>(team, args, program, -share, x);
  const float left = projections<T>(team, args, program, x);
  share = team.sum_of_warps(solver ? factor.share(left, team.lane) : 0.f);
  add_directions<T>(team, args, program, -share, x);
  float within[kElements];
  load_stream(team, Stream<T>(args, n), within);  // again: two rows and a direction fill the registers
#pragma unroll
  for (int i = 0; i < kElements; ++i) within[i] = a * (within[i] - x[i]);
  add_directions<T>(team, args, program, b, within);

  const float ins = sum_of_lanes(dot<float>(within, within)), outs = sum_of_lanes(dot<float>(x, x));
  const float sums = team.sum_of_warps(team.lane == 0 ? ins : outs);
  const float inside = __shfl_sync(kAllLanes, sums, 0), outside = __shfl_sync(kAllLanes, sums, 1);
  if (!(outside > kCancelled * square) || !(fabsf(square - inside) > kCancelled * square)) return Outcome::inexact;
  float shrink, g;
  keep_orthogonal(sqrtf(square), sqrtf(inside), sqrtf(outside), &shrink, &g);
#pragma unroll
  for (int i = 0; i < kElements; ++i) x[i] = shrink * within[i] + g * x[i];
  return Outcome::steered;
}

// Several directions; each is read twice, four times where only what is orthogonal to them is rescaled.
template <class T>
__device__ __forceinline__ Outcome steer_by_several(Team& team, const SteerArgs& args, const Program& program,
                                                    double* shared, unsigned n, float (&x)[kElements]) {
  const float square = team.sum(dot<float>(x, x));
  const float p = projections<T>(team, args, program, x);
  if (program.needs_norm() && !single_precision_holds(square)) return Outcome::inexact;
  const bool cancels = program.rotate != 0 && !(square - p * p > kCancelled * square);
  if (__ballot_sync(kAllLanes, cancels)) return Outcome::inexact;

  const float norm = sqrtf(square), scale = static_cast<float>(args.scale);
  const Change<float> change =
      solve_slot(program, team.lane, p, 1.f, square, norm, program.relative ? scale * norm : scale);
  const float a = 1 + sum_of_lanes(change.stay);
  if (!__ballot_sync(kAllLanes, change.b != 0) && a == 1) return Outcome::unchanged;
  if (program.preserve_norm == 2)
    return keep_norm_outside<T>(team, args, program, shared, n, square, p, change.b, a, x);
#pragma unroll
  for (int i = 0; i < kElements; ++i) x[i] *= a;
  add_directions<T>(team, args, program, change.b, x);
  if (program.preserve_norm != 1) return Outcome::steered;
  const float after = team.sum(dot<float>(x, x));
  if (!(after > kCancelled * square)) return Outcome::inexact;
  const float g = sqrtf(square / after);
#pragma unroll
  for (int i = 0; i < kElements; ++i) x[i] *= g;
  return Outcome::steered;
}

// x becomes the steered row, stored in args.out where that differs from what lies there.
template <class T>
__device__ __forceinline__ void steer_row(Team& team, const SteerArgs& args, double* gram, unsigned n,
                                          float (&x)[kElements]) {
  const Stream<T> stream(args, n);
  load_stream(team, stream, x);
  const std::int64_t row = args.token_row ? args.token_row[n] : n / args.spread;
  const Program program = read_program(args.table, row, args.n_directions, team.lane);

  Outcome outcome = Outcome::unchanged;
  const int used = __popc(program.used);
  if (used == 1) outcome = steer_by_one<T>(team, args, program, x);
  if (used > 1) outcome = steer_by_several<T>(team, args, program, gram, n, x);
  if (outcome == Outcome::inexact) {
    // Read again, so that the common path need not keep it.
    const Program same = read_program(args.table, row, args.n_directions, team.lane);
    if (steer_exactly<T>(team, args, same, gram, n))
      return load_row<T>(team, row_at<const T>(args.out, n), args.dim, args.out.aligned, x);
    load_stream(team, stream, x);
    outcome = Outcome::unchanged;
  }
  if (outcome == Outcome::steered || args.residual.data)
    store_row(team, x, row_at<T>(args.out, n), args.dim, args.out.aligned);
  else if (args.out.data != args.x.data)
    copy_row(team, stream.x, row_at<T>(args.out, n), args.dim);
}

template <class T, bool kNorm>
__global__ void __launch_bounds__(kMaxThreads, 1) steer_kernel(const __grid_constant__ SteerArgs args) {
  extern __shared__ double shared[];
  Team team(shared, args.scratch);
  const unsigned n = blockIdx.x * blockDim.y + threadIdx.y;
  if (n >= args.count) return;  // a whole warp, which is a whole row: no barrier waits for it
  float x[kElements];
  if constexpr (kNorm) prefetch_weight(team, args.norm);  // on its way while the row is steered
  steer_row<T>(team, args, team.cells + args.gram, n, x);
  if constexpr (kNorm) {
    round_row<T>(x);  // the norm is that of the stream as it was stored
    norm_row<T>(team, args.norm, n, x);
  }
}

}  // namespace emosteer::cuda
