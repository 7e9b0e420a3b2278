// Which instruction set this machine runs, and the threads' scratch.
#include <cstdlib>
#include <stdexcept>
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
  // EMOSTEER_ISA lowers the choice, for tests of what other machines run.
  const char* wish = std::getenv("EMOSTEER_ISA");
  const std::string asked = wish ? wish : "";
  std::string known = "baseline";
  if (asked == "baseline") return kernels_baseline();
#if defined(EMOSTEER_X86)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16");
  if (bf16 && (asked.empty() || asked == "avx512bf16")) return kernels_avx512bf16();
  if (avx512 && (asked.empty() || asked == "avx512")) return kernels_avx512();
  if (avx2 && (asked.empty() || asked == "avx2")) return kernels_avx2();
  known += std::string(avx2 ? ", avx2" : "") + (avx512 ? ", avx512" : "") + (bf16 ? ", avx512bf16" : "");
#endif
  if (asked.empty()) return kernels_baseline();
  throw std::runtime_error("EMOSTEER_ISA=" + asked + " cannot run here: this processor has " + known);
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
