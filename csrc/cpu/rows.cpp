// The row kernels. Compiled once per instruction set (EMOSTEER_ISA names it), so everything here has
// internal linkage and no standard template is instantiated: a linker that kept the wide copy of a
// shared inline function would break older machines.
#include "rows.hpp"

#include <cstring>

#include "steer_row.hpp"

namespace emosteer {
namespace {

template <class T>
inline float inverse_rms(const T* x, std::int64_t dim, float eps) {
  double square = square_of(x, dim);
  if (!(square < 1e37)) {  // the sum may have overflowed where the mean does not
    const float* wide = floats(x, scratch_floats(1, dim), dim);
    square = 0;
    for (std::int64_t i = 0; i < dim; ++i) square += static_cast<double>(wide[i]) * wide[i];
  }
  return static_cast<float>(1 / __builtin_sqrt(square / static_cast<double>(dim) + static_cast<double>(eps)));
}

template <class T>
inline void norm_row(const T* x, const float* weight, float eps, float offset, T* out, std::int64_t dim) {
  const float inverse = inverse_rms(x, dim, eps);
  const f32* w = as_f32(weight);
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= dim; i += 2 * kLanes) {
    const pair_v row = load_pair(x + i), by = load_pair_as<T>(w + i);
    store_pair(out + i, {row.a * inverse * (by.a + offset), row.b * inverse * (by.b + offset)});
  }
  for (; i + kLanes <= dim; i += kLanes) store(out + i, load(x + i) * inverse * (load(w + i) + offset));
  if (i < dim) store_tail(out + i, load_tail(x + i, dim - i) * inverse * (load_tail(w + i, dim - i) + offset), dim - i);
}

const float* weight_floats(std::uintptr_t weight, Dtype dtype, std::int64_t dim) {
  float* to = scratch_floats(2, dim);
  switch (dtype) {
    case Dtype::bf16:
      return floats(reinterpret_cast<const bf16*>(weight), to, dim);
    case Dtype::f16:
      return floats(reinterpret_cast<const f16*>(weight), to, dim);
    default:
      return reinterpret_cast<const float*>(weight);
  }
}

// Rows n to n + R − 1, which share a program of one slot.
template <int R, class T>
inline void steer_rows_alike(const SteerArgs& args, const Program& program, std::int64_t n) {
  const T* x[R];
  T* out[R];
  bool changed[R];
  for (int r = 0; r < R; ++r) {
    x[r] = reinterpret_cast<const T*>(args.x.at(n + r));
    out[r] = reinterpret_cast<T*>(args.out.at(n + r));
  }
  steer_rows_by_one<R>(program, x, out, args.dim, changed);
  for (int r = 0; r < R; ++r)
    if (!changed[r] && out[r] != x[r]) std::memcpy(static_cast<void*>(out[r]), x[r], args.dim * sizeof(T));
}

template <class T>
inline void steer_row_alone(const SteerArgs& args, const Program* program, std::int64_t n) {
  const std::int64_t dim = args.dim;
  const T* x = reinterpret_cast<const T*>(args.x.at(n));
  T* out = reinterpret_cast<T*>(args.out.at(n));
  if (args.residual.data) {
    f32* total = as_f32(scratch_floats(0, dim));
    const float* other = floats(reinterpret_cast<const T*>(args.residual.at(n)), scratch_floats(1, dim), dim);
    scaled_sum(x, other, 1, 1, total, dim);
    if (!program || !steer_row(*program, total, out, dim)) scaled(total, 1, out, dim);
  } else if ((!program || !steer_row(*program, x, out, dim)) && out != x) {
    std::memcpy(static_cast<void*>(out), x, dim * sizeof(T));
  }
}

template <class T>
void steer_rows(const SteerArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t dim = args.dim, spread = args.count / args.table->rows, per_row = spread > 0 ? spread : 1;
  const float* weight = args.normed.data ? weight_floats(args.weight, args.weight_dtype, dim) : nullptr;
  std::int64_t read = -1;
  Program program;
  for (std::int64_t n = begin, next; n < end; n = next) {
    const std::int64_t row = args.token_row ? args.token_row[n] : n / per_row;
    if (row != read && row >= 0) {
      read_program(args, row, &program);
      read = row;
    }
    const bool idle = row < 0 || program.count == 0;
    std::int64_t alike = 1;
    if (!idle && program.count == 1 && !args.residual.data) {
      const std::int64_t stop = args.token_row ? end : (row + 1) * per_row < end ? (row + 1) * per_row : end;
      while (alike < 4 && n + alike < stop && (!args.token_row || args.token_row[n + alike] == row)) ++alike;
    }
    if (alike == 4) {
      steer_rows_alike<4, T>(args, program, n);
    } else if (alike >= 2) {
      steer_rows_alike<2, T>(args, program, n);
      alike = 2;
    } else {
      steer_row_alone<T>(args, idle ? nullptr : &program, n);
    }
    next = n + alike;
    for (std::int64_t m = n; weight && m < next; ++m)
      norm_row(reinterpret_cast<const T*>(args.out.at(m)), weight, args.eps, args.weight_offset,
               reinterpret_cast<T*>(args.normed.at(m)), dim);
  }
}

template <class T>
void norm_rows(const NormArgs& args, std::int64_t begin, std::int64_t end) {
  const float* weight = weight_floats(args.weight, args.weight_dtype, args.dim);
  for (std::int64_t n = begin; n < end; ++n)
    norm_row(reinterpret_cast<const T*>(args.x.at(n)), weight, args.eps, args.weight_offset,
             reinterpret_cast<T*>(args.out.at(n)), args.dim);
}

template <class T>
void project_rows(const ProjectArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t dim = args.dim;
  float* in = scratch_floats(0, dim);
  for (std::int64_t n = begin; n < end; ++n) {
    const float* x = floats(reinterpret_cast<const T*>(args.x.at(n)), in, dim);
    if (args.center || args.rows) {
      float* to = args.rows ? args.rows + n * dim : in;
      if (args.center)
        scaled_sum(as_f32(x), args.center, 1, -1, as_f32(to), dim);
      else
        std::memcpy(to, x, dim * sizeof(float));
      x = to;
    }
    double inverse = 1;
    if (args.cosine || args.norms) {
      double square = square_of(as_f32(x), dim);
      if (!single_precision_holds(square)) {
        square = 0;
        for (std::int64_t i = 0; i < dim; ++i) square += static_cast<double>(x[i]) * x[i];
      }
      const double norm = __builtin_sqrt(square);
      if (args.norms) args.norms[n] = static_cast<float>(norm);
      if (args.cosine) inverse = norm == 0 ? 0 : 1 / norm;
    }
    if (!args.directions) continue;
    float* dots = args.dots + n * args.n_directions;
    std::int64_t k = 0;
    for (double four[4]; k + 4 <= args.n_directions; k += 4) {
      dot_four(x, args.directions + k * dim, dim, four);
      for (int j = 0; j < 4; ++j) dots[k + j] = static_cast<float>(inverse * four[j]);
    }
    for (; k < args.n_directions; ++k) dots[k] = static_cast<float>(inverse * dot(x, args.directions + k * dim, dim));
  }
}

template <class T>
void moment_columns(const MomentArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t width = end - begin;
  float* in = scratch_floats(0, width);
  const double* shift = args.shift + begin;
  for (std::int64_t n = 0; n < args.count; ++n) {
    const std::int32_t group = args.group ? args.group[n] : 0;
    float* centred = args.rows ? args.rows + n * args.row_stride + begin : nullptr;
    const double w = args.weight ? args.weight[n] : 1;
    if (group < 0) {
      if (centred) std::memset(centred, 0, width * sizeof(float));
      continue;
    }
    const float* x = floats(reinterpret_cast<const T*>(args.x.at(n)) + begin, in, width);
    double* sum = args.sum + group * args.dim + begin;
    if (centred) {
      const double root = __builtin_sqrt(w);
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) {
        const double d = x[i] - shift[i];
        sum[i] += w * d;
        centred[i] = static_cast<float>(root * d);
      }
    } else {
#pragma omp simd
      for (std::int64_t i = 0; i < width; ++i) sum[i] += w * (x[i] - shift[i]);
    }
  }
}

// One instantiation per storage format, chosen once per call.
#define EMOSTEER_BY_DTYPE(function, Args)                                 \
  void function##_any(const Args& args, std::int64_t b, std::int64_t e) { \
    switch (args.dtype) {                                                 \
      case Dtype::f32:                                                    \
        return function<f32>(args, b, e);                                 \
      case Dtype::bf16:                                                   \
        return function<bf16>(args, b, e);                                \
      case Dtype::f16:                                                    \
        return function<f16>(args, b, e);                                 \
    }                                                                     \
  }
EMOSTEER_BY_DTYPE(steer_rows, SteerArgs)
EMOSTEER_BY_DTYPE(norm_rows, NormArgs)
EMOSTEER_BY_DTYPE(project_rows, ProjectArgs)
EMOSTEER_BY_DTYPE(moment_columns, MomentArgs)
#undef EMOSTEER_BY_DTYPE

}  // namespace

#define EMOSTEER_JOIN2(a, b) a##b
#define EMOSTEER_JOIN(a, b) EMOSTEER_JOIN2(a, b)
#define EMOSTEER_NAME2(a) #a
#define EMOSTEER_NAME(a) EMOSTEER_NAME2(a)
const Kernels& EMOSTEER_JOIN(kernels_, EMOSTEER_ISA)() {
  static constexpr Kernels kernels{EMOSTEER_NAME(EMOSTEER_ISA), steer_rows_any, norm_rows_any, project_rows_any,
                                   moment_columns_any};
  return kernels;
}

}  // namespace emosteer
