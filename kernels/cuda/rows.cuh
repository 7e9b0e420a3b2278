// One row of the residual stream, kept in the registers of a team of threads.
#pragma once
#include "packets.cuh"

namespace emosteer::cuda {

constexpr unsigned kAllLanes = 0xffffffffu;

template <class T>
__device__ __forceinline__ T* row_at(const RowView& view, unsigned n) {
  if (view.inner == 1) return reinterpret_cast<T*>(view.data + n * view.outer_stride);
  const unsigned inner = static_cast<unsigned>(view.inner);
  return reinterpret_cast<T*>(view.data + n / inner * view.outer_stride + n % inner * view.inner_stride);
}

// The threads that hold one row, all of a block or one warp of it. Where there are several warps, each
// of these functions that speaks of "the row" is a barrier of the block.
struct Team {
  int thread, threads;
  int lane, warp, warps;
  double* cells;  // 2 × warps × 32, where warps > 1
  int turn = 0;   // the half of `cells` to write next: the other may still be read

  __device__ __forceinline__ explicit Team(double* scratch, int scratch_of_each)
      : thread(static_cast<int>(threadIdx.x)),
        threads(static_cast<int>(blockDim.x)),
        lane(thread % kWarp),
        warp(thread / kWarp),
        warps(threads / kWarp),
        cells(scratch + threadIdx.y * scratch_of_each) {}

  // The sum over the warps of the row of what lanes of the same number hold.
  template <class Real>
  __device__ __forceinline__ Real sum_of_warps(Real value) {
    if (warps == 1) return value;
    Real* half = reinterpret_cast<Real*>(cells + turn * warps * kWarp);
    turn ^= 1;
    half[warp * kWarp + lane] = value;
    __syncthreads();
    Real sum = 0;
    for (int w = 0; w < warps; ++w) sum += half[w * kWarp + lane];
    return sum;
  }

  // The sum over all threads of the row.
  template <class Real>
  __device__ __forceinline__ Real sum(Real value);

  // Where packet i of this thread starts in the row.
  template <class T>
  __device__ __forceinline__ int start(int i) const {
    return (i * threads + thread) * kPacket<T>;
  }
};

template <class Real>
__device__ __forceinline__ Real sum_of_lanes(Real value) {
#pragma unroll
  for (int distance = kWarp / 2; distance > 0; distance /= 2) value += __shfl_xor_sync(kAllLanes, value, distance);
  return value;
}

template <class Real>
__device__ __forceinline__ Real Team::sum(Real value) {
  return sum_of_warps(sum_of_lanes(value));
}

// This thread's share of a row of U, laid out as the packets of T.
template <class T, class U>
__device__ __forceinline__ void load_row(const Team& team, const U* row, int dim, bool aligned,
                                         float (&to)[kElements]) {
#pragma unroll
  for (int i = 0; i < kElements / kPacket<T>; ++i)
    load<kPacket<T>>(row, team.start<T>(i), dim, aligned, to + i * kPacket<T>);
}

template <class T>
__device__ __forceinline__ void store_row(const Team& team, const float (&x)[kElements], T* row, int dim,
                                          bool aligned) {
#pragma unroll
  for (int i = 0; i < kElements / kPacket<T>; ++i) store(x + i * kPacket<T>, row, team.start<T>(i), dim, aligned);
}

// Every bit as it is, NaN payloads included.
template <class T>
__device__ __forceinline__ void copy_row(const Team& team, const T* from, T* to, int dim) {
  for (int i = team.thread; i < dim; i += team.threads) to[i] = from[i];
}

// What a store and a load would give back.
template <class T>
__device__ __forceinline__ void round_row(float (&x)[kElements]) {
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    T stored;
    narrow(x[i], &stored);
    x[i] = widen(stored);
  }
}

template <class Real>
__device__ __forceinline__ Real dot(const float (&x)[kElements], const float (&v)[kElements]) {
  Real sum = 0;
#pragma unroll
  for (int i = 0; i < kElements; ++i) sum += static_cast<Real>(x[i]) * static_cast<Real>(v[i]);
  return sum;
}

// Whether a sum of squares in float32 lost nothing to overflow or underflow (false for NaN).
__device__ __forceinline__ bool single_precision_holds(float square) { return square > 1e-30f && square < 1e30f; }

// ‖x‖² of the row, in double where float32 does not hold it.
__device__ __forceinline__ double square_of_row(Team& team, const float (&x)[kElements]) {
  const float square = team.sum(dot<float>(x, x));
  if (single_precision_holds(square)) return square;
  return team.sum(dot<double>(x, x));
}

}  // namespace emosteer::cuda
