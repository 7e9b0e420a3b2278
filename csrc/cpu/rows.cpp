// The row kernels. Compiled once per instruction set (EMOSTEER_ISA names it), so everything here has
// internal linkage and no standard template is instantiated: a linker that kept the wide copy of a
// shared inline function would break older machines.
#include "rows.hpp"

#include <cstring>

#include "solve.hpp"
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace emosteer {
namespace {

// ---- one register of floats ------------------------------------------------------------------
//
// Vectors of the compiler (GCC, Clang), as wide as the instruction set's registers: wider ones are
// split through memory.

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif
typedef float floats_v __attribute__((vector_size(4 * kLanes)));
typedef std::uint32_t words_v __attribute__((vector_size(4 * kLanes)));
typedef std::uint16_t halves_v __attribute__((vector_size(2 * kLanes)));

struct f32 {
  float value;
};
struct bf16 {
  std::uint16_t bits;
};
struct f16 {
  std::uint16_t bits;
};

template <class V>
inline V read(const void* from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class V>
inline void write(void* to, V v) {
  std::memcpy(to, &v, sizeof v);
}

inline std::uint32_t bits_of(float x) { return read<std::uint32_t>(&x); }
inline float float_of(std::uint32_t u) { return read<float>(&u); }

inline floats_v load(const f32* x) { return read<floats_v>(x); }
inline void store(f32* to, floats_v x) { write(to, x); }

#if defined(__AVX512F__)
inline words_v widen(halves_v x) { return (words_v)_mm512_cvtepu16_epi32((__m256i)x); }
inline halves_v truncate(words_v x) { return (halves_v)_mm512_cvtepi32_epi16((__m512i)x); }
#else
inline words_v widen(halves_v x) { return __builtin_convertvector(x, words_v); }
inline halves_v truncate(words_v x) { return __builtin_convertvector(x, halves_v); }
#endif

inline floats_v load(const bf16* x) { return (floats_v)(widen(read<halves_v>(x)) << 16); }
inline void store(bf16* to, floats_v x) {
#if defined(__AVX512BF16__)
  if (_mm512_fpclass_ps_mask((__m512)x, 0x20) == 0)  // the instruction would flush subnormals to 0
    return write(to, _mm512_cvtneps_pbh((__m512)x));
#endif
  const words_v u = (words_v)x;
  const words_v rounded = u + 0x7fffu + ((u >> 16) & 1u);
  const words_v kept = x != x ? u | 0x400000u : rounded;  // a NaN stays one, quiet
  write(to, truncate(kept >> 16));
}

#if defined(__AVX512F__)
inline floats_v load(const f16* x) { return (floats_v)_mm512_cvtph_ps(read<__m256i>(x)); }
inline void store(f16* to, floats_v x) { write(to, _mm512_cvtps_ph((__m512)x, 0)); }
#elif defined(__F16C__)
inline floats_v load(const f16* x) { return (floats_v)_mm256_cvtph_ps(read<__m128i>(x)); }
inline void store(f16* to, floats_v x) { write(to, _mm256_cvtps_ph((__m256)x, 0)); }
#else
inline float widen(std::uint16_t half) {
  const std::uint32_t sign = static_cast<std::uint32_t>(half & 0x8000u) << 16, magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return float_of(sign | 0x7f800000u | (magnitude << 13));
  return float_of(sign | bits_of(float_of(magnitude << 13) * float_of(0x77800000u)));  // · 2^112
}
inline std::uint16_t narrow(float x) {
  const std::uint32_t u = bits_of(x), sign = (u >> 16) & 0x8000u, magnitude = u & 0x7fffffffu;
  std::uint32_t h;
  if (magnitude > 0x7f800000u)
    h = 0x7e00u;
  else if (magnitude >= 0x477ff000u)
    h = 0x7c00u;  // rounds to 65536 or more
  else if (magnitude < 0x38800000u)
    h = bits_of(float_of(magnitude) + 0.5f) - 0x3f000000u;  // to a multiple of 2^-24
  else
    h = (magnitude + 0xfffu + ((magnitude >> 13) & 1u) - 0x38000000u) >> 13;
  return static_cast<std::uint16_t>(sign | h);
}
inline floats_v load(const f16* x) {
  floats_v v;
  for (int i = 0; i < kLanes; ++i) v[i] = widen(x[i].bits);
  return v;
}
inline void store(f16* to, floats_v x) {
  for (int i = 0; i < kLanes; ++i) to[i].bits = narrow(x[i]);
}
#endif

// The last n < kLanes elements of a row, the other lanes 0.
template <class T>
inline floats_v load_tail(const T* x, std::int64_t n) {
  T buffer[kLanes] = {};
  std::memcpy(buffer, x, n * sizeof(T));
  return load(buffer);
}
template <class T>
inline void store_tail(T* to, floats_v x, std::int64_t n) {
  T buffer[kLanes];
  store(buffer, x);
  std::memcpy(to, buffer, n * sizeof(T));
}

#if defined(__AVX512F__)
inline double sum(floats_v x) {
  const __m256 eight = _mm256_add_ps(_mm512_castps512_ps256((__m512)x), _mm512_extractf32x8_ps((__m512)x, 1));
  const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return static_cast<double>(two[0]) + two[1];
}
#else
inline double sum(floats_v x) {
  float lane[kLanes];
  write(lane, x);
  for (int width = kLanes / 2; width > 1; width /= 2)
    for (int i = 0; i < width; ++i) lane[i] += lane[i + width];
  return static_cast<double>(lane[0]) + lane[1];
}
#endif

// ---- loops over one row ----------------------------------------------------------------------

const f32* as_f32(const float* x) { return reinterpret_cast<const f32*>(x); }
f32* as_f32(float* x) { return reinterpret_cast<f32*>(x); }

// <x, v> and ‖x‖². Two accumulators each: one alone waits for its own last addition.
template <class T>
inline void dot_and_square(const T* x, const float* v, std::int64_t n, double* dot, double* square) {
  const f32* w = as_f32(v);
  floats_v d0{}, d1{}, s0{}, s1{};
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const floats_v a = load(x + i), b = load(x + i + kLanes);
    d0 += a * load(w + i);
    s0 += a * a;
    d1 += b * load(w + i + kLanes);
    s1 += b * b;
  }
  if (i + kLanes <= n) {
    const floats_v a = load(x + i);
    d0 += a * load(w + i);
    s0 += a * a;
    i += kLanes;
  }
  if (i < n) {
    const floats_v a = load_tail(x + i, n - i);
    d1 += a * load_tail(w + i, n - i);
    s1 += a * a;
  }
  *dot = sum(d0 + d1);
  *square = sum(s0 + s1);
}

inline double dot(const float* x, const float* v, std::int64_t n) {
  double d, unused;
  dot_and_square(as_f32(x), v, n, &d, &unused);
  return d;
}

// <x, v>, <x, v+dim>, … of four rows that follow each other: x is loaded once for the four.
inline void dot_four(const float* x, const float* v, std::int64_t n, double* dots) {
  floats_v d0{}, d1{}, d2{}, d3{};
  const f32 *a = as_f32(x), *v0 = as_f32(v), *v1 = as_f32(v + n), *v2 = as_f32(v + 2 * n), *v3 = as_f32(v + 3 * n);
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    const floats_v at = load(a + i);
    d0 += at * load(v0 + i);
    d1 += at * load(v1 + i);
    d2 += at * load(v2 + i);
    d3 += at * load(v3 + i);
  }
  if (i < n) {
    const floats_v at = load_tail(a + i, n - i);
    d0 += at * load_tail(v0 + i, n - i);
    d1 += at * load_tail(v1 + i, n - i);
    d2 += at * load_tail(v2 + i, n - i);
    d3 += at * load_tail(v3 + i, n - i);
  }
  dots[0] = sum(d0);
  dots[1] = sum(d1);
  dots[2] = sum(d2);
  dots[3] = sum(d3);
}

template <class T>
inline double square_of(const T* x, std::int64_t n) {
  floats_v s0{}, s1{};
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const floats_v a = load(x + i), b = load(x + i + kLanes);
    s0 += a * a;
    s1 += b * b;
  }
  for (; i < n; i += kLanes) {
    const floats_v a = n - i < kLanes ? load_tail(x + i, n - i) : load(x + i);
    s0 += a * a;
  }
  return sum(s0 + s1);
}

// y = a·x + b·v; `y` may be `x`.
template <class T, class U>
inline void scaled_sum(const T* x, const float* v, float a, float b, U* y, std::int64_t n) {
  const f32* w = as_f32(v);
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, a * load(x + i) + b * load(w + i));
  if (i < n) store_tail(y + i, a * load_tail(x + i, n - i) + b * load_tail(w + i, n - i), n - i);
}

// y = a·x, which also converts between formats; `y` may be `x`.
template <class T, class U>
inline void scaled(const T* x, float a, U* y, std::int64_t n) {
  std::int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) store(y + i, a * load(x + i));
  if (i < n) store_tail(y + i, a * load_tail(x + i, n - i), n - i);
}

// A row as floats: the row itself where it already is one, else a converted copy in `scratch`.
inline const float* floats(const f32* x, float*, std::int64_t) { return reinterpret_cast<const float*>(x); }
template <class T>
inline const float* floats(const T* x, float* scratch, std::int64_t n) {
  scaled(x, 1, as_f32(scratch), n);
  return scratch;
}

inline double dot_double(const double* x, const float* v, std::int64_t n) {
  double d = 0;
#pragma omp simd reduction(+ : d)
  for (std::int64_t i = 0; i < n; ++i) d += x[i] * v[i];
  return d;
}

inline double length_of(const float* v, std::int64_t n) {
  double square = 0;
#pragma omp simd reduction(+ : square)
  for (std::int64_t i = 0; i < n; ++i) square += static_cast<double>(v[i]) * v[i];
  return __builtin_sqrt(square);
}

void gram_matrix(const Program& program, std::int64_t dim, double* gram) {
  for (int i = 0; i < program.count; ++i)
    for (int j = 0; j <= i; ++j) {
      double d = 0;
      const float *u = program.v[i], *w = program.v[j];
#pragma omp simd reduction(+ : d)
      for (std::int64_t k = 0; k < dim; ++k) d += static_cast<double>(u[k]) * w[k];
      gram[i * program.count + j] = gram[j * program.count + i] = d;
    }
}

// ---- steering one row ------------------------------------------------------------------------

// In double throughout, norms taken from the vectors themselves: for rows whose sums overflow, vanish
// or cancel in single precision, and for several directions under preserve_norm = 2.
template <class T, class U>
bool steer_exactly(const Program& program, const T* stored, U* y, std::int64_t dim) {
  const float* x = floats(stored, scratch_floats(1, dim), dim);
  double* row = scratch_doubles(0, dim);
  double* inside = scratch_doubles(1, dim);
  double p[kMaxSlots], share[kMaxSlots], gram[kMaxSlots * kMaxSlots];
  double square = 0;
  for (std::int64_t i = 0; i < dim; ++i) row[i] = x[i];
#pragma omp simd reduction(+ : square)
  for (std::int64_t i = 0; i < dim; ++i) square += row[i] * row[i];
  double length[kMaxSlots];
  for (int j = 0; j < program.count; ++j) {
    p[j] = dot_double(row, program.v[j], dim);
    length[j] = program.rotates ? length_of(program.v[j], dim) : 1;
  }
  const Update update = solve_slots(program, p, square, length);
  const double norm = __builtin_sqrt(square);
  if (!update.changed) return false;
  const bool split = program.preserve_norm == 2;
  if (split) {
    gram_matrix(program, dim, gram);
    solve_share(program.count, gram, p, share);
  }
  // y = inside + outside, all of it "outside" unless the two are told apart.
  for (std::int64_t i = 0; i < dim; ++i) inside[i] = 0;
  for (int j = 0; j < program.count; ++j) {
    const double in = split ? update.a * share[j] + update.b[j] : update.b[j], out = split ? share[j] : 0;
    const float* v = program.v[j];
#pragma omp simd
    for (std::int64_t i = 0; i < dim; ++i) {
      inside[i] += in * v[i];
      row[i] -= out * v[i];
    }
  }
  double shrink = 1, g = update.a;
  double inside_square = 0, outside_square = 0, total_square = 0;
#pragma omp simd reduction(+ : inside_square, outside_square, total_square)
  for (std::int64_t i = 0; i < dim; ++i) {
    const double whole = inside[i] + update.a * row[i];
    inside_square += inside[i] * inside[i];
    outside_square += row[i] * row[i];
    total_square += whole * whole;
  }
  if (split) {
    keep_orthogonal(norm, __builtin_sqrt(inside_square), __builtin_sqrt(outside_square), &shrink, &g);
  } else if (program.preserve_norm == 1 && total_square > 0) {
    shrink = norm / __builtin_sqrt(total_square);
    g = update.a * shrink;
  }
  float* result = scratch_floats(1, dim);
  for (std::int64_t i = 0; i < dim; ++i) result[i] = static_cast<float>(shrink * inside[i] + g * row[i]);
  scaled(as_f32(result), 1, y, dim);
  return true;
}

// Below this share of what was added up, a sum of squares has lost too many digits to cancellation.
constexpr double kCancelled = 1e-3;

inline bool single_precision_holds(double square) { return square > 1e-30 && square < 1e30; }

template <class T, class U>
bool steer_by_several(const Program& program, const T* stored, U* y, std::int64_t dim) {
  const float* x = floats(stored, scratch_floats(1, dim), dim);
  double p[kMaxSlots], square;
  dot_and_square(as_f32(x), program.v[0], dim, &p[0], &square);
  for (int j = 1; j < program.count; ++j) p[j] = dot(x, program.v[j], dim);
  if (program.preserve_norm == 2) return steer_exactly(program, stored, y, dim);
  if (program.needs_norm() && !single_precision_holds(square)) return steer_exactly(program, stored, y, dim);
  if (program.rotates)
    for (int j = 0; j < program.count; ++j)
      if (!(square - p[j] * p[j] > kCancelled * square)) return steer_exactly(program, stored, y, dim);

  const Update update = solve_slots(program, p, square);
  if (!update.changed) return false;
  f32* sum = as_f32(scratch_floats(3, dim));  // not y: the row may still be needed
  scaled_sum(as_f32(x), program.v[0], static_cast<float>(update.a), static_cast<float>(update.b[0]), sum, dim);
  for (int j = 1; j < program.count; ++j) scaled_sum(sum, program.v[j], 1, static_cast<float>(update.b[j]), sum, dim);
  float g = 1;
  if (program.preserve_norm == 1) {
    const double after = square_of(sum, dim);
    if (!(after > kCancelled * square)) return steer_exactly(program, stored, y, dim);
    g = static_cast<float>(__builtin_sqrt(square / after));
  }
  scaled(sum, g, y, dim);
  return true;
}

// y = steered x, rounded once; returns false (nothing written) where the row stays bit for bit as it is.
// `y` may be `x`.
template <class T, class U>
inline bool steer_row(const Program& program, const T* x, U* y, std::int64_t dim) {
  if (program.count > 1) return steer_by_several(program, x, y, dim);
  double p, square;
  dot_and_square(x, program.v[0], dim, &p, &square);
  const double outside = square - p * p;
  const bool split = program.preserve_norm == 2;
  if (program.needs_norm() && !single_precision_holds(square)) return steer_exactly(program, x, y, dim);
  if ((program.rotates || split) && !(outside > kCancelled * square)) return steer_exactly(program, x, y, dim);

  double a = 1, b;
  if (program.adds) {  // the common case, without the call; p − p passes on a NaN
    b = program.strength[0] * (program.relative ? program.scale * __builtin_sqrt(square) : program.scale) + (p - p);
    if (b == 0) return false;
  } else {
    const Update update = solve_slots(program, &p, square);
    if (!update.changed) return false;
    a = update.a;
    b = update.b[0];
  }
  if (program.preserve_norm == 1) {
    const double added = a * a * square + b * b, after = added + 2 * a * b * p;  // ‖y‖²
    if (!(after > kCancelled * added)) return steer_exactly(program, x, y, dim);
    const double g = __builtin_sqrt(square / after);
    a *= g;
    b *= g;
  } else if (split) {
    const double inside = a * p + b;
    double shrink, g;
    keep_orthogonal(__builtin_sqrt(square), __builtin_fabs(inside), __builtin_sqrt(outside), &shrink, &g);
    a = g;
    b = shrink * inside - g * p;
  }
  scaled_sum(x, program.v[0], static_cast<float>(a), static_cast<float>(b), y, dim);
  return true;
}

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

template <class T>
void steer_rows(const SteerArgs& args, std::int64_t begin, std::int64_t end) {
  const std::int64_t dim = args.dim, spread = args.count / args.table->rows, per_row = spread > 0 ? spread : 1;
  const float* weight = args.normed.data ? weight_floats(args.weight, args.weight_dtype, dim) : nullptr;
  std::int64_t read = -1;
  Program program;
  for (std::int64_t n = begin; n < end; ++n) {
    const T* x = reinterpret_cast<const T*>(args.x.at(n));
    T* out = reinterpret_cast<T*>(args.out.at(n));
    const std::int64_t row = args.token_row ? args.token_row[n] : n / per_row;
    if (row != read && row >= 0) {
      program = read_program(args, row);
      read = row;
    }
    const bool idle = row < 0 || program.count == 0;
    if (args.residual.data) {
      f32* total = as_f32(scratch_floats(0, dim));
      const float* other = floats(reinterpret_cast<const T*>(args.residual.at(n)), scratch_floats(1, dim), dim);
      scaled_sum(x, other, 1, 1, total, dim);
      if (idle || !steer_row(program, total, out, dim)) scaled(total, 1, out, dim);
    } else if ((idle || !steer_row(program, x, out, dim)) && out != x) {
      std::memcpy(static_cast<void*>(out), x, dim * sizeof(T));
    }
    if (weight)
      norm_row(static_cast<const T*>(out), weight, args.eps, args.weight_offset,
               reinterpret_cast<T*>(args.normed.at(n)), dim);
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
    float* centred = args.rows ? args.rows + n * args.dim + begin : nullptr;
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
