// Storage formats and 16-byte loads and stores. Arithmetic is float32; a store rounds once, to nearest.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>
#include <cstring>

#include "args.cuh"

namespace emosteer::cuda {

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float widen(__half x) { return __half2float(x); }

__device__ __forceinline__ void narrow(float x, float* to) { *to = x; }
__device__ __forceinline__ void narrow(float x, __nv_bfloat16* to) { *to = __float2bfloat16_rn(x); }
__device__ __forceinline__ void narrow(float x, __half* to) { *to = __float2half_rn(x); }

// Two at a time is one instruction.
__device__ __forceinline__ std::uint32_t narrow_pair(float a, float b, const __nv_bfloat16*) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  std::uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}
__device__ __forceinline__ std::uint32_t narrow_pair(float a, float b, const __half*) {
  const __half2 pair = __floats2half2_rn(a, b);
  std::uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

// Elements of T in 16 bytes: what a thread holds of a row at a time.
template <class T>
constexpr int kPacket = 16 / sizeof(T);

template <int kCount, class U>
__device__ __forceinline__ void load_aligned(const U* from, float* to) {
  U stored[kCount];
  constexpr int kBytes = kCount * sizeof(U);
  if constexpr (kBytes >= 16) {
#pragma unroll
    for (int i = 0; i < kBytes / 16; ++i) {
      const uint4 packet = reinterpret_cast<const uint4*>(from)[i];
      memcpy(reinterpret_cast<char*>(stored) + 16 * i, &packet, 16);
    }
  } else {
    const uint2 packet = *reinterpret_cast<const uint2*>(from);
    memcpy(reinterpret_cast<char*>(stored), &packet, 8);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = widen(stored[i]);
}

__device__ __forceinline__ void store_aligned(const float* from, float* to) {
  *reinterpret_cast<float4*>(to) = make_float4(from[0], from[1], from[2], from[3]);
}
template <class T>
__device__ __forceinline__ void store_aligned(const float* from, T* to) {
  uint4 packet;
  packet.x = narrow_pair(from[0], from[1], to);
  packet.y = narrow_pair(from[2], from[3], to);
  packet.z = narrow_pair(from[4], from[5], to);
  packet.w = narrow_pair(from[6], from[7], to);
  *reinterpret_cast<uint4*>(to) = packet;
}

// Elements [at, at + kCount) of a row of `dim`, 0 past its end.
template <int kCount, class U>
__device__ __forceinline__ void load(const U* row, int at, int dim, bool aligned, float* to) {
  if (aligned && at + kCount <= dim) return load_aligned<kCount>(row + at, to);
#pragma unroll
  for (int i = 0; i < kCount; ++i) to[i] = at + i < dim ? widen(row[at + i]) : 0.f;
}

template <class T>
__device__ __forceinline__ void store(const float* from, T* row, int at, int dim, bool aligned) {
  if (aligned && at + kPacket<T> <= dim) return store_aligned(from, row + at);
#pragma unroll
  for (int i = 0; i < kPacket<T>; ++i)
    if (at + i < dim) narrow(from[i], row + at + i);
}

}  // namespace emosteer::cuda
