// Registers the forward kernel with torch's dispatcher, as the CPU kernel of surgery::pix.
//
// Through the functions of torch's stable C interface alone (torch 2.10 or later), looked up at run time in the
// libtorch_cpu that is loaded: nothing of torch is compiled against or linked, and without them surgery calls the
// kernels from Python. What it saves is Python between the layer and the kernel, some 0.1 ms a site where the caches
// are cold, as they are in a network.

#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "site.h"

extern "C" {
int32_t pix_forward(const PixSite* site, const void* x, const void* weight, const void* bias, void* y, void* p,
                    void* context, uint8_t* index);
}

namespace {

typedef uint64_t Value;   // StableIValue: a handle, a number's bits, or a pointer to either (null for None)
typedef void* Handle;     // AtenTensorHandle, StringHandle, StableListHandle, TorchLibraryHandle
typedef int32_t Status;   // AOTITorchError: 0 is success

constexpr uint64_t BUILT_FOR = uint64_t(2) << 56 | uint64_t(10) << 48;  // conventions of torch 2.10

struct Torch {
  Status (*aoti_torch_library_init_impl)(const char*, const char*, const char*, uint32_t, Handle*);
  Status (*torch_library_impl)(Handle, const char*, void (*)(Value*, uint64_t, uint64_t), uint64_t);
  Status (*aoti_torch_get_data_ptr)(Handle, void**);
  Status (*aoti_torch_get_dim)(Handle, int64_t*);
  Status (*aoti_torch_get_sizes)(Handle, int64_t**);
  Status (*aoti_torch_get_strides)(Handle, int64_t**);
  Status (*aoti_torch_get_dtype)(Handle, int32_t*);
  Status (*aoti_torch_empty_strided)(int64_t, const int64_t*, const int64_t*, int32_t, int32_t, int32_t, Handle*);
  Status (*aoti_torch_delete_tensor_object)(Handle);
  Status (*torch_list_size)(Handle, size_t*);
  Status (*torch_list_get_item)(Handle, size_t, Value*);
  Status (*torch_delete_list)(Handle);
  Status (*torch_string_c_str)(Handle, const char**);
  Status (*torch_delete_string)(Handle);
  Status (*torch_get_num_threads)(uint32_t*);
  PixParallelFor torch_parallel_for;
  int32_t types[4];
  int32_t cpu;
  Status (*torch_delete_stable_ivalue)(Value*);  // torch 2.13; before, the caller deletes
} torch;

void check(Status status, const char* what) {
  if (status != 0) throw std::runtime_error(std::string("surgery::pix: torch could not ") + what);
}

// A tensor of ours to release, with its geometry.
struct Tensor {
  Handle handle;
  int64_t dims = 0, *sizes = nullptr, *strides = nullptr;
  int32_t type = -1;
  void* data = nullptr;

  explicit Tensor(Handle h) : handle(h) {
    if (!handle) return;
    check(torch.aoti_torch_get_dim(handle, &dims), "tell a tensor's dimensions");
    check(torch.aoti_torch_get_sizes(handle, &sizes), "tell a tensor's sizes");
    check(torch.aoti_torch_get_strides(handle, &strides), "tell a tensor's strides");
    check(torch.aoti_torch_get_data_ptr(handle, &data), "tell a tensor's memory");
    int32_t code;
    check(torch.aoti_torch_get_dtype(handle, &code), "tell a tensor's dtype");
    for (int32_t i = 0; i < 4; ++i)
      if (torch.types[i] == code) type = i;
  }
  Tensor(const Tensor&) = delete;
  ~Tensor() {
    if (handle) torch.aoti_torch_delete_tensor_object(handle);
  }
  Handle release() {
    Handle h = handle;
    handle = nullptr;
    return h;
  }
  bool dense(const int64_t* order) const {  // order: axes, innermost first
    int64_t expected = 1;
    for (int64_t i = 0; i < dims; ++i) {
      if (sizes[order[i]] != 1 && strides[order[i]] != expected) return false;
      expected *= sizes[order[i]];
    }
    return true;
  }
};

const int64_t LAST[] = {1, 3, 2, 0}, FIRST[] = {3, 2, 1, 0};

Handle empty(int32_t type, int64_t dims, const int64_t* sizes, const int64_t* order) {
  int64_t strides[4], expected = 1;
  for (int64_t i = 0; i < dims; ++i) {
    strides[order[i]] = expected;
    expected *= std::max<int64_t>(sizes[order[i]], 1);
  }
  Handle handle;
  check(torch.aoti_torch_empty_strided(dims, sizes, strides, torch.types[type], torch.cpu, 0, &handle), "allocate");
  return handle;
}

// A dense copy of a map of any strides.
Handle densified(const Tensor& x, const int64_t* order) {
  Tensor copy(empty(x.type, 4, x.sizes, order));
  const int64_t bytes = x.type == PIX_DOUBLE ? 8 : x.type == PIX_FLOAT ? 4 : 2;
  for (int64_t a = 0; a < x.sizes[0]; ++a)
    for (int64_t b = 0; b < x.sizes[1]; ++b)
      for (int64_t c = 0; c < x.sizes[2]; ++c)
        for (int64_t d = 0; d < x.sizes[3]; ++d) {
          const int64_t at[] = {a, b, c, d};
          int64_t from = 0, to = 0;
          for (int64_t i = 0; i < 4; ++i) {
            from += at[i] * x.strides[i];
            to += at[i] * copy.strides[i];
          }
          std::memcpy(static_cast<char*>(copy.data) + to * bytes, static_cast<char*>(x.data) + from * bytes, bytes);
        }
  return copy.release();
}

std::string text(Value value) {
  const char* start;
  const Handle handle = reinterpret_cast<Handle>(value);
  check(torch.torch_string_c_str(handle, &start), "read a string");
  const std::string result(start);
  torch.torch_delete_string(handle);
  return result;
}

void pair(Value value, int64_t* numbers) {
  const Handle handle = reinterpret_cast<Handle>(value);
  size_t size;
  check(torch.torch_list_size(handle, &size), "read a list");
  if (size != 2) throw std::runtime_error("surgery::pix: stride needs two numbers");
  for (size_t i = 0; i < 2; ++i) {
    Value item;
    check(torch.torch_list_get_item(handle, i, &item), "read a list");
    numbers[i] = static_cast<int64_t>(item);
  }
  torch.torch_delete_list(handle);
}

Handle optional_tensor(Value value) {
  auto* place = reinterpret_cast<Value*>(value);
  if (!place) return nullptr;
  const Handle handle = reinterpret_cast<Handle>(*place);
  if (torch.torch_delete_stable_ivalue) torch.torch_delete_stable_ivalue(place);
  else delete place;
  return handle;
}

// (x, weight, bias, tau, fusion, operator, activation, stride, grouping) -> (y, p)
void pix_boxed(Value* stack, uint64_t, uint64_t) {
  Tensor given(reinterpret_cast<Handle>(stack[0])), weight(reinterpret_cast<Handle>(stack[1]));
  const Tensor bias(optional_tensor(stack[2]));
  PixSite site = {};
  std::memcpy(&site.tau, &stack[3], sizeof site.tau);
  const std::string fusion = text(stack[4]), reduction = text(stack[5]), activation = text(stack[6]);
  int64_t stride[2];
  pair(stack[7], stride);
  const std::string grouping = text(stack[8]);
  const bool plain = weight.dims == 2 || (weight.dims == 4 && weight.sizes[2] == 1 && weight.sizes[3] == 1);
  if (given.dims != 4 || !plain || given.type < 0 || weight.type < 0 || (bias.handle && bias.type != weight.type) ||
      (given.type == PIX_DOUBLE) != (weight.type == PIX_DOUBLE) || weight.sizes[1] != given.sizes[1] ||
      weight.sizes[0] > weight.sizes[1] || (bias.handle && (bias.dims != 1 || bias.sizes[0] != weight.sizes[0])) || stride[0] < 1 || stride[1] < 1)
    throw std::runtime_error("surgery::pix: x (N, C, H, W), weight (C_out, C, …) and bias do not fit each other");
  const int64_t rows[] = {1, 0}, filters[] = {3, 2, 1, 0};
  if (!weight.dense(weight.dims == 2 ? rows : filters)) throw std::runtime_error("surgery::pix: weight is not dense");

  const bool last = given.strides[1] == 1 && given.sizes[1] > 1 && !given.dense(FIRST);
  const int64_t* order = last ? LAST : FIRST;
  Tensor x(given.dense(order) ? given.release() : densified(given, order));
  const int64_t out_h = (x.sizes[2] + stride[0] - 1) / stride[0], out_w = (x.sizes[3] + stride[1] - 1) / stride[1];
  const int64_t y_sizes[] = {x.sizes[0], weight.sizes[0], out_h, out_w}, p_sizes[] = {x.sizes[0], weight.sizes[0]};
  Tensor y(empty(x.type, 4, y_sizes, order)), p(empty(weight.type, 2, p_sizes, rows));

  uint32_t threads = 1;
  torch.torch_get_num_threads(&threads);
  site.n = x.sizes[0], site.c = x.sizes[1], site.out = weight.sizes[0], site.h = x.sizes[2], site.w = x.sizes[3];
  site.out_h = out_h, site.out_w = out_w, site.stride_h = stride[0], site.stride_w = stride[1];
  site.threads = threads, site.parallel_for = torch.torch_parallel_for;
  site.nhwc = last || site.h * site.w == 1, site.strided = grouping == "strided";
  site.minimum = reduction == "min", site.weighted = fusion == "weighted", site.tanh = activation == "tanh";
  site.single = reduction == "max+avg" ? 0 : reduction == "avg" ? 2 : 1;
  site.x_type = x.type, site.weight_type = weight.type;
  std::vector<char> context(site.n * site.c * (x.type == PIX_DOUBLE ? 8 : 4));
  if (site.n * site.c * site.h * site.w > 0)
    pix_forward(&site, x.data, weight.data, bias.data, y.data, p.data, context.data(), nullptr);
  else  // the mean of nothing: all bits set is a NaN in every type
    std::memset(p.data, 0xff, site.n * site.out * (weight.type == PIX_DOUBLE ? 8 : weight.type == PIX_FLOAT ? 4 : 2));
  stack[0] = reinterpret_cast<Value>(y.release());
  stack[1] = reinterpret_cast<Value>(p.release());
}

template <class Function> bool find(void* library, const char* name, Function& function) {
  function = reinterpret_cast<Function>(dlsym(library, name));
  return function != nullptr;
}

}  // namespace

extern "C" {

// Registers with the torch whose libtorch_cpu lies at `path`, already loaded. 1, or 0 if it has not all it takes.
int32_t pix_register(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
  if (!library) return 0;
#define FIND(name) find(library, #name, torch.name)
  bool found = FIND(aoti_torch_library_init_impl) && FIND(torch_library_impl) && FIND(aoti_torch_get_data_ptr) &&
               FIND(aoti_torch_get_dim) && FIND(aoti_torch_get_sizes) && FIND(aoti_torch_get_strides) &&
               FIND(aoti_torch_get_dtype) && FIND(aoti_torch_empty_strided) &&
               FIND(aoti_torch_delete_tensor_object) && FIND(torch_list_size) && FIND(torch_list_get_item) &&
               FIND(torch_delete_list) && FIND(torch_string_c_str) && FIND(torch_delete_string) &&
               FIND(torch_get_num_threads) && FIND(torch_parallel_for);
  FIND(torch_delete_stable_ivalue);
#undef FIND
  const char* names[] = {"aoti_torch_dtype_float32", "aoti_torch_dtype_float64", "aoti_torch_dtype_bfloat16",
                         "aoti_torch_dtype_float16"};
  int32_t (*code)();
  for (int i = 0; i < 4 && found; ++i)
    if ((found = find(library, names[i], code))) torch.types[i] = code();
  if (!found || !find(library, "aoti_torch_device_type_cpu", code)) return 0;
  torch.cpu = code();
  Handle registration;  // lives as long as the process, as the kernel does
  if (torch.aoti_torch_library_init_impl("surgery", "CPU", __FILE__, __LINE__, &registration) != 0) return 0;
  return torch.torch_library_impl(registration, "pix", pix_boxed, BUILT_FOR) == 0;
}

}
