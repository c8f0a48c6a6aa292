// From torch's tensors to the views of call.h, for every device.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <optional>
#include <string>
#include <vector>

#include "call.h"

// Null before torch 2.13.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace fastrnn {

// A text that an op is given. Torch's own conversion, to std::string, leaks it (2.13).
struct Text : std::string {
  Text(const char* data, size_t length) : std::string(data, length) {}
};

}  // namespace fastrnn

namespace torch::stable::detail {

template <>
struct ToImpl<fastrnn::Text> {
  static fastrnn::Text call(StableIValue value, uint64_t, bool) {
    const auto handle = to<StringHandle>(value);
    const char* data;
    size_t length;
    TORCH_ERROR_CODE_CHECK(torch_string_c_str(handle, &data));
    TORCH_ERROR_CODE_CHECK(torch_string_length(handle, &length));
    fastrnn::Text text(data, length);
    TORCH_ERROR_CODE_CHECK(torch_delete_string(handle));
    return text;
  }
};

}  // namespace torch::stable::detail

namespace fastrnn {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// What a call to torch gives. Where it fails, torch's own words are thrown; before 2.13 it keeps
// them from others, and there are only those of TORCH_ERROR_CODE_CHECK.
template <class F>
auto told(F&& call) {
  try {
    return call();
  } catch (const std::runtime_error&) {
    if (torch_exception_get_what_without_backtrace)
      throw std::runtime_error(torch_exception_get_what_without_backtrace());
    throw;
  }
}

// The tensor that a call to torch makes, of so many bytes if they are known, on the device of
// `like`. On a CPU there is one reason for a failure.
template <class F>
Tensor made(const Tensor& like, F&& call, int64_t bytes = 0) {
  try {
    return told(call);
  } catch (const std::runtime_error& error) {
    if (torch_exception_get_what_without_backtrace) throw;
    if (like.is_cpu()) throw std::runtime_error("DefaultCPUAllocator: can't allocate memory");
    if (bytes == 0) throw;
    fail(error.what(), ", for ", bytes, " bytes");
  }
}

// A call through the dispatcher costs more than many a layer of one step: none where none is due.
inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : made(t, [&] { return torch::stable::contiguous(t); });
}

// Bytes of a number of a layer.
inline int64_t item_size_of(torch::headeronly::ScalarType type) {
  using torch::headeronly::ScalarType;
  return type == ScalarType::Double ? 8 : type == ScalarType::Float ? 4 : 2;
}

inline Type type_of(const Tensor& t) {
  using torch::headeronly::ScalarType;
  switch (t.scalar_type()) {
    case ScalarType::Float:
      return Type::kFloat;
    case ScalarType::Double:
      return Type::kDouble;
    case ScalarType::BFloat16:
      return Type::kBf16;
    case ScalarType::Half:
      return Type::kHalf;
    case ScalarType::Bool:
      return Type::kBool;
    case ScalarType::Long:
      return Type::kInt64;
    default:
      return Type::kOther;
  }
}

inline View view(const Tensor& t) {
  View v;
  v.data = t.data_ptr();
  FASTRNN_CHECK(v.data || t.numel() == 0, "a tensor has no memory: its storage was freed");
  v.type = type_of(t);
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(t.get(), &v.device_type));
  v.device_index = t.get_device_index();
  v.shape(t.dim(), t.sizes().data(), t.strides().data());
  return v;
}

// Uninitialised and dense, of the dtype of `like` unless one is given, and on its device. Past the
// dispatcher: torch::stable::empty takes longer than a cell.
inline Tensor empty_like(const Tensor& like, const std::vector<int64_t>& shape,
                         std::optional<torch::headeronly::ScalarType> dtype = std::nullopt) {
  std::vector<int64_t> strides(shape.size(), 1);
  for (size_t i = shape.size(); i-- > 1;)
    strides[i - 1] = strides[i] * std::max<int64_t>(shape[i], 1);
  int32_t device;
  AtenTensorHandle handle;
  const auto type = static_cast<int32_t>(dtype.value_or(like.scalar_type()));
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device));
  const auto make = [&] {
    TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()),
                                                    shape.data(), strides.data(), type, device,
                                                    like.get_device_index(), &handle));
    return Tensor(handle);
  };
  const int64_t count = shape.empty() ? 1 : shape[0] * strides[0];
  return made(like, make, count * item_size_of(dtype.value_or(like.scalar_type())));
}

// The arguments that all ops share, in the order of the schema in fastrnn/call.py, which are kept
// alive here. Not copied: the call has views of them.
class Arguments {
 public:
  Arguments(const Tensor& input, const OptionalTensor& batch_sizes, const Tensor& h0,
            const OptionalTensor& c0, const std::vector<Tensor>& weights, const std::string& cell,
            const std::string& names, const OptionalTensor& reset, const OptionalTensor& lengths,
            bool lengths_unread = false, int64_t parts = 3)
      : input_(keep(input)),
        cell_(cell),
        names_(names),
        call(given(batch_sizes, h0, c0, weights, reset, lengths, lengths_unread, parts)) {}

  // Leading sizes of the input: (T, N) or (rows,); with one more they are those of the output.
  std::vector<int64_t> output_shape() const {
    const Sizes& s = call.size;
    const int64_t width = s.directions * s.state;
    return call.packed() ? std::vector<int64_t>{s.rows, width}
                         : std::vector<int64_t>{call.given.input.size[0], s.batch, width};
  }
  Tensor empty(const std::vector<int64_t>& shape) const { return empty_like(input_, shape); }
  // The tensor, dense, kept as long as this object.
  Tensor keep(const Tensor& t) {
    kept_.push_back(dense(t));
    return kept_.back();
  }

 private:
  std::optional<View> keep(const OptionalTensor& t) {
    return t ? std::optional<View>(view(keep(*t))) : std::nullopt;
  }
  Given given(const OptionalTensor& batch_sizes, const Tensor& h0, const OptionalTensor& c0,
              const std::vector<Tensor>& weights, const OptionalTensor& reset,
              const OptionalTensor& lengths, bool lengths_unread, int64_t parts) {
    FASTRNN_CHECK(!batch_sizes || batch_sizes->is_cpu(), "batch_sizes must be on the CPU");
    for (const Tensor& w : weights) weights_.push_back(view(keep(w)));
    return {.cell = cell_,
            .names = WeightNames(names_),
            .input = view(input_),
            .h0 = view(keep(h0)),
            .batch_sizes = keep(batch_sizes),
            .c0 = keep(c0),
            .reset = keep(reset),
            .lengths = keep(lengths),
            .lengths_unread = lengths_unread,
            .weights = weights_.data(),
            .weight_count = static_cast<int64_t>(weights_.size()),
            .parts = parts};
  }

  std::vector<Tensor> kept_;
  std::vector<View> weights_;
  const Tensor input_;
  const std::string cell_, names_;

 public:
  const Call call;
};

}  // namespace fastrnn
