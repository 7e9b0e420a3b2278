// Steering one row in double, norms taken from the vectors themselves: for rows whose sums overflow,
// vanish or cancel in float32, and directions so nearly dependent that it cannot tell them apart. It is rare,
// so it reads the row again, a few elements at a time, and costs the common path no register.
#pragma once
#include "program.cuh"

namespace emosteer::cuda {

// A thread's elements in fours, in the order of its packets; not unrolled.
template <class T, class Body>
__device__ __forceinline__ void for_each_quad(const Team& team, const Body& body) {
  constexpr int kQuads = kPacket<T> / 4;  // of a packet
#pragma unroll 1
  for (int quad = 0; quad < kElements / 4; ++quad) body(team.start<T>(quad / kQuads) + quad % kQuads * 4);
}

// x (+ residual), as the float32 that the row starts from.
template <class T>
struct Stream {
  const T *x, *residual;
  int dim;
  bool x_aligned, residual_aligned;

  __device__ __forceinline__ Stream(const SteerArgs& args, unsigned n)
      : x(row_at<const T>(args.x, n)),
        residual(args.residual.data ? row_at<const T>(args.residual, n) : nullptr),
        dim(args.dim),
        x_aligned(args.x.aligned),
        residual_aligned(args.residual.aligned) {}

  template <int kCount>
  __device__ __forceinline__ void read(int at, float* to) const {
    load<kCount>(x, at, dim, x_aligned, to);
    if (!residual) return;
    float other[kCount];
    load<kCount>(residual, at, dim, residual_aligned, other);
#pragma unroll
    for (int i = 0; i < kCount; ++i) to[i] += other[i];
  }
};

struct Directions {
  const float* data;
  int dim;
  bool aligned;

  __device__ __forceinline__ explicit Directions(const SteerArgs& args)
      : data(args.directions), dim(args.dim), aligned(args.directions_aligned) {}
  // The direction of slot s, whose index lane s holds.
  __device__ __forceinline__ const float* of(const Program& program, int s) const {
    return data + static_cast<std::int64_t>(__shfl_sync(kAllLanes, program.direction, s)) * dim;
  }
};

// <v_s, v_t> of the used slots, computed by the team, left in the shared memory of the first warp.
template <class T, class Real>
__device__ __forceinline__ void gram_matrix(Team& team, const Directions& directions, const Program& program,
                                            Real* gram, int slots) {
  for (unsigned rows = program.used; rows; rows &= rows - 1) {
    const int s = __ffs(rows) - 1;
    const float* u = directions.of(program, s);
    Real mine = 0;  // lane t: <v_s, v_t>
    for (unsigned columns = program.used & ((2u << s) - 1); columns; columns &= columns - 1) {
      const int t = __ffs(columns) - 1;
      const float* v = directions.of(program, t);
      Real sum = 0;
      for_each_quad<T>(team, [&](int at) {
        float a[4], b[4];
        load<4>(u, at, directions.dim, directions.aligned, a);
        load<4>(v, at, directions.dim, directions.aligned, b);
#pragma unroll
        for (int i = 0; i < 4; ++i) sum += static_cast<Real>(a[i]) * b[i];
      });
      sum = sum_of_lanes(sum);
      if (team.lane == t) mine = sum;
    }
    mine = team.sum_of_warps(mine);
    if (team.warp == 0 && program.is_used(team.lane) && team.lane <= s)
      gram[s * slots + team.lane] = gram[team.lane * slots + s] = mine;
  }
  __syncwarp();
}

// Writes row n of args.out, rounded once; false, and nothing written, where the row stays as it is.
template <class T>
__device__ __forceinline__ bool steer_exactly(Team& team, const SteerArgs& args, const Program& program, double* gram,
                                              unsigned n) {
  const Stream<T> stream(args, n);
  const Directions directions(args);
  double square = 0, p = 0, length = 0;  // of the slot of this lane
  for (unsigned left = program.used; left; left &= left - 1) {
    const int s = __ffs(left) - 1;
    const float* v = directions.of(program, s);
    double along = 0, of_direction = 0;
    square = 0;
    for_each_quad<T>(team, [&](int at) {
      float a[4], b[4];
      stream.template read<4>(at, a);
      load<4>(v, at, directions.dim, directions.aligned, b);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        along += static_cast<double>(a[i]) * b[i];
        of_direction += static_cast<double>(b[i]) * b[i];
        square += static_cast<double>(a[i]) * a[i];
      }
    });
    along = sum_of_lanes(along);
    of_direction = sum_of_lanes(of_direction);
    if (team.lane == s) p = along, length = of_direction;
  }
  square = team.sum(square);
  p = team.sum_of_warps(p);
  length = sqrt(team.sum_of_warps(length));

  const double norm = sqrt(square);
  const Change<double> change =
      solve_slot(program, team.lane, p, length, square, norm, program.relative ? args.scale * norm : args.scale);
  const double a = 1 + sum_of_lanes(change.stay);
  if (!__ballot_sync(kAllLanes, change.b != 0) && a == 1) return false;

  // y = shrink·inside + g·outside: all of x is outside unless the two are told apart.
  double inside = change.b, outside = 0, shrink = 1, g = a;
  const bool split = program.preserve_norm == 2;
  if (split) {
    gram_matrix<T>(team, directions, program, gram, args.table.slots);
    double share = 0;
    if (team.warp == 0) share = Factor<double>(gram, args.table.slots, program.used, team.lane).share(p, team.lane);
    outside = team.sum_of_warps(share);
    inside = a * outside + change.b;
  }
  const auto parts = [&](int at, double (&in)[4], double (&out)[4]) {
    float row[4];
    stream.template read<4>(at, row);
#pragma unroll
    for (int i = 0; i < 4; ++i) in[i] = 0, out[i] = row[i];
    for (unsigned left = program.used; left; left &= left - 1) {
      const int s = __ffs(left) - 1;
      const float* of_slot = directions.of(program, s);
      const double to_in = __shfl_sync(kAllLanes, inside, s), to_out = __shfl_sync(kAllLanes, outside, s);
      float v[4];
      load<4>(of_slot, at, directions.dim, directions.aligned, v);
#pragma unroll
      for (int i = 0; i < 4; ++i) in[i] += to_in * v[i], out[i] -= to_out * v[i];
    }
  };
  if (program.preserve_norm == 1 || split) {
    double inside_square = 0, outside_square = 0, whole_square = 0;
    for_each_quad<T>(team, [&](int at) {
      double in[4], out[4];
      parts(at, in, out);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const double whole = in[i] + a * out[i];
        inside_square += in[i] * in[i];
        outside_square += out[i] * out[i];
        whole_square += whole * whole;
      }
    });
    inside_square = team.sum(inside_square);
    outside_square = team.sum(outside_square);
    whole_square = team.sum(whole_square);
    if (split) {
      keep_orthogonal(norm, sqrt(inside_square), sqrt(outside_square), &shrink, &g);
    } else if (whole_square > 0) {
      shrink = norm / sqrt(whole_square);
      g = a * shrink;
    }
  }
  T* result = row_at<T>(args.out, n);
  for_each_quad<T>(team, [&](int at) {
    double in[4], out[4];
    parts(at, in, out);
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (at + i < args.dim) narrow(static_cast<float>(shrink * in[i] + g * out[i]), result + at + i);
  });
  return true;
}

}  // namespace emosteer::cuda
