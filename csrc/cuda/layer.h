// A layer around a loop over time in one call: its tensors dense, its weights as the loops read
// them, memory for what the steps hand on. The twin of fastrnn/dispatch/gpu/layer.py.
#pragma once

#include "cuda/run.h"
#include "cuda/tensors.h"
#include "results.h"

namespace fastrnn::cuda {

// Rows that do not all take part in every step, made by fastrnn/dispatch/cuda/launch.py; int64.
struct Ragged {
  OptionalTensor lengths;  // (N,)
  OptionalTensor offsets;  // (T,), the first row of each step of packed input
  OptionalTensor
      earlier;          // (rows - N,): for each row after the first step, the row one step before
  OptionalTensor last;  // (N,): the row of the last step of each
};

class Layer {
 public:
  Layer(const Tensor& input, const OptionalTensor& batch_sizes, const Tensor& h0,
        const OptionalTensor& c0, const std::vector<Tensor>& given, const std::string& cell,
        const std::string& names, const OptionalTensor& reset, const OptionalTensor& lengths,
        const Ragged& rows, uintptr_t stream)
      : input(aligned(input)),
        h0(aligned(h0)),
        c0(aligned(c0)),
        reset(aligned(reset)),
        ragged(rows),
        weights(dense_weights(given)),
        arguments_(this->input, batch_sizes, this->h0, this->c0, weights, cell, names, this->reset,
                   lengths, true),
        call(arguments_.call),
        size(call.size),
        gates(call.info.gates),
        past_end(lengths.has_value()),
        stream_(reinterpret_cast<void*>(stream)) {
    FASTRNN_CHECK(call.info.program == nullptr, "no CUDA kernels for cell ", cell);
    if (lengths) ragged.lengths = aligned(*lengths);
    const bool is_double = input.scalar_type() == ScalarType::Double;
    wide = is_double ? ScalarType::Double : ScalarType::Float;
    item = item_size_of(input.scalar_type());
  }
  Layer(const Layer&) = delete;

  const Tensor input, h0;
  const OptionalTensor c0, reset;
  Ragged ragged;
  const std::vector<Tensor> weights;

 private:
  const Arguments arguments_;

 public:
  const Call& call;
  const fastrnn::Sizes& size;
  const int64_t gates;
  const bool past_end;  // whether the input has rows past an end, which no loop writes
  ScalarType wide;      // of what a unit keeps from step to step
  int64_t item;

  Shape output_shape() const { return arguments_.output_shape(); }
  Tensor empty(const Shape& shape) const { return make(input, shape); }
  Tensor empty_wide(const Shape& shape) const { return make(input, shape, wide); }
  // For results of the loop: zero past an end.
  Tensor written(const Tensor& t) const {
    if (past_end) zero(t);
    return t;
  }
  void zero(const Tensor& t) const {
    zero_bytes(t.data_ptr(), static_cast<size_t>(t.numel() * item_size_of(t.scalar_type())),
               stream_);
  }
  // A state into one that may be wider.
  void copy_state(const Tensor& to, const Tensor& from) const {
    if (to.scalar_type() != from.scalar_type()) return copy(to, from);
    put(to, to.numel(), from, 1, to.numel());
  }
  // Dense rows of the layer's dtype into rows that are `pitch` long.
  void put(const Tensor& to, int64_t pitch, const Tensor& from, int64_t rows, int64_t columns,
           int64_t first = 0) const {
    const auto bytes = [&](int64_t count) {
      return static_cast<size_t>(count * item_size_of(from.scalar_type()));
    };
    copy_rows(static_cast<char*>(to.data_ptr()) + bytes(first * pitch), bytes(pitch),
              from.data_ptr(), bytes(columns), bytes(columns), static_cast<size_t>(rows), stream_);
  }
  Tensor rows_of_input() const { return matrix(input, size.rows, size.input); }

  // A weight of one direction; of all directions one below the other, or nothing where there is
  // none.
  const Tensor& weight(int64_t d, int which) const {
    return weights[static_cast<size_t>(d * call.names.count + which)];
  }
  OptionalTensor joined(int which) const {
    if (which < 0) return std::nullopt;
    const Tensor& first = weight(0, which);
    if (size.directions == 1) return first;
    const int64_t count = first.numel(), columns = first.dim() == 1 ? 1 : first.size(1);
    const Tensor all =
        empty(first.dim() == 1 ? Shape{2 * count} : Shape{2 * count / columns, columns});
    for (int64_t d = 0; d < 2; ++d) put(all, count, weight(d, which), 1, count, d);
    return all;
  }

  // Elements from row to row of what a product reads: a multiple of 16 bytes.
  int64_t pitch(int64_t columns) const { return ceil_div(columns * item, 16) * 16 / item; }
  Shape pitched(int64_t rows, int64_t columns) const { return {rows, pitch(columns)}; }
  Tensor zeros(const Shape& shape) const {
    const Tensor t = empty(shape);
    zero(t);
    return t;
  }
  // A dense matrix with rows that are `pitch` long, the ends zero; it itself if they are.
  Tensor padded(const Tensor& t, int64_t rows, int64_t columns) const {
    if (pitch(columns) == columns) return t;
    const Tensor to = zeros(pitched(rows, columns));
    put(to, pitch(columns), t, rows, columns);
    return to;
  }
  // [D, rows, columns] into [D, columns, pitch(rows)].
  void transpose(const Tensor& to, const Tensor& t, int64_t rows, int64_t columns) const {
    const int64_t D = size.directions, long_rows = pitch(rows);
    if (long_rows != rows) zero(to);
    copy(part(to, {D, columns, rows}, {columns * long_rows, long_rows, 1}),
         part(t, {D, columns, rows}, {rows * columns, 1, columns}));
  }

  cuda::Sizes steps() const {
    const auto address = [](const OptionalTensor& t) {
      return t ? static_cast<const int64_t*>(t->data_ptr()) : nullptr;
    };
    return {size.steps,
            size.batch,
            size.rows,
            size.hidden,
            size.state,
            size.directions,
            gates,
            address(ragged.lengths),
            address(ragged.offsets),
            reset ? static_cast<const bool*>(reset->data_ptr()) : nullptr};
  }

 private:
  static std::vector<Tensor> dense_weights(const std::vector<Tensor>& given) {
    std::vector<Tensor> weights;
    weights.reserve(given.size());
    for (const Tensor& w : given) weights.push_back(aligned(w));
    return weights;
  }

  void* const stream_;
};

}  // namespace fastrnn::cuda
