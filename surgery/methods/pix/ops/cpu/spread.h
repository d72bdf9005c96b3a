// The gradient of the input: what reached the mean or the extreme of each subset, and the descriptor's share.
#pragma once

#include "site.h"

namespace pix {

template <class C> struct Arrived {
  typename Vec<C>::V picked, spread;  // to the channel of the index alone; to every channel
  typename Vec<C>::M index;
};

template <class C>
inline Arrived<C> arrived(typename Vec<C>::V grad, typename Vec<C>::M index, typename Vec<C>::V extreme,
                          typename Vec<C>::V sum, typename Vec<C>::M take) {
  const typename Vec<C>::V none = {};
  return {take ? grad * extreme : none, take ? none : grad * sum, index};
}

template <class C> inline typename Vec<C>::V share(const Arrived<C>& a, int64_t j) {
  const typename Vec<C>::M here = a.index == typename Vec<C>::I(j);
  return (here ? a.picked : typename Vec<C>::V{}) + a.spread;
}

template <class C> inline typename Vec<C>::M load_index(const uint8_t* place, int64_t n) {
  typename Vec<C>::B bytes = {};
  std::memcpy(&bytes, place, n);
  return __builtin_convertvector(bytes, typename Vec<C>::M);
}

template <class T> inline void store_all(T* to, const typename Compute<T>::C* from, int64_t count) {
  constexpr int L = Vec<typename Compute<T>::C>::lanes;
  int64_t k = 0;
  for (; k + L <= count; k += L) store(to + k, load(from + k));
  if (k < count) store_some(to + k, load_some(from + k, count - k), count - k);
}

// Rows begin … end - 1 of one image's input, (H, W, C) in memory; K as for fuse_rows.
template <int K, class T>
void spread_rows(const PixSite& site, const Subsets& subsets, const Factors<typename Compute<T>::C>& factors,
                 const T* grad, const uint8_t* index, const typename Compute<T>::C* base, T* dx, int64_t begin,
                 int64_t end) {
  using C = typename Compute<T>::C;
  using V = typename Vec<C>::V;
  constexpr int L = Vec<C>::lanes;
  std::vector<C> pixel(site.c);
  for (int64_t row = begin; row < end; ++row)
    for (int64_t column = 0; column < site.w; ++column) {
      T* to = dx + (row * site.w + column) * site.c;
      if (row % site.stride_h || column % site.stride_w) {
        store_all(to, base, site.c);
        continue;
      }
      const int64_t from = (row / site.stride_h * site.out_w + column / site.stride_w) * site.out;
      const auto arrive = [&](int64_t i, int64_t n) {
        const V value = n == L ? load(grad + from + i) : load_some(grad + from + i, n);
        const auto take = read<typename Vec<C>::M>(&factors.take[i]);
        return arrived<C>(value, load_index<C>(index + from + i, n), load(&factors.extreme[i]), load(&factors.sum[i]), take);
      };
      int64_t i = 0;
      if constexpr (K > 0)
        for (; i + L <= site.out; i += L) {
          const Arrived<C> a = arrive(i, L);
          V v[K];
          for (int j = 0; j < K; ++j) v[j] = share(a, j);
          interleave<K>(v);
          for (int j = 0; j < K; ++j) store(to + i * K + j * L, v[j] + load(base + i * K + j * L));
        }
      if (i == site.out) continue;
      const int64_t rest = subsets.strided ? 0 : subsets.first[i];
      for (; i < site.out; i += L) {
        const int64_t n = std::min<int64_t>(L, site.out - i);
        const Arrived<C> a = arrive(i, n);
        const int64_t longest = *std::max_element(&subsets.size[i], &subsets.size[i] + n);
        for (int64_t j = 0; j < longest; ++j) {
          const V v = share(a, j);
          for (int64_t l = 0; l < n; ++l)
            if (j < subsets.size[i + l]) pixel[subsets.first[i + l] + j * subsets.step] = v[l];
        }
      }
      for (int64_t k = rest; k < site.c; ++k) pixel[k] += base[k];
      store_all(to + rest, pixel.data() + rest, site.c - rest);
    }
}

// Subsets begin … end - 1 of one image, (C, H, W) in memory.
template <class T>
void spread_planes(const PixSite& site, const Subsets& subsets, const Factors<typename Compute<T>::C>& factors,
                   const T* grad, const uint8_t* index, const typename Compute<T>::C* base, T* dx, int64_t begin,
                   int64_t end) {
  using C = typename Compute<T>::C;
  using V = typename Vec<C>::V;
  constexpr int L = Vec<C>::lanes;
  const bool dense = site.stride_h == 1 && site.stride_w == 1;
  const int64_t rows = dense ? 1 : site.out_h, width = dense ? site.h * site.w : site.out_w;
  for (int64_t i = begin; i < end; ++i)
    for (int64_t j = 0; j < subsets.size[i]; ++j) {
      const int64_t channel = subsets.first[i] + j * subsets.step;
      T* plane = dx + channel * site.h * site.w;
      if (!dense) {
        const std::vector<C> row(site.w, base[channel]);
        for (int64_t r = 0; r < site.h; ++r) store_all(plane + r * site.w, row.data(), site.w);
      }
      for (int64_t row = 0; row < rows; ++row)
        for (int64_t start = 0; start < width; start += L) {
          // the last vector ends where the row ends, and does some of it twice
          const int64_t column = width >= L ? std::min(start, width - L) : start;
          const int64_t n = std::min<int64_t>(L, width - column);
          const int64_t from = i * site.out_h * site.out_w + row * width + column;
          const V value = n == L ? load(grad + from) : load_some(grad + from, n);
          const Arrived<C> a = arrived<C>(value, load_index<C>(index + from, n), V{} + factors.extreme[i],
                                          V{} + factors.sum[i], typename Vec<C>::M{} + factors.take[i]);
          const V v = share(a, j) + base[channel];
          T* to = plane + row * site.stride_h * site.w + column * site.stride_w;
          if (site.stride_w == 1 && n == L) store(to, v);
          else if (site.stride_w == 1) store_some(to, v, n);
          else {
            T buffer[L];
            store(buffer, v);
            for (int64_t l = 0; l < n; ++l) to[l * site.stride_w] = buffer[l];
          }
        }
    }
}

template <class T>
void spread_image(const PixSite& site, bool parallel, const Subsets& subsets, const typename Compute<T>::C* p,
                  const T* grad, const uint8_t* index, const typename Compute<T>::C* base, T* dx) {
  const Factors<typename Compute<T>::C> factors(site, subsets, p);
  const auto rows = [&](auto function) {
    run(site, parallel, site.h, 1, [&](int64_t begin, int64_t end) {
      function(site, subsets, factors, grad, index, base, dx, begin, end);
    });
  };
  const int64_t neighbours = subsets.strided ? 0 : subsets.equal;
  if (!site.nhwc)
    run(site, parallel, site.out, 1, [&](int64_t begin, int64_t end) {
      spread_planes(site, subsets, factors, grad, index, base, dx, begin, end);
    });
  else if (neighbours == 1) rows(spread_rows<1, T>);
  else if (neighbours == 2) rows(spread_rows<2, T>);
  else if (neighbours == 4) rows(spread_rows<4, T>);
  else if (neighbours == 8) rows(spread_rows<8, T>);
  else rows(spread_rows<0, T>);
}

}  // namespace pix
