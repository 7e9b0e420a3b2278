// The launches of the row kernels: on the caller's stream, without a sync or an allocation, so that a
// CUDA graph can record them.
#pragma once
#include "args.cuh"

namespace emosteer::cuda {

struct Place {
  int device;
  std::uintptr_t stream;
};

// How a row is laid out over threads.
struct Shape {
  int threads;         // of one row
  int rows_per_block;  // more than 1 only where a warp holds a row
  int cells;           // doubles of shared memory a row, for sums over its warps
  int gram;            // doubles of shared memory a row, for the Gram matrix of its slots
  int block() const { return threads * rows_per_block; }
  int shared_bytes() const { return rows_per_block * (cells + gram) * static_cast<int>(sizeof(double)); }
};

// `slots` = 0: no steering.
Shape shape_of(int dim, int slots);

// `normed`: args.norm says where; scratch sizes and spread are filled in here.
void steer(Dtype dtype, SteerArgs args, bool normed, const Place& place);
void rms_norm(Dtype dtype, NormArgs args, const Place& place);
void project(Dtype dtype, ProjectArgs args, const Place& place);
// One empty kernel: throws where a driver or a device takes none of this module's.
void nothing(const Place& place);

}  // namespace emosteer::cuda
