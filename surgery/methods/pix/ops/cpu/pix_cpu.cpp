// The C interface of the PiX kernels: plain pointers and numbers, so that one build serves any Python and any torch.

#include <algorithm>

#include "fuse.h"
#include "pool.h"
#include "spread.h"

namespace pix {

// Images whose maps are read again soon enough to be in cache still; the weights are read once for all of them.
constexpr int64_t BLOCK_BYTES = int64_t(1) << 21;

// Calls f(parallel, begin, end) on runs of images: many images are shared among threads, few each use all threads.
template <class Function> void over_images(const PixSite& site, int64_t block, Function f) {
  const bool outer = site.n >= 4 * site.threads;
  run(site, outer, site.n, 1, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; b += block) f(!outer, b, std::min(end, b + block));
  });
}

template <class T> int64_t images_per_block(const PixSite& site) {
  return std::max<int64_t>(1, BLOCK_BYTES / std::max<int64_t>(1, site.c * site.h * site.w * sizeof(T)));
}

template <bool MIN, class T>
void fuse(const PixSite& site, bool parallel, const Subsets& subsets, const typename Compute<T>::C* p, const T* x,
          T* y, uint8_t* index) {
  if (index) fuse_image<MIN, true>(site, parallel, subsets, p, x, y, index);
  else fuse_image<MIN, false>(site, parallel, subsets, p, x, y, nullptr);
}

template <class T>
void fuse_images(const PixSite& site, bool parallel, const Subsets& subsets, const typename Compute<T>::C* p, const T* x,
                 T* y, uint8_t* index, int64_t images) {
  const int64_t in = site.c * site.h * site.w, out = site.out * site.out_h * site.out_w;
  for (int64_t i = 0; i < images; ++i) {
    uint8_t* place = index ? index + i * out : nullptr;
    const auto function = site.minimum ? fuse<true, T> : fuse<false, T>;
    function(site, parallel, subsets, p + i * site.out, x + i * in, y + i * out, place);
  }
}

template <class T, class W>
void forward(const PixSite& site, const T* x, const W* weight, const W* bias, T* y, W* p,
             typename Compute<T>::C* context, uint8_t* index) {
  using C = typename Compute<T>::C;
  const Subsets subsets(site);
  const int64_t pixels = site.h * site.w, in = site.c * pixels, out = site.out * site.out_h * site.out_w;
  over_images(site, images_per_block<T>(site), [&](bool parallel, int64_t begin, int64_t end) {
    std::vector<C> exact((end - begin) * site.out);
    C* z = context + begin * site.c;
    reduce_pixels<T, false>(site, parallel, x + begin * in, nullptr, end - begin, site.c, pixels, C(1) / C(pixels), z);
    predict(site, parallel, z, weight, bias, end - begin, p + begin * site.out, exact.data());
    fuse_images(site, parallel, subsets, exact.data(), x + begin * in, y + begin * out, index ? index + begin * out : nullptr, end - begin);
  });
}

// f(x's type) for the type code.
template <class Function> int32_t with_type(int32_t code, Function f) {
  switch (code) {
    case PIX_FLOAT: f(static_cast<float*>(nullptr)); return 0;
    case PIX_DOUBLE: f(static_cast<double*>(nullptr)); return 0;
    case PIX_BF16: f(static_cast<bf16*>(nullptr)); return 0;
    case PIX_F16: f(static_cast<f16*>(nullptr)); return 0;
  }
  return 1;
}

template <class T> constexpr bool is_double = sizeof(typename Compute<T>::C) == sizeof(double);

}  // namespace pix

using namespace pix;

extern "C" {

// Changes with PixSite or any signature below.
int64_t pix_interface() { return 1000 + sizeof(PixSite); }

// y, p, context (N, C) and, unless null, index (as y) of a whole site. 0, or 1 for types that it does not take.
int32_t pix_forward(const PixSite* site, const void* x, const void* weight, const void* bias, void* y, void* p,
                    void* context, uint8_t* index) {
  int32_t status = 1;
  with_type(site->x_type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    with_type(site->weight_type, [&](auto* w) {
      using W = std::remove_pointer_t<decltype(w)>;
      if constexpr (is_double<T> == is_double<W>) {
        forward(*site, static_cast<const T*>(x), static_cast<const W*>(weight), static_cast<const W*>(bias),
                static_cast<T*>(y), static_cast<W*>(p), static_cast<typename Compute<T>::C*>(context), index);
        status = 0;
      }
    });
  });
  return status;
}

// y from x and a p of the caller's own, (N, C_out) in the computing type (double for double, else float).
int32_t pix_fuse(const PixSite* site, const void* x, const void* p, void* y) {
  const Subsets subsets(*site);
  return with_type(site->x_type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    over_images(*site, 1, [&](bool parallel, int64_t begin, int64_t end) {
      const int64_t in = site->c * site->h * site->w, out = site->out * site->out_h * site->out_w;
      fuse_images(*site, parallel, subsets, static_cast<const typename Compute<T>::C*>(p) + begin * site->out,
                  static_cast<const T*>(x) + begin * in, static_cast<T*>(y) + begin * out, nullptr, end - begin);
    });
  });
}

// total (N, C_out), in the computing type: sums over the pixels of grad · y.
int32_t pix_products(const PixSite* site, const void* grad, const void* y, void* total) {
  return with_type(site->x_type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using C = typename Compute<T>::C;
    const int64_t pixels = site->out_h * site->out_w;
    over_images(*site, 1, [&](bool parallel, int64_t begin, int64_t end) {
      const int64_t offset = begin * site->out * pixels;
      reduce_pixels<T, true>(*site, parallel, static_cast<const T*>(grad) + offset, static_cast<const T*>(y) + offset,
                             end - begin, site->out, pixels, C(1), static_cast<C*>(total) + begin * site->out);
    });
  });
}

// dx from y's gradient, p and base (N, C), both in the computing type: base is what every pixel of a channel gets.
int32_t pix_spread(const PixSite* site, const void* grad, const void* p, const uint8_t* index, const void* base,
                   void* dx) {
  const Subsets subsets(*site);
  return with_type(site->x_type, [&](auto* t) {
    using T = std::remove_pointer_t<decltype(t)>;
    using C = typename Compute<T>::C;
    const int64_t in = site->c * site->h * site->w, out = site->out * site->out_h * site->out_w;
    over_images(*site, 1, [&](bool parallel, int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i)
        spread_image(*site, parallel, subsets, static_cast<const C*>(p) + i * site->out,
                     static_cast<const T*>(grad) + i * out, index + i * out, static_cast<const C*>(base) + i * site->c,
                     static_cast<T*>(dx) + i * in);
    });
  });
}

}
