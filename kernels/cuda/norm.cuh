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

// Asks for the weight from memory, into the L2 cache: that takes no register.
__device__ __forceinline__ void prefetch_weight(const Team& team, const NormArgs& norm) {
#ifdef __CUDA_ARCH__
  const int bytes = norm.dim * (norm.weight_dtype == Dtype::f32 ? 4 : 2);
  for (int at = team.thread * kLine; at < bytes; at += team.threads * kLine)
    asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(norm.weight) + at));
#endif
}

// Writes the normalised x to row n of norm.out.
template <class T>
__device__ __forceinline__ void norm_row(Team& team, const NormArgs& norm, unsigned n, float (&x)[kElements]) {
  float weight[kElements];
  load_weight<T>(team, norm, weight);  // on its way while the row is summed
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
  float x[kElements];
  load_row<T>(team, row_at<const T>(args.x, n), args.dim, args.x.aligned, x);
  norm_row<T>(team, args, n, x);
}

}  // namespace emosteer::cuda
