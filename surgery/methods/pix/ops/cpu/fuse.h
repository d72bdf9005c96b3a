// PiX Eq. 2 and 3: each output channel from one reduction, or two, of its subset.
#pragma once

#include <type_traits>

#include "site.h"

namespace pix {

template <class C> struct Reduced {
  typename Vec<C>::V extreme, sum;
  typename Vec<C>::M index;
};

// One more channel joins. Of equal ones the first stays; a NaN replaces all but a NaN.
template <bool MIN, class C>
inline void join(Reduced<C>& r, typename Vec<C>::V v, typename Vec<C>::M valid, int64_t j) {
  using M = typename Vec<C>::M;
  const M further = MIN ? v < r.extreme : v > r.extreme;
  const M replace = (further | ((v != v) & (r.extreme == r.extreme))) & valid;
  r.extreme = replace ? v : r.extreme;
  r.index = replace ? M{} + typename Vec<C>::I(j) : r.index;
  r.sum += valid ? v : typename Vec<C>::V{};
}

template <class C> inline typename Vec<C>::M all_lanes() { return typename Vec<C>::M{} - 1; }

// The same for values known to be no NaN: what compilers turn into one instruction each.
template <bool INDEX, class C> inline void join_number(Reduced<C>& r, typename Vec<C>::V v, int64_t j) {
  using M = typename Vec<C>::M;
  if constexpr (INDEX) {
    const M further = v > r.extreme;
    r.index = further ? M{} + typename Vec<C>::I(j) : r.index;
  }
  r.extreme = v > r.extreme ? v : r.extreme;
  r.sum += v;
}

template <bool EXACT, bool INDEX, bool MIN, class C>
inline void join_any(Reduced<C>& r, typename Vec<C>::V v, int64_t j) {
  if constexpr (EXACT || MIN) join<MIN>(r, v, all_lanes<C>(), j);
  else join_number<INDEX>(r, v, j);
}

// Subsets of K neighbours each, lanes subsets from x on.
template <int K, bool EXACT, bool INDEX, class T> inline auto reduce_neighbours(const T* x) {
  using C = typename Compute<T>::C;
  typename Vec<C>::V v[K];
  load_apart<K>(x, v);
  Reduced<C> r{v[0], v[0], {}};
  for (int j = 1; j < K; ++j) join_any<EXACT, INDEX, false>(r, v[j], j);
  return r;
}

// Subsets of `size` channels each, `step` apart, lanes subsets from x on.
template <bool EXACT, bool INDEX, bool MIN, class T> inline auto reduce_apart(const T* x, int64_t size, int64_t step) {
  using C = typename Compute<T>::C;
  const auto first = load(x);
  Reduced<C> r{first, first, {}};
  for (int64_t j = 1; j < size; ++j) join_any<EXACT, INDEX, MIN>(r, load(x + j * step), j);
  return r;
}

// Subsets i … i + lanes - 1 (those that exist) at one pixel, whatever their sizes.
template <bool MIN, class T> inline auto reduce_any(const T* x, const Subsets& subsets, int64_t i, int64_t out) {
  using C = typename Compute<T>::C;
  constexpr int L = Vec<C>::lanes;
  const int64_t here = std::min<int64_t>(L, out - i);
  int64_t longest = 0, shortest = subsets.size[i];
  for (int64_t l = 0; l < here; ++l) {
    longest = std::max(longest, subsets.size[i + l]);
    shortest = std::min(shortest, subsets.size[i + l]);
  }
  Reduced<C> r{};
  for (int64_t j = 0; j < longest; ++j) {
    typename Vec<C>::V v = {};
    typename Vec<C>::M valid = {};
    if (subsets.strided && j < shortest && here == L) {
      v = load(x + i + j * subsets.step);
      valid = all_lanes<C>();
    } else {
      T values[L] = {};
      for (int64_t l = 0; l < here; ++l) {
        if (j >= subsets.size[i + l]) continue;
        values[l] = x[subsets.first[i + l] + j * subsets.step];
        valid[l] = -1;
      }
      v = load(values);
    }
    if (j == 0) r = Reduced<C>{v, v, {}};
    else join<MIN>(r, v, valid, j);
  }
  return r;
}

template <class C>
inline typename Vec<C>::V fused(const Reduced<C>& r, typename Vec<C>::V extreme, typename Vec<C>::V sum,
                                typename Vec<C>::M take, bool weighted) {
  const typename Vec<C>::V a = extreme * r.extreme, b = sum * r.sum;
  if (weighted) return a + b;
  return take ? a : b;
}

template <class C> inline void store_index(uint8_t* place, typename Vec<C>::M index, int64_t n) {
  const auto bytes = __builtin_convertvector(index, typename Vec<C>::B);
  std::memcpy(place, &bytes, n);
}

template <class C> inline bool is_number(typename Vec<C>::V v) {
  const typename Vec<C>::V zero = v * 0;  // NaN where v is NaN or infinite
  C total = 0;
  for (int l = 0; l < Vec<C>::lanes; ++l) total += zero[l];
  return total == 0;
}

// One pixel's channels. K: neighbours per subset; 0: subsets of one size, K' = step apart; -1: any subsets.
// `seen` becomes NaN or infinite where a value was: without EXACT the caller must then come again with it.
template <int K, bool EXACT, bool MIN, bool INDEX, class T>
inline void fuse_pixel(const PixSite& site, const Subsets& subsets, const Factors<typename Compute<T>::C>& factors,
                       const T* x, T* y, uint8_t* index, typename Vec<typename Compute<T>::C>::V& seen) {
  using C = typename Compute<T>::C;
  constexpr int L = Vec<C>::lanes;
  const bool weighted = site.weighted;
  int64_t i = 0;
  const auto write = [&](const Reduced<C>& r, int64_t n) {
    const auto take = read<typename Vec<C>::M>(&factors.take[i]);
    const auto value = fused<C>(r, load(&factors.extreme[i]), load(&factors.sum[i]), take, weighted);
    if (n == L) store(y + i, value);
    else store_some(y + i, value, n);
    if constexpr (INDEX) store_index<C>(index + i, r.index, n);
    if constexpr (!EXACT) seen += r.sum * 0;
  };
  if constexpr (K > 0)
    for (; i + L <= site.out; i += L) write(reduce_neighbours<K, EXACT, INDEX>(x + i * K), L);
  if constexpr (K == 0)
    for (; i + L <= site.out; i += L) write(reduce_apart<EXACT, INDEX, MIN>(x + i, subsets.equal, subsets.step), L);
  for (; i < site.out; i += L) write(reduce_any<MIN>(x, subsets, i, site.out), std::min<int64_t>(L, site.out - i));
}

// Rows begin … end - 1 of one image's output, (H, W, C) in memory.
template <int K, bool MIN, bool INDEX, class T>
void fuse_rows(const PixSite& site, const Subsets& subsets, const Factors<typename Compute<T>::C>& factors, const T* x,
               T* y, uint8_t* index, int64_t begin, int64_t end) {
  using C = typename Compute<T>::C;
  for (int64_t row = begin; row < end; ++row) {
    typename Vec<C>::V seen = {};
    const auto pixels = [&](auto exact) {
      for (int64_t column = 0; column < site.out_w; ++column) {
        const int64_t to = (row * site.out_w + column) * site.out;
        const T* from = x + (row * site.stride_h * site.w + column * site.stride_w) * site.c;
        fuse_pixel<K, exact.value, MIN, INDEX>(site, subsets, factors, from, y + to, INDEX ? index + to : nullptr, seen);
      }
    };
    pixels(std::false_type());
    if (!is_number<C>(seen)) pixels(std::true_type());
  }
}

// `count` values of one output channel from planes `step` apart; every value `apart` of the plane.
template <bool EXACT, bool MIN, bool INDEX, class T>
inline void fuse_run(const T* x, int64_t size, int64_t step, int64_t apart, int64_t count,
                     typename Compute<T>::C extreme, typename Compute<T>::C sum, bool take, bool weighted, T* y,
                     uint8_t* index, typename Vec<typename Compute<T>::C>::V& seen) {
  using C = typename Compute<T>::C;
  using V = typename Vec<C>::V;
  constexpr int L = Vec<C>::lanes;
  const auto finish = [&](const Reduced<C>& r, int64_t k, int64_t n) {
    const V value = weighted ? r.extreme * extreme + r.sum * sum : take ? r.extreme * extreme : r.sum * sum;
    if (n == L) store(y + k, value);
    else store_some(y + k, value, n);
    if constexpr (INDEX) store_index<C>(index + k, r.index, n);
    if constexpr (!EXACT) seen += r.sum * 0;
  };
  int64_t k = 0;
  if (apart == 1 && count >= L) {
    // the last vector ends where the values end, and does some of them twice
    if (take || weighted)
      for (; k < count; k += L) {
        const int64_t at = std::min(k, count - L);
        finish(reduce_apart<EXACT, INDEX, MIN>(x + at, size, step), at, L);
      }
    else
      for (; k < count; k += L) {
        const int64_t at = std::min(k, count - L);
        V total = load(x + at);
        for (int64_t j = 1; j < size; ++j) total += load(x + at + j * step);
        finish(Reduced<C>{total, total, {}}, at, L);
      }
    return;
  }
  for (; k < count; k += L) {
    const int64_t n = std::min<int64_t>(L, count - k);
    Reduced<C> r{};
    for (int64_t j = 0; j < size; ++j) {
      T values[L] = {};
      for (int64_t l = 0; l < n; ++l) values[l] = x[(k + l) * apart + j * step];
      const V v = load(values);
      if (j == 0) r = Reduced<C>{v, v, {}};
      else join<MIN>(r, v, all_lanes<C>(), j);
    }
    finish(r, k, n);
  }
}

// Output channels begin … end - 1 of one image, (C, H, W) in memory.
template <bool MIN, bool INDEX, class T>
void fuse_planes(const PixSite& site, const Subsets& subsets, const Factors<typename Compute<T>::C>& factors, const T* x,
                 T* y, uint8_t* index, int64_t begin, int64_t end) {
  using C = typename Compute<T>::C;
  const bool dense = site.stride_h == 1 && site.stride_w == 1;
  const int64_t rows = dense ? 1 : site.out_h, width = dense ? site.h * site.w : site.out_w, plane = site.h * site.w;
  for (int64_t i = begin; i < end; ++i)
    for (int64_t row = 0; row < rows; ++row) {
      typename Vec<C>::V seen = {};
      const auto fuse_with = [&](auto exact) {
        const int64_t to = i * site.out_h * site.out_w + row * width;
        fuse_run<exact.value, MIN, INDEX>(x + subsets.first[i] * plane + row * site.stride_h * site.w, subsets.size[i], subsets.step * plane,
                 site.stride_w, width, factors.extreme[i], factors.sum[i], factors.take[i] != 0, site.weighted != 0,
                 y + to, INDEX ? index + to : nullptr, seen);
      };
      fuse_with(std::false_type());
      if (!is_number<C>(seen)) fuse_with(std::true_type());
    }
}

template <bool MIN, bool INDEX, class T>
void fuse_image(const PixSite& site, bool parallel, const Subsets& subsets, const typename Compute<T>::C* p, const T* x,
                T* y, uint8_t* index) {
  const Factors<typename Compute<T>::C> factors(site, subsets, p);
  const int64_t neighbours = MIN ? 0 : subsets.equal;
  const auto rows = [&](auto function) {
    run(site, parallel, site.out_h, 1, [&](int64_t begin, int64_t end) {
      function(site, subsets, factors, x, y, index, begin, end);
    });
  };
  if (!site.nhwc)
    run(site, parallel, site.out, 1, [&](int64_t begin, int64_t end) {
      fuse_planes<MIN, INDEX>(site, subsets, factors, x, y, index, begin, end);
    });
  else if (subsets.equal && subsets.strided) rows(fuse_rows<0, MIN, INDEX, T>);
  else if (neighbours == 1) rows(fuse_rows<1, false, INDEX, T>);
  else if (neighbours == 2) rows(fuse_rows<2, false, INDEX, T>);
  else if (neighbours == 4) rows(fuse_rows<4, false, INDEX, T>);
  else if (neighbours == 8) rows(fuse_rows<8, false, INDEX, T>);
  else rows(fuse_rows<-1, MIN, INDEX, T>);
}

}  // namespace pix
