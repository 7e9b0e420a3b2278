// CUDA's runtime for a host compiler: what kernels/cuda and csrc/cuda use of it, on the threads of fibers.hpp.
#pragma once
#include <cuda_runtime_api.h>
#include <vector_functions.h>
#include <vector_types.h>

#include <cmath>
#include <cstring>

#include "fibers.hpp"

// Keywords that a toolkit's headers leave out for a host compiler.
#undef __grid_constant__
#define __grid_constant__
#undef __launch_bounds__
#define __launch_bounds__(...)

// ---- built-in variables and functions of device code --------------------------------------------

#define threadIdx (::host::current_thread())
#define blockIdx (::host::block_index)
#define blockDim (::host::block_dim)

inline void __syncthreads() { ::host::block_barrier(); }
inline void __syncwarp(unsigned mask = 0xffffffffu) { ::host::warp_exchange(mask, 0, ::host::Tag::syncwarp); }

inline unsigned __ballot_sync(unsigned mask, bool value) {
  const std::uint64_t* given = ::host::warp_exchange(mask, value, ::host::Tag::ballot);
  unsigned found = 0;
  for (int lane = 0; lane < 32; ++lane)
    if (mask >> lane & 1 && given[lane]) found |= 1u << lane;
  return found;
}

namespace host {

template <class T>
T from_lane(unsigned mask, T value, int source, Tag tag) {
  static_assert(sizeof(T) <= 8);
  std::uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  const std::uint64_t* given = warp_exchange(mask, bits, tag);
  if (!(mask >> source & 1)) fail("a shuffle reads a lane outside its mask");
  std::memcpy(&value, &given[source], sizeof value);
  return value;
}

}  // namespace host

template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
  const int lane = ::host::lane(), first = lane & ~(width - 1);
  return ::host::from_lane(mask, value, first + (source & (width - 1)), ::host::Tag::shfl);
}

template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lane_mask, int width = 32) {
  // As the hardware does: a source beyond the segment of this lane gives the lane's own value.
  const int lane = ::host::lane(), last = (lane & ~(width - 1)) + width - 1, source = lane ^ lane_mask;
  return ::host::from_lane(mask, value, source <= last ? source : lane, ::host::Tag::shfl_xor);
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(unsigned x) { return __builtin_ffs(static_cast<int>(x)); }

// Sine and cosine of multiples of π.
inline void sincospi(double x, double* s, double* c) {
  *s = std::sin(x * 3.14159265358979323846);
  *c = std::cos(x * 3.14159265358979323846);
}
inline void sincospif(float x, float* s, float* c) {
  double sine, cosine;
  sincospi(static_cast<double>(x), &sine, &cosine);
  *s = static_cast<float>(sine);
  *c = static_cast<float>(cosine);
}
using std::isinf;

// ---- the runtime's functions ------------------------------------------------------------------------
//
// These and no others: a launcher that allocated, copied or waited would not link.

inline cudaError_t cudaGetDevice(int* device) { return *device = static_cast<int>(host_device), cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) { return host_device = device, cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return "an error of the host build"; }

template <class Args>
cudaError_t cudaLaunchKernel(void (*kernel)(Args), dim3 grid, dim3 block, void** args, std::size_t shared,
                             cudaStream_t stream) {
  host_launched_on[0] = host_device;
  host_launched_on[1] = reinterpret_cast<std::intptr_t>(stream);
  if (host_counts_only) return ++host_counts_only, cudaSuccess;
  std::pair<void (*)(Args), Args*> run(kernel, static_cast<Args*>(args[0]));
  ::host::run_grid(
      grid, block, shared,
      [](void* given) {
        const auto& [of_kernel, of_args] = *static_cast<decltype(run)*>(given);
        of_kernel(*of_args);
      },
      &run);
  return cudaSuccess;
}
