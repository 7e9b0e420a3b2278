// Which instruction set this machine runs, and the threads' scratch.
#include <cstdlib>
#include <string>
#include <vector>

#include "rows.hpp"

namespace emosteer {

const Kernels& kernels_baseline();
#if defined(EMOSTEER_X86)
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();
const Kernels& kernels_avx512bf16();
#endif

const Kernels& best_kernels() {
#if defined(EMOSTEER_X86)
  // EMOSTEER_ISA lowers the choice, for tests of what other machines run.
  const char* wish = std::getenv("EMOSTEER_ISA");
  const std::string asked = wish ? wish : "";
  if (asked == "baseline") return kernels_baseline();
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
    if (asked == "avx2") return kernels_avx2();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq"))
      return __builtin_cpu_supports("avx512bf16") && asked != "avx512" ? kernels_avx512bf16() : kernels_avx512();
    return kernels_avx2();
  }
#endif
  return kernels_baseline();
}

float* scratch_floats(int which, std::int64_t n) {
  static thread_local std::vector<float> scratch[4];
  if (static_cast<std::int64_t>(scratch[which].size()) < n) scratch[which].resize(n);
  return scratch[which].data();
}

double* scratch_doubles(int which, std::int64_t n) {
  static thread_local std::vector<double> scratch[2];
  if (static_cast<std::int64_t>(scratch[which].size()) < n) scratch[which].resize(n);
  return scratch[which].data();
}

}  // namespace emosteer
