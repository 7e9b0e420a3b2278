// rms_norm: x / sqrt(mean(x²) + eps) · (weight + offset), in float32, rounded once at the store.
#pragma once
#include "rows.cuh"

namespace emosteer::cuda {

template <class T>
__device__ __forceinline__ void load_weight(const Team& team, const NormArgs& norm, float (&weight)[kElements]) {
  switch (norm.weight_dtype) {
    case Dtype::f32:
      return load_row<T>(team, static_cast<const float*>(norm.weight), norm.dim, norm.weight_aligned, weight);
    case Dtype::bf16:
      return load_row<T>(team, static_cast<const __nv_bfloat16*>(norm.weight), norm.dim, norm.weight_aligned, weight);
    case Dtype::f16:
      return load_row<T>(team, static_cast<const __half*>(norm.weight), norm.dim, norm.weight_aligned, weight);
  }
}

// Writes the normalised x to row n of norm.out.
template <class T>
__device__ __forceinline__ void norm_row(Team& team, const NormArgs& norm, const float (&weight)[kElements], unsigned n,
                                         float (&x)[kElements]) {
  const float square = team.sum(dot<float>(x, x));
  float inverse;
  if (single_precision_holds(square)) {
    inverse = 1.f / sqrtf(square / static_cast<float>(norm.dim) + norm.eps);
  } else {
    const double exact = team.sum(dot<double>(x, x));
    inverse = static_cast<float>(1 / sqrt(exact / norm.dim + static_cast<double>(norm.eps)));
  }
#pragma unroll
  for (int i = 0; i < kElements; ++i) x[i] = x[i] * inverse * (weight[i] + norm.weight_offset);
  store_row(team, x, row_at<T>(norm.out, n), norm.dim, norm.out.aligned);
}

template <class T>
__global__ void __launch_bounds__(kMaxThreads, 2) rms_norm_kernel(const __grid_constant__ NormArgs args) {
  extern __shared__ double shared[];
  Team team(shared, args.scratch);
  const unsigned n = blockIdx.x * blockDim.y + threadIdx.y;
  if (n >= args.count) return;  // a whole warp, which is a whole row: no barrier waits for it
  float x[kElements], weight[kElements];
  load_row<T>(team, row_at<const T>(args.x, n), args.dim, args.x.aligned, x);
  load_weight<T>(team, args, weight);  // on its way while the row is summed
  norm_row<T>(team, args, weight, n, x);
}

}  // namespace emosteer::cuda
