#include <cuda_runtime.h>

#include <stdexcept>
#include <string>

#include "launch.hpp"
#include "norm.cuh"
#include "project.cuh"
#include "steer.cuh"

namespace emosteer::cuda {
namespace {

void check(cudaError_t error, const char* what) {
  if (error != cudaSuccess)
    throw std::runtime_error(std::string("CUDA cannot ") + what + ": " + cudaGetErrorString(error));
}

// The device of the tensors is current while it lives.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&before_), "tell the current device");
    if (device != before_) check(cudaSetDevice(device), "switch to the device of x");
    changed_ = device != before_;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int before_ = 0;
  bool changed_ = false;
};

template <class Args>
void launch(void (*kernel)(Args), Args args, unsigned columns, const Shape& shape, const Place& place) {
  const DeviceGuard guard(place.device);
  const unsigned rows = shape.rows_per_block;
  const dim3 grid((args.count - 1) / rows + 1, columns), block(shape.threads, rows);
  void* packed[] = {&args};
  check(cudaLaunchKernel(kernel, grid, block, packed, static_cast<std::size_t>(shape.shared_bytes()),
                         reinterpret_cast<cudaStream_t>(place.stream)),
        "launch a row kernel");
}

struct NoArgs {
  unsigned count = 1;
};

__global__ void empty_kernel(const __grid_constant__ NoArgs) {}

template <class Body>
void by_dtype(Dtype dtype, const Body& body) {
  switch (dtype) {
    case Dtype::f32:
      return body(float());
    case Dtype::bf16:
      return body(__nv_bfloat16());
    case Dtype::f16:
      return body(__half());
  }
  throw std::invalid_argument("dtype must be 0 (float32), 1 (bfloat16) or 2 (float16)");
}

}  // namespace

Shape shape_of(int dim, int slots) {
  const int warps = (dim + kElements * kWarp - 1) / (kElements * kWarp);
  return {warps * kWarp, warps == 1 ? kRowsPerBlock : 1, warps == 1 ? 0 : 2 * warps * kWarp, slots * slots};
}

void steer(Dtype dtype, SteerArgs args, bool normed, const Place& place) {
  const Shape shape = shape_of(args.dim, args.table.slots);
  args.scratch = args.norm.scratch = shape.cells + shape.gram;
  args.gram = shape.cells;
  const std::int64_t spread = args.count / args.table.rows;
  args.spread = spread > 0 ? static_cast<unsigned>(spread) : 1u;
  by_dtype(dtype, [&](auto sample) {
    using T = decltype(sample);
    launch(normed ? steer_kernel<T, true> : steer_kernel<T, false>, args, 1, shape, place);
  });
}

void rms_norm(Dtype dtype, NormArgs args, const Place& place) {
  const Shape shape = shape_of(args.dim, 0);
  args.scratch = shape.cells;
  by_dtype(dtype, [&](auto sample) { launch(rms_norm_kernel<decltype(sample)>, args, 1, shape, place); });
}

void project(Dtype dtype, ProjectArgs args, const Place& place) {
  const Shape shape = shape_of(args.dim, 0);
  args.scratch = shape.cells;
  const unsigned columns = (args.n_directions - 1) / kDirectionsPerBlock + 1;
  by_dtype(dtype, [&](auto sample) { launch(project_kernel<decltype(sample)>, args, columns, shape, place); });
}

void nothing(const Place& place) { launch(empty_kernel, NoArgs{}, 1, Shape{kWarp, 1, 0, 0}, place); }

}  // namespace emosteer::cuda
