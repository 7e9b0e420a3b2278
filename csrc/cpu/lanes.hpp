// One register of floats, and rows stored as float32, bfloat16 or float16 loaded into it and rounded out of it.
//
// For rows.cpp alone, which is compiled once per instruction set: all of it has internal linkage.
#pragma once
#include <cstdint>
#include <cstring>
#if defined(__F16C__)
#include <immintrin.h>
#endif

namespace emosteer {
namespace {

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

// In the upper half of each word; the lower half is left over.
inline words_v round_to_bf16(floats_v x) {
  const words_v u = (words_v)x;
  const words_v rounded = u + 0x7fffu + ((u >> 16) & 1u);
  return x != x ? u | 0x400000u : rounded;  // a NaN stays one, quiet
}
inline floats_v load(const bf16* x) { return (floats_v)(widen(read<halves_v>(x)) << 16); }
inline void store_by_words(bf16* to, floats_v x) { write(to, truncate(round_to_bf16(x) >> 16)); }
#if defined(__AVX512BF16__)
[[gnu::cold, gnu::noinline]] void store_with_subnormals(bf16* to, floats_v x) { store_by_words(to, x); }
inline void store(bf16* to, floats_v x) {
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)x, 0x20) != 0, 0))  // the instruction would flush them to 0
    return store_with_subnormals(to, x);
  write(to, _mm512_cvtneps_pbh((__m512)x));
}
#else
inline void store(bf16* to, floats_v x) { store_by_words(to, x); }
#endif

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

// Twice as many elements at once. Their order in the two registers is the format's own, so that no
// lane is moved without need: what meets a pair of T must be loaded by load_pair_as<T>.
struct pair_v {
  floats_v a, b;
};
template <class T>
inline pair_v load_pair(const T* x) {
  return {load(x), load(x + kLanes)};
}
template <class T>
inline void store_pair(T* to, pair_v x) {
  store(to, x.a);
  store(to + kLanes, x.b);
}
template <class T>
inline pair_v load_pair_as(const f32* x) {
  return load_pair(x);
}
#if defined(__AVX512BF16__) || (defined(__AVX2__) && !defined(__AVX512F__))
// The even elements and the odd ones: a shift and a mask widen them.
template <>
inline pair_v load_pair(const bf16* x) {
  const words_v two = read<words_v>(x);
  return {(floats_v)(two << 16), (floats_v)(two & 0xffff0000u)};
}
[[gnu::cold, gnu::noinline]] void store_pair_by_words(bf16* to, floats_v a, floats_v b) {
  write(to, (round_to_bf16(a) >> 16) | (round_to_bf16(b) & 0xffff0000u));
}
#endif
#if defined(__AVX512BF16__)
template <>
inline pair_v load_pair_as<bf16>(const f32* x) {
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
  const __m512 low = (__m512)load(x), high = (__m512)load(x + kLanes);
  return {(floats_v)_mm512_permutex2var_ps(low, even, high), (floats_v)_mm512_permutex2var_ps(low, odd, high)};
}
template <>
inline void store_pair(bf16* to, pair_v x) {
  const __m512i weave = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23, 7, 22, 6, 21,
                                         5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
  const __m512i apart = (__m512i)_mm512_cvtne2ps_pbh((__m512)x.b, (__m512)x.a);
  if (__builtin_expect(_mm512_testn_epi16_mask(apart, _mm512_set1_epi16(0x7fff)) != 0, 0))
    return store_pair_by_words(to, x.a, x.b);  // a zero may be a subnormal that the instruction flushed
  write(to, _mm512_permutexvar_epi16(weave, apart));
}
#elif defined(__AVX2__) && !defined(__AVX512F__)
template <>
inline pair_v load_pair_as<bf16>(const f32* x) {
  const __m256 low = (__m256)load(x), high = (__m256)load(x + kLanes);
  const __m256d even = (__m256d)_mm256_shuffle_ps(low, high, 0x88), odd = (__m256d)_mm256_shuffle_ps(low, high, 0xdd);
  return {(floats_v)_mm256_permute4x64_pd(even, 0xd8), (floats_v)_mm256_permute4x64_pd(odd, 0xd8)};
}
template <>
inline void store_pair(bf16* to, pair_v x) {
  const __m256 unordered = _mm256_cmp_ps((__m256)x.a, (__m256)x.b, _CMP_UNORD_Q);
  if (__builtin_expect(_mm256_movemask_ps(unordered) != 0, 0)) return store_pair_by_words(to, x.a, x.b);  // a NaN
  const words_v a = (words_v)x.a, b = (words_v)x.b;
  const words_v low = a + 0x7fffu + ((a >> 16) & 1u), high = b + 0x7fffu + ((b >> 16) & 1u);
  write(to, (low >> 16) | (high & 0xffff0000u));
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

}  // namespace
}  // namespace emosteer
