// The arithmetic of one time step of one hidden unit: the only place where a formula stands.
//
// A cell is a struct of static functions over V: float, double, or one SIMD register of them.
// Before this header the including file provides, in the same namespace, sigmoid(V), tanh(V),
// select(mask, V, V), fma(V a, V b, V c), which is a b + c, and FASTRNN_FN, the qualifiers of a
// small function. No compiler may fuse a product and a sum by itself: where a CPU can, it is an fma
// here. So a call has the same bits wherever its formula is compiled.
//
//   kGates   G, planes of the weights, in torch's order
//   kSaved   S, planes that forward leaves for backward in `saved`
//   kKeepsC  whether a unit keeps a second state c from step to step
//   kKeepsH  whether a unit keeps h: forward reads h_{t-1}, and backward h_prev
//   kSplit   whether the gradients of x and u differ
//
// forward   x[g]  input part of the pre-activation, W_ih x_t + b_ih
//           u[g]  hidden part, W_hh h_{t-1} + b_hh; apart from x because a GRU scales it alone
//           h     in: h_{t-1}, out: h_t           c   in: c_{t-1}, out: c_t
// backward  h_prev, h, c_prev, c  states as forward saw and left them; h only if S is 0
//           dh    gradient of h_t, complete       dc  in: gradient of c_t from later steps,
//           dx[g], du[g]  gradients of x and u        out: gradient of c_{t-1}
//           returns, if kKeepsH, what of the gradient of h_{t-1} does not go through W_hh
// Derivatives are written in terms of outputs: sigmoid' = y (1 - y), tanh' = 1 - y^2.
#pragma once

namespace FASTRNN_NAMESPACE {

// The derivative of tanh where it is y.
template <class V>
FASTRNN_FN V tanh_slope(V y) {
  return fma(-y, y, 1 - V{});
}

// Hochreiter & Schmidhuber 1997 with the forget gate of Gers et al. 2000; gates i f g o.
//   c_t = f c_{t-1} + i g,  h_t = o tanh(c_t)
struct Lstm {
  static constexpr int kGates = 4;
  static constexpr int kSaved = 4;  // i f g o
  static constexpr bool kKeepsC = true;
  static constexpr bool kKeepsH = false;
  static constexpr bool kSplit = false;

  template <class V>
  FASTRNN_FN void forward(const V* x, const V* u, V& h, V& c, V* saved) {
    const V i = sigmoid(x[0] + u[0]);
    const V f = sigmoid(x[1] + u[1]);
    const V g = tanh(x[2] + u[2]);
    const V o = sigmoid(x[3] + u[3]);
    c = fma(f, c, i * g);
    h = o * tanh(c);
    saved[0] = i;
    saved[1] = f;
    saved[2] = g;
    saved[3] = o;
  }

  template <class V>
  FASTRNN_FN V backward(const V* saved, V, V, V c_prev, V c, V dh, V& dc, V* dx, V* du) {
    const V i = saved[0], f = saved[1], g = saved[2], o = saved[3];
    const V tanh_c = tanh(c);
    dc = fma(dh * o, tanh_slope(tanh_c), dc);
    dx[0] = du[0] = dc * g * i * (1 - i);
    dx[1] = du[1] = dc * c_prev * f * (1 - f);
    dx[2] = du[2] = dc * i * tanh_slope(g);
    dx[3] = du[3] = dh * tanh_c * o * (1 - o);
    dc = dc * f;
    return V{};
  }
};

// Cho et al. 2014 in the form that applies the reset gate after the product (cuDNN, torch);
// gates r z n.   n = tanh(x_n + r u_n),  h_t = (1 - z) n + z h_{t-1}
struct Gru {
  static constexpr int kGates = 3;
  static constexpr int kSaved = 4;  // r z n u_n
  static constexpr bool kKeepsC = false;
  static constexpr bool kKeepsH = true;
  static constexpr bool kSplit = true;

  template <class V>
  FASTRNN_FN void forward(const V* x, const V* u, V& h, V&, V* saved) {
    const V r = sigmoid(x[0] + u[0]);
    const V z = sigmoid(x[1] + u[1]);
    const V n = tanh(fma(r, u[2], x[2]));
    h = fma(z, h - n, n);
    saved[0] = r;
    saved[1] = z;
    saved[2] = n;
    saved[3] = u[2];
  }

  template <class V>
  FASTRNN_FN V backward(const V* saved, V h_prev, V, V, V, V dh, V&, V* dx, V* du) {
    const V r = saved[0], z = saved[1], n = saved[2], u_n = saved[3];
    const V dn = dh * (1 - z) * tanh_slope(n);
    dx[0] = du[0] = dn * u_n * r * (1 - r);
    dx[1] = du[1] = dh * (h_prev - n) * z * (1 - z);
    dx[2] = dn;
    du[2] = dn * r;
    return dh * z;
  }
};

// Elman 1990.   h_t = tanh(x + u)
struct RnnTanh {
  static constexpr int kGates = 1;
  static constexpr int kSaved = 0;
  static constexpr bool kKeepsC = false;
  static constexpr bool kKeepsH = false;
  static constexpr bool kSplit = false;

  template <class V>
  FASTRNN_FN void forward(const V* x, const V* u, V& h, V&, V*) {
    h = tanh(x[0] + u[0]);
  }

  template <class V>
  FASTRNN_FN V backward(const V*, V, V h, V, V, V dh, V&, V* dx, V* du) {
    dx[0] = du[0] = dh * tanh_slope(h);
    return V{};
  }
};

// Le, Jaitly & Hinton 2015.   h_t = max(x + u, 0); a NaN stays NaN, as in torch
struct RnnRelu {
  static constexpr int kGates = 1;
  static constexpr int kSaved = 0;
  static constexpr bool kKeepsC = false;
  static constexpr bool kKeepsH = false;
  static constexpr bool kSplit = false;

  template <class V>
  FASTRNN_FN void forward(const V* x, const V* u, V& h, V&, V*) {
    const V a = x[0] + u[0];
    h = select(a < V{}, V{}, a);
  }

  template <class V>
  FASTRNN_FN V backward(const V*, V, V h, V, V, V dh, V&, V* dx, V* du) {
    dx[0] = du[0] = select(h <= V{}, V{}, dh);
    return V{};
  }
};

}  // namespace FASTRNN_NAMESPACE

// The list of cells, X(Type, "name"): every instantiation, in C++ and in its tests, comes from
// here.
#define FASTRNN_CELLS(X) \
  X(Lstm, "lstm")        \
  X(Gru, "gru")          \
  X(RnnTanh, "rnn_tanh") \
  X(RnnRelu, "rnn_relu")
