// project: <x − center, v_k>, divided by ‖x − center‖ for cosines; a block takes one row and a few directions.
#pragma once
#include "rows.cuh"

namespace emosteer::cuda {

template <class T>
__global__ void __launch_bounds__(kMaxThreads, 2) project_kernel(const __grid_constant__ ProjectArgs args) {
  extern __shared__ double shared[];
  Team team(shared, args.scratch);
  const unsigned n = blockIdx.x * blockDim.y + threadIdx.y;
  if (n >= args.count) return;  // a whole warp, which is a whole row: no barrier waits for it
  const int first = static_cast<int>(blockIdx.y) * kDirectionsPerBlock;
  float x[kElements];
  load_row<T>(team, row_at<const T>(args.x, n), args.dim, args.x.aligned, x);
  if (args.center) {
    float center[kElements];
    load_row<T>(team, args.center, args.dim, args.center_aligned, center);
#pragma unroll
    for (int i = 0; i < kElements; ++i) x[i] -= center[i];
  }

  float mine = 0;  // lane j holds the sum for direction first + j
#pragma unroll
  for (int j = 0; j < kDirectionsPerBlock; ++j) {
    if (first + j >= args.n_directions) break;
    float v[kElements];
    load_row<T>(team, args.directions + static_cast<std::int64_t>(first + j) * args.dim, args.dim,
                args.directions_aligned, v);
    const float sum = sum_of_lanes(dot<float>(x, v));
    if (team.lane == j) mine = sum;
  }
  mine = team.sum_of_warps(mine);

  if (args.cosine) {
    const double norm = sqrt(square_of_row(team, x));
    mine = norm == 0 ? 0.f : static_cast<float>(mine / norm);
  }
  if (team.warp == 0 && team.lane < kDirectionsPerBlock && first + team.lane < args.n_directions)
    args.dots[static_cast<std::int64_t>(n) * args.n_directions + first + team.lane] = mine;
}

}  // namespace emosteer::cuda
