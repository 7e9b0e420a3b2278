// Loops over one row: dots, norms, scaled sums. For rows.cpp alone, as lanes.hpp.
#pragma once
#include <type_traits>

#include "lanes.hpp"
#include "solve.hpp"

namespace emosteer {
namespace {

const f32* as_f32(const float* x) { return reinterpret_cast<const f32*>(x); }
f32* as_f32(float* x) { return reinterpret_cast<f32*>(x); }

// <x, v> and ‖x‖² of R rows: v is loaded once for all. Two accumulators each, since one alone waits for
// its own last addition.
template <int R, class T>
inline void dots_and_squares(const T* const* x, const float* v, std::int64_t n, double* dots, double* squares) {
  const f32* w = as_f32(v);
  pair_v d[R] = {}, s[R] = {};
  std::int64_t i = 0;
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    const pair_v at = load_pair_as<T>(w + i);
    for (int r = 0; r < R; ++r) {
      const pair_v row = load_pair(x[r] + i);
      d[r].a += row.a * at.a;
      s[r].a += row.a * row.a;
      d[r].b += row.b * at.b;
      s[r].b += row.b * row.b;
    }
  }
  for (; i < n; i += kLanes) {
    const bool whole = i + kLanes <= n;
    const floats_v at = whole ? load(w + i) : load_tail(w + i, n - i);
    for (int r = 0; r < R; ++r) {
      const floats_v row = whole ? load(x[r] + i) : load_tail(x[r] + i, n - i);
      d[r].a += row * at;
      s[r].a += row * row;
    }
  }
  for (int r = 0; r < R; ++r) {
    dots[r] = sum(d[r].a + d[r].b);
    squares[r] = sum(s[r].a + s[r].b);
  }
}

template <class T>
inline void dot_and_square(const T* x, const float* v, std::int64_t n, double* dot, double* square) {
  dots_and_squares<1>(&x, v, n, dot, square);
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
    const pair_v at = load_pair(x + i);
    s0 += at.a * at.a;
    s1 += at.b * at.b;
  }
  for (; i < n; i += kLanes) {
    const floats_v a = n - i < kLanes ? load_tail(x + i, n - i) : load(x + i);
    s0 += a * a;
  }
  return sum(s0 + s1);
}

// y = a·x + b·v of R rows with the same v; `y` may be `x`.
template <int R, class T, class U>
inline void scaled_sums(const T* const* x, const float* v, const float* a, const float* b, U* const* y,
                        std::int64_t n) {
  const f32* w = as_f32(v);
  std::int64_t i = 0;
  if constexpr (std::is_same_v<T, U>)  // else the two have orders of their own
    for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
      const pair_v at = load_pair_as<T>(w + i);
      for (int r = 0; r < R; ++r) {
        const pair_v row = load_pair(x[r] + i);
        store_pair(y[r] + i, {a[r] * row.a + b[r] * at.a, a[r] * row.b + b[r] * at.b});
      }
    }
  for (; i + kLanes <= n; i += kLanes)
    for (int r = 0; r < R; ++r) store(y[r] + i, a[r] * load(x[r] + i) + b[r] * load(w + i));
  if (i < n)
    for (int r = 0; r < R; ++r)
      store_tail(y[r] + i, a[r] * load_tail(x[r] + i, n - i) + b[r] * load_tail(w + i, n - i), n - i);
}

template <class T, class U>
inline void scaled_sum(const T* x, const float* v, float a, float b, U* y, std::int64_t n) {
  scaled_sums<1>(&x, v, &a, &b, &y, n);
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
