// What a call is about, and how its work is shared among threads.
#pragma once

#include <algorithm>
#include <cstdint>
#include <thread>
#include <vector>

#include "vectors.h"

extern "C" {

typedef void (*PixRange)(int64_t begin, int64_t end, void* context);
typedef int32_t (*PixParallelFor)(int64_t begin, int64_t end, int64_t grain, PixRange range, void* context);

enum { PIX_FLOAT, PIX_DOUBLE, PIX_BF16, PIX_F16 };

// Mirrored by surgery/ops/cpu/library.py; all maps are dense, (N, C, H, W) or, with nhwc, (N, H, W, C).
struct PixSite {
  int64_t n, c, out, h, w, out_h, out_w, stride_h, stride_w, threads;
  int32_t nhwc, strided, minimum, weighted, single, tanh, x_type, weight_type;  // single: 1 extreme, 2 mean, 0 by tau
  double tau;
  PixParallelFor parallel_for;  // the host's own thread pool; null: threads of our own
};

}

namespace pix {

// Calls f(begin, end) on parts of 0 … count - 1. What a part computes never depends on where the parts are cut.
template <class Function> void run(const PixSite& site, bool parallel, int64_t count, int64_t grain, Function f) {
  if (!parallel || site.threads < 2 || count <= grain) {
    if (count > 0) f(int64_t(0), count);
    return;
  }
  const PixRange call = [](int64_t begin, int64_t end, void* context) {
    (*static_cast<Function*>(context))(begin, end);
  };
  if (site.parallel_for) {
    site.parallel_for(0, count, grain, call, &f);
    return;
  }
  const int64_t parts = std::min(site.threads, (count + grain - 1) / grain);
  std::vector<std::thread> others;
  for (int64_t part = 1; part < parts; ++part)
    others.emplace_back(call, part * count / parts, (part + 1) * count / parts, &f);
  call(0, count / parts, &f);
  for (std::thread& other : others) other.join();
}

// tau as p's type has it, which is what a comparison with p means in PyTorch.
template <class C> C rounded_tau(const PixSite& site) {
  typename Vec<C>::V value = {};
  value[0] = C(site.tau);
  if constexpr (std::is_same_v<C, float>) {
    bf16 b;
    f16 h;
    if (site.weight_type == PIX_BF16) return store_some(&b, value, 1), load_some(&b, 1)[0];
    if (site.weight_type == PIX_F16) return store_some(&h, value, 1), load_some(&h, 1)[0];
  }
  return value[0];
}

// Which channels a subset has: first, first + step, …
struct Subsets {
  std::vector<int64_t> first, size;
  int64_t step;
  bool strided;
  int64_t equal;  // the size where all are of one, else 0

  explicit Subsets(const PixSite& site)
      : first(site.out), size(site.out), step(site.strided ? site.out : 1), strided(site.strided) {
    for (int64_t i = 0; i < site.out; ++i) {
      first[i] = site.strided ? i : i * site.c / site.out;
      size[i] = site.strided ? (site.c - i + site.out - 1) / site.out : (i + 1) * site.c / site.out - first[i];
    }
    equal = site.c % site.out ? 0 : site.c / site.out;
  }
};

// Per output channel: the factors of extreme and sum, and whether the extreme is taken (-1) or the mean (0).
template <class C> struct Factors {
  std::vector<C> extreme, sum;
  std::vector<typename Vec<C>::I> take;

  Factors(const PixSite& site, const Subsets& subsets, const C* p)
      : extreme(site.out + Vec<C>::lanes), sum(site.out + Vec<C>::lanes), take(site.out + Vec<C>::lanes) {
    const C tau = rounded_tau<C>(site);
    for (int64_t i = 0; i < site.out; ++i) {
      extreme[i] = p[i];
      sum[i] = (site.weighted ? 1 - p[i] : p[i]) / C(subsets.size[i]);
      take[i] = site.single ? (site.single == 1 ? -1 : 0) : (p[i] <= tau ? -1 : 0);
    }
  }
};

}  // namespace pix
