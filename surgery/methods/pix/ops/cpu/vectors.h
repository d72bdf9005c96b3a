// Vectors of one cache line, and the conversions between storage types and the type that is computed in.
//
// GCC and clang vector extensions only: the same source compiles for any instruction set that the flags allow.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

namespace pix {

struct bf16 { uint16_t bits; };
struct f16 { uint16_t bits; };

template <class C> struct Vec;

template <> struct Vec<float> {
  typedef float V __attribute__((vector_size(64)));
  typedef int32_t M __attribute__((vector_size(64)));  // comparison results: -1 or 0 per lane
  typedef uint32_t U __attribute__((vector_size(64)));
  typedef uint16_t H __attribute__((vector_size(32)));
  typedef uint8_t B __attribute__((vector_size(16)));
  typedef int32_t I;
  static constexpr int lanes = 16;
};

template <> struct Vec<double> {
  typedef double V __attribute__((vector_size(64)));
  typedef int64_t M __attribute__((vector_size(64)));
  typedef uint8_t B __attribute__((vector_size(8)));
  typedef int64_t I;
  static constexpr int lanes = 8;
};

template <class T> struct Compute { typedef float C; };
template <> struct Compute<double> { typedef double C; };

using F = Vec<float>;

template <class V, class P> inline V read(const P* p) {
  V v;
  std::memcpy(&v, p, sizeof(V));
  return v;
}

inline F::V load(const float* p) { return read<F::V>(p); }
inline Vec<double>::V load(const double* p) { return read<Vec<double>::V>(p); }

inline F::V load(const bf16* p) { return (F::V)(__builtin_convertvector(read<F::H>(p), F::U) << 16); }

inline F::V load(const f16* p) {
  const F::U half = __builtin_convertvector(read<F::H>(p), F::U);
  const F::U magnitude = (half & 0x7fff) << 13;
  // the multiplication moves the exponent's bias, for subnormal numbers too
  const F::U finite = (F::U)((F::V)magnitude * 0x1p112f);
  const F::U special = magnitude | 0x7f800000u;
  const F::U bits = (half & 0x7c00) == 0x7c00 ? special : finite;
  return (F::V)(bits | (half & 0x8000) << 16);
}

inline void store(float* p, F::V v) { std::memcpy(p, &v, sizeof v); }
inline void store(double* p, Vec<double>::V v) { std::memcpy(p, &v, sizeof v); }

inline void store(bf16* p, F::V v) {
  const F::U bits = (F::U)v;
  const F::U rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;  // to nearest, ties to even
  const F::H half = __builtin_convertvector(v != v ? F::U{} + 0x7fc0 : rounded, F::H);
  std::memcpy(p, &half, sizeof half);
}

inline void store(f16* p, F::V v) {
  const F::U bits = (F::U)v & 0x7fffffff;
  const F::U sign = ((F::U)v >> 16) & 0x8000;
  const F::U normal = (bits - 0x38000000u + 0xfff + ((bits >> 13) & 1)) >> 13;
  // adding one half shifts a subnormal's bits into place and rounds them
  const F::U subnormal = (F::U)((F::V)bits + 0.5f) - 0x3f000000u;
  const F::U infinite = bits > 0x7f800000u ? F::U{} + 0x7e00 : F::U{} + 0x7c00;
  const F::U small = bits < 0x38800000u ? subnormal : normal;
  const F::H half = __builtin_convertvector((bits >= 0x47800000u ? infinite : small) | sign, F::H);
  std::memcpy(p, &half, sizeof half);
}

// The first n lanes only; nothing beyond p[n - 1] is touched.
template <class T> inline auto load_some(const T* p, int64_t n) {
  T buffer[Vec<typename Compute<T>::C>::lanes] = {};
  std::memcpy(buffer, p, n * sizeof(T));
  return load(buffer);
}

template <class T, class V> inline void store_some(T* p, V v, int64_t n) {
  T buffer[Vec<typename Compute<T>::C>::lanes];
  store(buffer, v);
  std::memcpy(p, buffer, n * sizeof(T));
}

// The last n of the lanes before `end`, the others zero. All lanes must be there to read.
template <class T> inline auto load_last(const T* end, int64_t n) {
  using W = Vec<typename Compute<T>::C>;
  typename W::M lane;
  for (int l = 0; l < W::lanes; ++l) lane[l] = l;
  const auto v = load(end - W::lanes);
  return lane >= typename W::I(W::lanes - n) ? v : typename W::V{};
}

template <class C> inline C sum_lanes(typename Vec<C>::V v) {
  C total = 0;
  for (int l = 0; l < Vec<C>::lanes; ++l) total += v[l];
  return total;
}

// (a, b) holding pairs in turn → all firsts (even) or all seconds (odd), and back (zip).
inline F::V even(F::V a, F::V b) {
  return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
}
inline F::V odd(F::V a, F::V b) {
  return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
}
inline F::V zip_low(F::V a, F::V b) {
  return __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}
inline F::V zip_high(F::V a, F::V b) {
  return __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
}
using D = Vec<double>;
inline D::V even(D::V a, D::V b) { return __builtin_shufflevector(a, b, 0, 2, 4, 6, 8, 10, 12, 14); }
inline D::V odd(D::V a, D::V b) { return __builtin_shufflevector(a, b, 1, 3, 5, 7, 9, 11, 13, 15); }
inline D::V zip_low(D::V a, D::V b) { return __builtin_shufflevector(a, b, 0, 8, 1, 9, 2, 10, 3, 11); }
inline D::V zip_high(D::V a, D::V b) { return __builtin_shufflevector(a, b, 4, 12, 5, 13, 6, 14, 7, 15); }

// v[0 … K-1] hold lanes * K neighbours; afterwards v[j] holds every K-th one from j on. And the reverse.
template <int K, class V> inline void deinterleave(V* v) {
  if constexpr (K > 1) {
    V first[K / 2], second[K / 2];
    for (int j = 0; j < K / 2; ++j) {
      first[j] = even(v[2 * j], v[2 * j + 1]);
      second[j] = odd(v[2 * j], v[2 * j + 1]);
    }
    deinterleave<K / 2>(first);
    deinterleave<K / 2>(second);
    for (int j = 0; j < K / 2; ++j) {
      v[2 * j] = first[j];
      v[2 * j + 1] = second[j];
    }
  }
}

template <int K, class V> inline void interleave(V* v) {
  if constexpr (K > 1) {
    V first[K / 2], second[K / 2];
    for (int j = 0; j < K / 2; ++j) {
      first[j] = v[2 * j];
      second[j] = v[2 * j + 1];
    }
    interleave<K / 2>(first);
    interleave<K / 2>(second);
    for (int j = 0; j < K / 2; ++j) {
      v[2 * j] = zip_low(first[j], second[j]);
      v[2 * j + 1] = zip_high(first[j], second[j]);
    }
  }
}

// v[0] and v[1] from 2 · lanes neighbours, in an order of the type's own that is cheap to load; in_order() undoes it.
template <class T, class V> inline void load_two(const T* p, V* v) {
  v[0] = load(p);
  v[1] = load(p + Vec<typename Compute<T>::C>::lanes);
}
template <class T, class V> inline void in_order(V*) {}

// Pairs of bf16 are a 32-bit word: its halves are the two floats but for a shift.
template <> inline void load_two<bf16, F::V>(const bf16* p, F::V* v) {
  const F::U pairs = read<F::U>(p);
  v[0] = (F::V)(pairs << 16);
  v[1] = (F::V)(pairs & 0xffff0000u);
}
template <> inline void in_order<bf16, F::V>(F::V* v) { interleave<2>(v); }

// v[j] = every K-th of lanes · K neighbours from j on.
template <int K, class T, class V> inline void load_apart(const T* p, V* v) {
  constexpr int L = Vec<typename Compute<T>::C>::lanes;
  if constexpr (std::is_same_v<T, bf16> && K > 1) {
    V first[K / 2], second[K / 2];
    for (int j = 0; j < K / 2; ++j) {
      V two[2];
      load_two(p + 2 * j * L, two);
      first[j] = two[0];
      second[j] = two[1];
    }
    deinterleave<K / 2>(first);
    deinterleave<K / 2>(second);
    for (int j = 0; j < K / 2; ++j) {
      v[2 * j] = first[j];
      v[2 * j + 1] = second[j];
    }
  } else {
    for (int j = 0; j < K; ++j) v[j] = load(p + j * L);
    deinterleave<K>(v);
  }
}

}  // namespace pix
