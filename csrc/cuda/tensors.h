// Torch's tensors and products, as a layer around a loop over time needs them. Every function
// launches on torch's current stream; views are made past the dispatcher.
#pragma once

#include <array>

#include "bind.h"
#include "cuda/choose.h"

namespace fastrnn::cuda {

using torch::headeronly::ScalarType;
using Shape = std::vector<int64_t>;

// Uninitialised and dense, on the device of `like`.
inline Tensor make(const Tensor& like, const Shape& shape, ScalarType type) {
  return empty_like(like, shape, type);
}
inline Tensor make(const Tensor& like, const Shape& shape) { return empty_like(like, shape); }

// Contiguous and aligned to 16 bytes, as kernels copy it.
inline Tensor aligned(const Tensor& t) {
  const Tensor whole = dense(t);
  if (reinterpret_cast<uintptr_t>(whole.data_ptr()) % 16 == 0) return whole;
  return made(whole, [&] { return torch::stable::clone(whole); });
}
inline OptionalTensor aligned(const OptionalTensor& t) {
  return t ? OptionalTensor(aligned(*t)) : std::nullopt;
}

// A view that begins `offset` elements after the tensor.
inline Tensor part(const Tensor& t, const Shape& sizes, const Shape& strides, int64_t offset = 0) {
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch__reinterpret_tensor(
      t.get(), static_cast<int64_t>(sizes.size()), sizes.data(), strides.data(), offset, &handle));
  return Tensor(handle);
}
inline Tensor matrix(const Tensor& t, int64_t rows, int64_t columns) {
  return part(t, {rows, columns}, {columns, 1});
}

// A matrix among the columns of another: it and its transpose are views.
struct Matrix {
  const Tensor& of;
  int64_t rows, columns, pitch, offset = 0;

  Tensor plain() const { return part(of, {rows, columns}, {pitch, 1}, offset); }
  Tensor transposed() const { return part(of, {columns, rows}, {1, pitch}, offset); }
  Matrix some(int64_t first, int64_t count) const {
    return {of, count, columns, pitch, offset + first * pitch};
  }
};

// Dense tensors in one piece of memory, each aligned to 16 bytes.
inline std::vector<Tensor> pieces(const Tensor& like, const std::vector<Shape>& shapes) {
  std::vector<int64_t> offsets;
  int64_t all = 0;
  for (const Shape& shape : shapes) {
    offsets.push_back(all);
    int64_t count = 1;
    for (const int64_t size : shape) count *= size;
    all += ceil_div(count, 16) * 16;
  }
  const Tensor memory = make(like, {all});
  std::vector<Tensor> made;
  made.reserve(shapes.size());
  for (size_t k = 0; k < shapes.size(); ++k) {
    const Shape& shape = shapes[k];
    Shape strides(shape.size(), 1);
    for (size_t i = shape.size(); i-- > 1;) strides[i - 1] = strides[i] * shape[i];
    made.push_back(part(memory, shape, strides, offsets[k]));
  }
  return made;
}

template <class... Arguments>
void call(const char* name, const char* overload, const Arguments&... arguments) {
  std::array<StableIValue, sizeof...(arguments)> stack{torch::stable::detail::from(arguments)...};
  told([&] {
    TORCH_ERROR_CODE_CHECK(torch_call_dispatcher(name, overload, stack.data(), TORCH_ABI_VERSION));
  });
  (void)torch::stable::detail::to<Tensor>(stack[0]);  // an argument again
}

inline void copy(const Tensor& to, const Tensor& from) { call("aten::copy_", "", to, from, false); }
inline void multiply(const Tensor& out, const Tensor& a, const Tensor& b) {
  call("aten::mm", "out", a, b, out);
}
// a w^T + b, where b may be what is written
inline void linear(const Tensor& out, const Tensor& a, const Tensor& w, const OptionalTensor& b) {
  call("aten::linear", "out", a, w, b, out);
}
inline void sum_rows(Tensor out, const Tensor& of) {
  const int64_t first = 0;
  told([&] {
    torch::stable::sum_out(out, of, torch::headeronly::IntHeaderOnlyArrayRef(&first, 1));
  });
}
inline void select_rows(const Tensor& out, const Tensor& from, const Tensor& rows) {
  call("aten::index_select", "out", from, int64_t{0}, rows, out);
}
inline void copy_to_rows(const Tensor& to, const Tensor& rows, const Tensor& from) {
  call("aten::index_copy_", "", to, int64_t{0}, rows, from);
}
inline void zero_where(const Tensor& t, const Tensor& mask) {
  Tensor nothing = make(t, {});
  told([&] { torch::stable::zero_(nothing); });
  call("aten::where", "self_out", mask, nothing, t, t);  // masked_fill_ would wait for the device
}

// Products of batches for the steps of a loop, into sums that are float, or double where the
// factors are. Nothing is allocated when they are made.
class Products {
 public:
  Products(const Tensor& a, const Tensor& b, const Tensor& sums)
      : a_(a), b_(b), sums_(sums), same_(sums.scalar_type() == a.scalar_type()) {
    if (same_ || !a.is_cpu()) return;  // on a CPU torch has no such product
    wide_a_ = make(sums, shape(a));
    b_ = make(sums, shape(b));
    copy(b_, b);
  }
  void operator()() const {
    if (wide_a_) copy(*wide_a_, a_);
    if (same_ || wide_a_) return call("aten::bmm", "out", wide_a_.value_or(a_), b_, sums_);
    call("aten::bmm", "dtype_out", a_, b_, sums_.scalar_type(), sums_);
  }

 private:
  static Shape shape(const Tensor& t) { return {t.sizes().begin(), t.sizes().end()}; }

  const Tensor a_;
  Tensor b_;
  const Tensor sums_;
  OptionalTensor wide_a_;
  const bool same_;
};

}  // namespace fastrnn::cuda
