// A call of one layer as every device is given it: views of tensors, the checks of them, and what a
// kernel then takes. The last line of defence: whatever reaches a kernel, nothing is read out of
// bounds. No torch; where the views come from, see bind.h and cpu/direct.cpp.
#pragma once

#include <algorithm>
#include <cstring>
#include <initializer_list>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "program.h"

namespace fastrnn {

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

enum class Type : uint8_t { kFloat, kDouble, kBf16, kHalf, kBool, kInt64, kOther };

// A tensor as a kernel needs it, which somebody else keeps alive.
struct View {
  static constexpr int kMostDims = 4;

  void* data = nullptr;
  Type type = Type::kOther;
  int32_t device_type = 0, device_index = 0;
  int dims = 0;
  int64_t size[kMostDims] = {};
  bool dense = false;  // contiguous, with no bit that says that numbers are stored negated

  // From a rank, sizes and strides, null where the tensor is contiguous.
  void shape(int64_t rank, const int64_t* sizes, const int64_t* strides) {
    dims = static_cast<int>(rank);
    for (int64_t i = 0; i < rank && i < kMostDims; ++i) size[i] = sizes[i];
    dense = rank <= kMostDims;
    int64_t stride = 1;
    for (int64_t i = rank; i-- > 0 && dense && strides != nullptr && numel() > 0;) {
      // The stride of a dimension of size 1 plays no part.
      dense = sizes[i] == 1 || strides[i] == stride;
      stride *= sizes[i];
    }
  }
  bool absent() const { return data == nullptr && dims == 0; }
  int64_t last() const { return dims > 0 && dims <= kMostDims ? size[dims - 1] : 0; }
  int64_t numel() const {
    int64_t count = 1;
    for (int i = 0; i < dims && i < kMostDims; ++i) count *= size[i];
    return count;
  }
  bool is(std::initializer_list<int64_t> sizes) const {
    return dims == static_cast<int>(sizes.size()) && std::equal(sizes.begin(), sizes.end(), size);
  }
  bool same_device(const View& other) const {
    return device_type == other.device_type && device_index == other.device_index;
  }
  // Planes [first, first + count) of the first dimension.
  View planes(int64_t first, int64_t count, int64_t itemsize) const {
    View part = *this;
    const int64_t plane = size[0] > 0 ? numel() / size[0] : 0;
    part.data = static_cast<char*>(data) + first * plane * itemsize;
    part.size[0] = count;
    return part;
  }
  std::string text() const {
    std::string out = "(";
    for (int i = 0; i < std::min(dims, kMostDims); ++i)
      out += (i ? ", " : "") + std::to_string(size[i]);
    return out + ")";
  }
};

// Where each weight stands among those of a direction, -1 where the layer has none of that name.
struct WeightNames {
  std::string_view text;  // the names with a space between them, as in fastrnn/table.py
  int w_ih = -1, w_hh = -1, b_ih = -1, b_hh = -1, w_hr = -1, count = 0;
  int params = 0;  // of a program, "p_..." each: they come last

  explicit WeightNames(std::string_view names) : text(names) {
    if (names == "w_ih w_hh b_ih b_hh") {  // of nearly every layer: not to be taken apart each time
      w_ih = 0, w_hh = 1, b_ih = 2, b_hh = 3, count = 4;
      return;
    }
    const struct {
      std::string_view name;
      int WeightNames::* at;
    } known[] = {{"w_ih", &WeightNames::w_ih},
                 {"w_hh", &WeightNames::w_hh},
                 {"b_ih", &WeightNames::b_ih},
                 {"b_hh", &WeightNames::b_hh},
                 {"w_hr", &WeightNames::w_hr}};
    while (!names.empty()) {
      const size_t end = std::min(names.find(' '), names.size());
      if (names.starts_with("p_") || params > 0) {
        FASTRNN_CHECK(names.starts_with("p_") && ++params <= kMostParams,
                      "parameters come last, and are at most ", kMostParams, ": '", text, "'");
        ++count;
        names.remove_prefix(std::min(end + 1, names.size()));
        continue;
      }
      const auto* const found =
          std::find_if(std::begin(known), std::end(known),
                       [&](const auto& each) { return each.name == names.substr(0, end); });
      FASTRNN_CHECK(found != std::end(known), "unknown weight in '", text, "'");
      this->*found->at = count++;
      names.remove_prefix(std::min(end + 1, names.size()));
    }
    FASTRNN_CHECK(w_ih >= 0 && w_hh >= 0 && (b_ih < 0) == (b_hh < 0), "a layer cannot have '", text,
                  "' for weights");
  }

  // One direction's pointers; `views` are its weights, or gradients of them.
  template <class T>
  Weights<T> of(const View* views) const {
    const auto at = [&](int i) { return i < 0 ? nullptr : static_cast<T*>(views[i].data); };
    Weights<T> w{at(w_ih), at(w_hh), at(b_ih), at(b_hh), at(w_hr)};
    for (int i = 0; i < params; ++i) w.params[i] = at(count - params + i);
    return w;
  }
};

// What a call is given, as in fastrnn/call.py; a view that is not dense fits nothing.
struct Given {
  std::string_view cell;
  WeightNames names;
  View input = {}, h0 = {};
  std::optional<View> batch_sizes = {}, c0 = {}, reset = {}, lengths = {};
  bool lengths_unread = false;    // they are on a GPU, where rows may end before the last step
  const View* weights = nullptr;  // of all directions
  int64_t weight_count = 0;
  int64_t parts = 3;
};

// The same, checked. Not copied, since `size` points into the vectors beside it.
class Call {
 public:
  // std::runtime_error if anything does not fit.
  explicit Call(const Given& given);
  Call(const Call&) = delete;
  Call& operator=(const Call&) = delete;

  const Given given;
  const WeightNames& names = given.names;
  int cell;  // position in the list of cells
  CellInfo info;
  Sizes size;

  bool packed() const { return given.batch_sizes.has_value(); }

  // What forward takes, but for its results.
  template <class T>
  Forward<T> forward() const {
    Forward<T> f{};
    f.size = size;
    for (int64_t d = 0; d < size.directions; ++d)
      f.weights[d] = names.of<const T>(given.weights + d * names.count);
    f.x = static_cast<const T*>(given.input.data);
    f.h0 = static_cast<const T*>(given.h0.data);
    f.c0 = given.c0 ? static_cast<const T*>(given.c0->data) : nullptr;
    f.reset = given.reset ? static_cast<const bool*>(given.reset->data) : nullptr;
    f.program = info.program;
    f.parts = static_cast<int>(given.parts);
    for (int i = 0; i < names.params; ++i)
      f.forms[i] = form(given.weights[names.count - names.params + i]);
    return f;
  }

  void check(const char* what, const View& view, std::initializer_list<int64_t> sizes) const {
    if (!view.is(sizes)) {
      View expected;
      expected.shape(static_cast<int64_t>(sizes.size()), sizes.begin(), nullptr);
      fail(what, " has the wrong shape: expected ", expected.text(), ", got ", view.text());
    }
    check_type(what, view);
  }
  void check_type(const char* what, const View& view) const {
    FASTRNN_CHECK(view.type == given.input.type, what, " and input differ in dtype");
    FASTRNN_CHECK(view.same_device(given.input), what, " and input are on different devices");
    FASTRNN_CHECK(view.dense, what, " is not contiguous");
  }

 private:
  void steps_of_batch_sizes();
  void steps_of_lengths();
  void check_steps();
  void check_weights() const;
  // A program whose w_hh is narrower than h has that many heads.
  void check_heads() {
    FASTRNN_CHECK(!info.program || info.program->gates_w == 0 || !size.projected,
                  "a cell with a second product cannot be projected");
    const int64_t width = given.weights[names.w_hh].last();
    if (!info.program || width <= 0 || width == size.state) return;
    size.heads = size.state / width;
    FASTRNN_CHECK(info.program->gates_w == 0, "heads do not go with a second product");
    FASTRNN_CHECK(size.heads * width == size.state && width % kHeadUnits == 0 && !size.projected,
                  "heads must be equal parts of h of a multiple of ", kHeadUnits, " units, got ",
                  width, " of ", size.state);
  }
  // The rows of a parameter are those of the input.
  Form form(const View& param) const {
    if (param.dims == 1 && param.is({size.hidden})) return Form::kUnit;
    const View& input = given.input;
    const bool same_rows =
        param.dims == input.dims && std::equal(param.size, param.size + param.dims - 1, input.size);
    FASTRNN_CHECK(same_rows && (param.last() == 1 || param.last() == size.hidden),
                  "a parameter must be (", size.hidden, ",), or have the rows of the input and ",
                  size.hidden, " columns or one, got ", param.text());
    return param.last() == size.hidden ? Form::kEach : Form::kRow;
  }
  const int64_t* numbers(const char* what, const View& view) const {
    FASTRNN_CHECK(view.type == Type::kInt64 && view.dims == 1 && view.dense, what,
                  " must be a 1-D int64 tensor");
    return static_cast<const int64_t*>(view.data);
  }

  std::vector<int64_t> active_, offset_, place_, order_;
};

inline Call::Call(const Given& what) : given(what) {
  cell = find_cell(std::string(given.cell).c_str(), info);
  FASTRNN_CHECK(cell >= 0, "unknown cell '", given.cell, "'");
  FASTRNN_CHECK(given.parts >= 1 && given.parts <= 3, "parts must be 1, 2 or 3, got ", given.parts);
  const View &input = given.input, &h0 = given.h0;
  FASTRNN_CHECK(input.dims == (packed() ? 2 : 3), "input must have ", packed() ? 2 : 3,
                " dimensions, got ", input.dims);
  FASTRNN_CHECK(h0.dims == 3, "h0 must have 3 dimensions, got ", h0.dims);
  size = {};
  size.directions = h0.size[0];
  FASTRNN_CHECK(size.directions == 1 || size.directions == 2, "1 or 2 directions, got ",
                size.directions);
  size.projected = names.w_hr >= 0;
  FASTRNN_CHECK(given.weight_count == size.directions * names.count &&
                    names.params == info.params &&
                    (info.program || info.own > 0 || !size.projected),
                "wrong number of weights: ", given.weight_count, " for '", names.text, "'");
  const View& w_ih = given.weights[names.w_ih];
  FASTRNN_CHECK(w_ih.dims == 2 && w_ih.size[0] % info.gates == 0,
                "w_ih must be (gates * hidden_size, input_size)");
  size.hidden = w_ih.size[0] / info.gates;
  size.input = input.last();
  size.state = h0.size[2];
  size.batch = h0.size[1];
  size.cell = info.own * size.hidden;
  check_heads();
  FASTRNN_CHECK(size.hidden > 0 && size.input > 0 && size.state > 0,
                "input_size and hidden_size must be greater than zero");
  check_steps();
  FASTRNN_CHECK(given.c0.has_value() == (info.own > 0), "c0 belongs to a cell with c, as an LSTM");
  FASTRNN_CHECK(size.projected || size.state == size.hidden, "h0 has ", size.state,
                " columns, hidden_size is ", size.hidden);
  check_type("input", input);
  check_type("h0", h0);
  if (given.c0) check("c0", *given.c0, {size.directions, size.batch, size.cell});
  check_weights();
}

inline void Call::check_steps() {
  const View& input = given.input;
  if (packed()) {
    FASTRNN_CHECK(!given.reset && !given.lengths, "reset and lengths need padded input");
    steps_of_batch_sizes();
  } else {
    FASTRNN_CHECK(input.size[0] > 0, "Expected sequence length to be larger than 0 in RNN");
    FASTRNN_CHECK(input.size[1] == size.batch, "Expected hidden size (", size.directions, ", ",
                  input.size[1], ", ", size.state, "), got ", size.batch, " batch rows");
    if (given.lengths) {
      steps_of_lengths();
    } else {
      active_.assign(static_cast<size_t>(input.size[0]), size.batch);
    }
  }
  int64_t rows = 0;
  offset_.reserve(active_.size());
  for (const int64_t count : active_) {
    offset_.push_back(rows);
    rows += count;
  }
  FASTRNN_CHECK(!packed() || rows == input.size[0], "batch_sizes add up to ", rows,
                ", the packed input has ", input.size[0], " rows");
  size.steps = static_cast<int64_t>(active_.size());
  size.rows = packed() ? rows : input.size[0] * size.batch;
  size.active = active_.data();
  size.offset = offset_.data();
  if (given.lengths && !given.lengths_unread) {
    for (int64_t t = 0; t < size.steps; ++t)
      for (int64_t n = 0; n < active_[t]; ++n) place_.push_back(t * size.batch + order_[n]);
    size.place = place_.data();
    size.order = order_.data();
  }
  if (given.reset) {
    FASTRNN_CHECK(size.directions == 1, "reset has no meaning with two directions");
    FASTRNN_CHECK(given.reset->type == Type::kBool && given.reset->dense &&
                      given.reset->is({input.size[0], size.batch}) &&
                      given.reset->same_device(input),
                  "reset must be a bool tensor (T, N) on the device of the input");
  }
}

inline void Call::check_weights() const {
  const int64_t from_x = info.gates * size.hidden, from_h = info.hidden_gates * size.hidden;
  for (int64_t i = 0; i < given.weight_count; ++i) {
    const View& w = given.weights[i];
    const int which = static_cast<int>(i) % names.count;
    if (which == names.w_ih) {
      check("w_ih", w, {from_x, size.input});
    } else if (which == names.w_hh) {
      check("w_hh", w, {from_h, size.state / size.heads});
    } else if (which == names.w_hr) {
      check("w_hr", w, {size.state, size.hidden});
    } else if (which >= names.count - names.params) {
      FASTRNN_CHECK(form(w) == form(given.weights[which]),
                    "a parameter must have the same shape in both directions");
      check_type("a parameter", w);
    } else {
      check("bias", w, {which == names.b_ih ? from_x : from_h});
    }
  }
}

// The steps of packed input: how many rows are active at each.
inline void Call::steps_of_batch_sizes() {
  const int64_t* const counts = numbers("batch_sizes", *given.batch_sizes);
  active_.assign(counts, counts + given.batch_sizes->size[0]);
  FASTRNN_CHECK(!active_.empty(), "Expected sequence length to be larger than 0 in RNN");
  for (size_t t = 0; t < active_.size(); ++t)
    FASTRNN_CHECK(active_[t] >= 1 && active_[t] <= active_[t ? t - 1 : 0],
                  "batch_sizes must be positive and must not increase");
  FASTRNN_CHECK(active_[0] == size.batch, "h0 has ", size.batch, " batch rows, the input ",
                active_[0]);
}

// The steps of padded input whose entries end early: entries in the order of their lengths, and how
// many are still active at each step up to the longest.
inline void Call::steps_of_lengths() {
  const int64_t* const given_lengths = numbers("lengths", *given.lengths);
  FASTRNN_CHECK(given.lengths->same_device(given.input),
                "lengths and input are on different devices");
  FASTRNN_CHECK(given.lengths->size[0] == size.batch, "lengths must have ", size.batch,
                " elements, got ", given.lengths->size[0]);
  const int64_t T = given.input.size[0];
  if (given.lengths_unread) {
    active_.assign(static_cast<size_t>(T), size.batch);
    return;
  }
  // Checked and used in a copy, for another thread of the user may write them meanwhile.
  const std::vector<int64_t> length(given_lengths, given_lengths + size.batch);
  for (int64_t n = 0; n < size.batch; ++n) {
    FASTRNN_CHECK(length[n] >= 0 && length[n] <= T, "lengths must lie in [0, ", T, "], got ",
                  length[n]);
    order_.push_back(n);
  }
  std::sort(order_.begin(), order_.end(), [&](int64_t a, int64_t b) {
    return length[a] > length[b] || (length[a] == length[b] && a < b);
  });
  for (int64_t n = size.batch; n > 0; --n)
    active_.resize(static_cast<size_t>(length[order_[n - 1]]), n);
}

}  // namespace fastrnn
