// From tensors to layer.h, for every device: checks of what the caller passed, and sizes. The last
// line of defence: whatever reaches an op, nothing is read out of bounds.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "layer.h"

// Null before torch 2.13.
extern "C" __attribute__((weak)) const char* torch_exception_get_what_without_backtrace();

namespace fastrnn {

using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

// RuntimeError with the parts of the message joined.
template <class... Parts>
[[noreturn]] void fail(const Parts&... parts) {
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}
#define FASTRNN_CHECK(condition, ...)               \
  do {                                              \
    if (!(condition)) ::fastrnn::fail(__VA_ARGS__); \
  } while (false)

// The tensor that a call to torch makes, on the device of `like`. What torch says of a failure is
// kept from others before 2.13; on a CPU there is one reason.
template <class F>
Tensor made(const Tensor& like, F&& call) {
  try {
    return call();
  } catch (const std::runtime_error&) {
    if (torch_exception_get_what_without_backtrace)
      throw std::runtime_error(torch_exception_get_what_without_backtrace());
    if (like.is_cpu()) throw std::runtime_error("DefaultCPUAllocator: can't allocate memory");
    throw;
  }
}

// A call through the dispatcher costs more than many a layer of one step: none where none is due.
inline Tensor dense(const Tensor& t) {
  return t.is_contiguous() ? t : made(t, [&] { return torch::stable::contiguous(t); });
}

// The arguments that all ops share, checked and contiguous. They point into themselves: `size` into
// the four lists.
struct Arguments {
  Arguments(const Arguments&) = delete;
  Arguments& operator=(const Arguments&) = delete;

  Tensor input;
  Tensor h0;
  OptionalTensor c0;
  std::vector<Tensor> weights;
  int cell;  // position in the list of cells
  CellInfo info;
  bool bias, packed;
  int64_t per_direction;  // weights of a direction
  Sizes size;
  std::vector<int64_t> active, offset, place, order;
  OptionalTensor reset;  // bool, contiguous

  torch::headeronly::ScalarType dtype() const { return input.scalar_type(); }

  // Leading sizes of the input: (T, N) or (rows,); with one more they are those of the output.
  std::vector<int64_t> output_shape() const {
    const int64_t width = size.directions * size.state;
    return packed ? std::vector<int64_t>{size.rows, width}
                  : std::vector<int64_t>{input.size(0), size.batch, width};
  }
  // Uninitialised and dense. Past the dispatcher: torch::stable::empty takes longer than a cell.
  Tensor empty(const std::vector<int64_t>& shape) const {
    std::vector<int64_t> strides(shape.size(), 1);
    for (size_t i = shape.size(); i-- > 1;)
      strides[i - 1] = strides[i] * std::max<int64_t>(shape[i], 1);
    int32_t type, device;
    AtenTensorHandle handle;
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(input.get(), &type));
    TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(input.get(), &device));
    return made(input, [&] {
      TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(shape.size()),
                                                      shape.data(), strides.data(), type, device,
                                                      input.get_device_index(), &handle));
      return Tensor(handle);
    });
  }

  Arguments(const Tensor& input_, const OptionalTensor& batch_sizes, const Tensor& h0_,
            const OptionalTensor& c0_, const std::vector<Tensor>& weights_,
            const std::string& cell_name, bool bias_, const OptionalTensor& reset_,
            const OptionalTensor& lengths);

 private:
  void steps_of_batch_sizes(const Tensor& batch_sizes);
  void steps_of_lengths(const Tensor& lengths);
  void check(const char* what, const Tensor& t, const std::vector<int64_t>& shape) const {
    const auto sizes = t.sizes();
    bool same = sizes.size() == shape.size();
    for (size_t i = 0; same && i < shape.size(); ++i) same = sizes[i] == shape[i];
    FASTRNN_CHECK(same, what, " has the wrong shape: expected ", text(shape), ", got ",
                  text({sizes.begin(), sizes.end()}));
    check_type(what, t);
  }
  void check_type(const char* what, const Tensor& t) const {
    FASTRNN_CHECK(t.scalar_type() == dtype(), what, " and input differ in dtype");
    FASTRNN_CHECK(t.device() == input.device(), what, " and input are on different devices");
  }
  static std::string text(const std::vector<int64_t>& shape) {
    std::string out = "(";
    for (size_t i = 0; i < shape.size(); ++i) out += (i ? ", " : "") + std::to_string(shape[i]);
    return out + ")";
  }
};

inline Arguments::Arguments(const Tensor& input_, const OptionalTensor& batch_sizes,
                            const Tensor& h0_, const OptionalTensor& c0_,
                            const std::vector<Tensor>& weights_, const std::string& cell_name,
                            bool bias_, const OptionalTensor& reset_, const OptionalTensor& lengths)
    : input(dense(input_)), h0(dense(h0_)), bias(bias_), packed(batch_sizes.has_value()) {
  cell = find_cell(cell_name.c_str(), info);
  FASTRNN_CHECK(cell >= 0, "unknown cell '", cell_name, "'");
  FASTRNN_CHECK(input.dim() == (packed ? 2 : 3), "input must have ", packed ? 2 : 3,
                " dimensions, got ", input.dim());
  FASTRNN_CHECK(h0.dim() == 3, "h0 must have 3 dimensions, got ", h0.dim());
  size = {};
  size.directions = h0.size(0);
  FASTRNN_CHECK(size.directions == 1 || size.directions == 2, "1 or 2 directions, got ",
                size.directions);
  per_direction = static_cast<int64_t>(weights_.size()) / size.directions;
  size.projected = info.has_c && per_direction == (bias ? 5 : 3);
  FASTRNN_CHECK(
      static_cast<int64_t>(weights_.size()) == size.directions * (2 + 2 * bias + size.projected),
      "wrong number of weights: ", weights_.size());
  FASTRNN_CHECK(weights_[0].dim() == 2 && weights_[0].size(0) % info.gates == 0,
                "w_ih must be (gates * hidden_size, input_size)");
  size.hidden = weights_[0].size(0) / info.gates;
  size.input = input.size(packed ? 1 : 2);
  size.state = h0.size(2);
  size.batch = h0.size(1);
  FASTRNN_CHECK(size.hidden > 0 && size.input > 0 && size.state > 0,
                "input_size and hidden_size must be greater than zero");

  if (packed) {
    FASTRNN_CHECK(!reset_ && !lengths, "reset and lengths need padded input");
    steps_of_batch_sizes(*batch_sizes);
  } else {
    FASTRNN_CHECK(input.size(0) > 0, "Expected sequence length to be larger than 0 in RNN");
    FASTRNN_CHECK(input.size(1) == size.batch, "Expected hidden size (", size.directions, ", ",
                  input.size(1), ", ", size.state, "), got ", size.batch, " batch rows");
    if (lengths) {
      steps_of_lengths(*lengths);
    } else {
      active.assign(input.size(0), size.batch);
    }
  }
  int64_t rows = 0;
  for (const int64_t count : active) {
    offset.push_back(rows);
    rows += count;
  }
  FASTRNN_CHECK(!packed || rows == input.size(0), "batch_sizes add up to ", rows,
                ", the packed input has ", input.size(0), " rows");
  size.steps = static_cast<int64_t>(active.size());
  size.rows = packed ? rows : input.size(0) * size.batch;
  size.active = active.data();
  size.offset = offset.data();
  if (lengths) {
    for (int64_t t = 0; t < size.steps; ++t)
      for (int64_t n = 0; n < active[t]; ++n) place.push_back(t * size.batch + order[n]);
    size.place = place.data();
    size.order = order.data();
  }
  if (reset_) {
    FASTRNN_CHECK(size.directions == 1, "reset has no meaning with two directions");
    FASTRNN_CHECK(reset_->scalar_type() == torch::headeronly::ScalarType::Bool &&
                      reset_->dim() == 2 && reset_->size(0) == input.size(0) &&
                      reset_->size(1) == size.batch && reset_->device() == input.device(),
                  "reset must be a bool tensor (T, N) on the device of the input");
    reset = dense(*reset_);
  }

  FASTRNN_CHECK(c0_.has_value() == info.has_c, "c0 belongs to an LSTM, and only there");
  FASTRNN_CHECK(size.projected || size.state == size.hidden, "h0 has ", size.state,
                " columns, hidden_size is ", size.hidden);
  check_type("h0", h0);
  if (c0_) {
    check("c0", *c0_, {size.directions, size.batch, size.hidden});
    c0 = dense(*c0_);
  }
  const int64_t gated = info.gates * size.hidden;
  for (size_t i = 0; i < weights_.size(); ++i) {
    const int64_t which = static_cast<int64_t>(i) % per_direction;
    if (which == 0) {
      check("w_ih", weights_[i], {gated, size.input});
    } else if (which == 1) {
      check("w_hh", weights_[i], {gated, size.state});
    } else if (bias && which < 4) {
      check("bias", weights_[i], {gated});
    } else {
      check("w_hr", weights_[i], {size.state, size.hidden});
    }
    weights.push_back(dense(weights_[i]));
  }
}

// The steps of packed input: how many rows are active at each.
inline void Arguments::steps_of_batch_sizes(const Tensor& batch_sizes) {
  FASTRNN_CHECK(batch_sizes.is_cpu() && batch_sizes.dim() == 1 &&
                    batch_sizes.scalar_type() == torch::headeronly::ScalarType::Long,
                "batch_sizes must be a 1-D int64 tensor on the CPU");
  const Tensor listed = dense(batch_sizes);
  const auto* counts = static_cast<const int64_t*>(listed.const_data_ptr());
  active.assign(counts, counts + listed.numel());
  FASTRNN_CHECK(!active.empty(), "Expected sequence length to be larger than 0 in RNN");
  for (size_t t = 0; t < active.size(); ++t)
    FASTRNN_CHECK(active[t] >= 1 && active[t] <= active[t ? t - 1 : 0],
                  "batch_sizes must be positive and must not increase");
  FASTRNN_CHECK(active[0] == size.batch, "h0 has ", size.batch, " batch rows, the input ",
                active[0]);
}

// The steps of padded input whose entries end early: entries in the order of their lengths, and how
// many are still active at each step up to the longest.
inline void Arguments::steps_of_lengths(const Tensor& lengths) {
  FASTRNN_CHECK(lengths.is_cpu() && lengths.dim() == 1 && lengths.size(0) == size.batch &&
                    lengths.scalar_type() == torch::headeronly::ScalarType::Long,
                "lengths must be an int64 tensor (N,) on the CPU");
  const Tensor listed = dense(lengths);
  const auto* length = static_cast<const int64_t*>(listed.const_data_ptr());
  for (int64_t n = 0; n < size.batch; ++n) {
    FASTRNN_CHECK(length[n] >= 0 && length[n] <= input.size(0), "lengths must lie in [0, ",
                  input.size(0), "], got ", length[n]);
    order.push_back(n);
  }
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return length[a] > length[b]; });
  for (int64_t n = size.batch; n > 0; --n)
    active.resize(static_cast<size_t>(length[order[n - 1]]), n);
}

}  // namespace fastrnn
