// Loops over one row: dots, norms, scaled sums. For rows.cpp alone, as lanes.hpp.
#pragma once
#include "lanes.hpp"
#include "solve.hpp"

namespace emosteer {
namespace {

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

}  // namespace
}  // namespace emosteer
