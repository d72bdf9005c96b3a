// Means over the pixels (the descriptor), sums of products (p's gradient), and the predictor.
#pragma once

#include <cmath>

#include "site.h"

namespace pix {

constexpr int64_t CHUNK = 128;  // pixels added up before they join the total: keeps float sums accurate

template <class T, bool PRODUCT> inline auto term(const T* a, const T* b) {
  if constexpr (PRODUCT) return load(a) * load(b);
  else return load(a);
}

// The same for 2 · lanes neighbours, in the order of load_two.
template <class T, bool PRODUCT, class V> inline void terms(const T* a, const T* b, V* v) {
  load_two(a, v);
  if constexpr (PRODUCT) {
    V other[2];
    load_two(b, other);
    v[0] *= other[0];
    v[1] *= other[1];
  }
}

// total[0 … c - 1] = sum over `pixels` rows of c values.
template <class T, bool PRODUCT>
void sum_rows(const T* a, const T* b, int64_t pixels, int64_t c, typename Compute<T>::C* total) {
  using C = typename Compute<T>::C;
  using V = typename Vec<C>::V;
  constexpr int L = Vec<C>::lanes;
  const int64_t whole = c / (2 * L) * (2 * L);
  std::fill(total, total + c, C(0));
  int64_t p = 0;
  for (; p + 4 <= pixels; p += 4)
    for (int64_t k = 0; k < whole; k += 2 * L) {
      V v[4][2];
      for (int64_t q = 0; q < 4; ++q)
        terms<T, PRODUCT>(a + (p + q) * c + k, PRODUCT ? b + (p + q) * c + k : nullptr, v[q]);
      for (int u = 0; u < 2; ++u)
        store(total + k + u * L, load(total + k + u * L) + ((v[0][u] + v[1][u]) + (v[2][u] + v[3][u])));
    }
  for (; p < pixels; ++p)
    for (int64_t k = 0; k < whole; k += 2 * L) {
      V v[2];
      terms<T, PRODUCT>(a + p * c + k, PRODUCT ? b + p * c + k : nullptr, v);
      for (int u = 0; u < 2; ++u) store(total + k + u * L, load(total + k + u * L) + v[u]);
    }
  for (int64_t k = 0; k < whole; k += 2 * L) {
    V v[2] = {load(total + k), load(total + k + L)};
    in_order<T>(v);
    store(total + k, v[0]);
    store(total + k + L, v[1]);
  }
  for (int64_t k = whole; k < c; k += L) {
    const int64_t n = std::min<int64_t>(L, c - k);
    V rest = {};
    for (p = 0; p < pixels; ++p) {
      const V value = load_some(a + p * c + k, n);
      if constexpr (PRODUCT) rest += value * load_some(b + p * c + k, n);
      else rest += value;
    }
    store_some(total + k, rest, n);
  }
}

// Sum of one plane, chunk by chunk.
template <class T, bool PRODUCT> typename Compute<T>::C sum_plane(const T* a, const T* b, int64_t count) {
  using C = typename Compute<T>::C;
  constexpr int L = Vec<C>::lanes;
  C total = 0;
  for (int64_t begin = 0; begin < count; begin += CHUNK * L) {
    const int64_t end = std::min(count, begin + CHUNK * L);
    typename Vec<C>::V sums[4] = {};
    int64_t k = begin;
    for (; k + 4 * L <= end; k += 4 * L)
      for (int u = 0; u < 4; ++u) sums[u] += term<T, PRODUCT>(a + k + u * L, PRODUCT ? b + k + u * L : nullptr);
    for (; k + L <= end; k += L) sums[0] += term<T, PRODUCT>(a + k, PRODUCT ? b + k : nullptr);
    if (k < end) {
      const auto rest = [&](const T* from) {
        return end >= L ? load_last(from + end, end - k) : load_some(from + k, end - k);
      };
      auto value = rest(a);
      if constexpr (PRODUCT) value = value * rest(b);
      sums[1] += value;
    }
    total += sum_lanes<C>((sums[0] + sums[1]) + (sums[2] + sums[3]));
  }
  return total;
}

// result (images, c) = scale · sum over pixels of a, or of a · b.
template <class T, bool PRODUCT>
void reduce_pixels(const PixSite& site, bool parallel, const T* a, const T* b, int64_t images, int64_t c,
                   int64_t pixels, typename Compute<T>::C scale, typename Compute<T>::C* result) {
  using C = typename Compute<T>::C;
  if (!site.nhwc) {
    run(site, parallel, images * c, 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        result[i] = scale * sum_plane<T, PRODUCT>(a + i * pixels, PRODUCT ? b + i * pixels : nullptr, pixels);
    });
    return;
  }
  const int64_t chunks = (pixels + CHUNK - 1) / CHUNK;
  std::vector<C> partial(images * chunks * c);
  run(site, parallel, images * chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t start = i % chunks * CHUNK, offset = (i / chunks * pixels + start) * c;
      sum_rows<T, PRODUCT>(a + offset, PRODUCT ? b + offset : nullptr, std::min(CHUNK, pixels - start), c, &partial[i * c]);
    }
  });
  for (int64_t image = 0; image < images; ++image) {
    C* total = result + image * c;
    std::fill(total, total + c, C(0));
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t k = 0; k < c; ++k) total[k] += partial[(image * chunks + chunk) * c + k];
    for (int64_t k = 0; k < c; ++k) total[k] *= scale;
  }
}

// logits[m] of M images: row · z_m. The order of the additions does not depend on M.
template <int M, class T, class C>
inline void dot(const T* row, const C* z, int64_t count, C* logits) {
  constexpr int L = Vec<C>::lanes;
  typename Vec<C>::V sums[M][2] = {};
  int64_t k = 0;
  for (; k + 2 * L <= count; k += 2 * L) {
    const auto first = load(row + k), second = load(row + k + L);
    for (int m = 0; m < M; ++m) {
      sums[m][0] += first * load(z + m * count + k);
      sums[m][1] += second * load(z + m * count + k + L);
    }
  }
  for (; k < count; k += L) {
    const int64_t n = std::min<int64_t>(L, count - k);
    const auto rest = load_some(row + k, n);
    for (int m = 0; m < M; ++m) sums[m][0] += rest * load_some(z + m * count + k, n);
  }
  for (int m = 0; m < M; ++m) logits[m] = sum_lanes<C>(sums[m][0] + sums[m][1]);
}

// p (images, out) = activation(W · z + b): stored in the weight's type, and that rounded value again in `exact`.
template <class T, class C>
void predict(const PixSite& site, bool parallel, const C* z, const T* weight, const T* bias, int64_t images, T* p,
             C* exact) {
  constexpr int M = 4;
  run(site, parallel, site.out, 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const C offset = bias ? load_some(bias + i, 1)[0] : C(0);
      for (int64_t image = 0; image < images; image += M) {
        C logits[M];
        const int64_t here = std::min<int64_t>(M, images - image);
        if (here == M) dot<M>(weight + i * site.c, z + image * site.c, site.c, logits);
        else
          for (int64_t m = 0; m < here; ++m) dot<1>(weight + i * site.c, z + (image + m) * site.c, site.c, logits + m);
        for (int64_t m = 0; m < here; ++m) {
          const C logit = logits[m] + offset;
          typename Vec<C>::V value = {};
          value[0] = site.tanh ? C(0.5) * (1 + std::tanh(logit)) : 1 / (1 + std::exp(-logit));
          T* place = p + (image + m) * site.out + i;
          store_some(place, value, 1);
          exact[(image + m) * site.out + i] = load_some(place, 1)[0];
        }
      }
    }
  });
}

}  // namespace pix
