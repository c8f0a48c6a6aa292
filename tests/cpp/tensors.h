// A layer's tensors in the type of a kernel, and a call of that kernel with them.
#pragma once

#include <algorithm>

#include "definition.h"

template <class T>
Tensors<T> convert(const Tensors<double>& from) {
  Tensors<T> to;
  to.active = from.active;
  to.offset = from.offset;
  to.place = from.place;
  to.order = from.order;
  const auto copy = [](Array<T>& a, const Array<double>& b) {
    a.resize(b.size());
    std::transform(b.begin(), b.end(), a.begin(), as<T>);
  };
  const auto fresh = [](Array<T>& a, const Array<double>& b) {
    a.assign(b.size(), as<T>(std::nan("")));
  };
  copy(to.x, from.x), copy(to.h0, from.h0), copy(to.c0, from.c0), copy(to.dy, from.dy);
  copy(to.dh_n, from.dh_n), copy(to.dc_n, from.dc_n), copy(to.dcells, from.dcells);
  fresh(to.y, from.y), fresh(to.h_n, from.h_n), fresh(to.c_n, from.c_n);
  fresh(to.gates, from.gates), fresh(to.cells, from.cells), fresh(to.hidden, from.hidden);
  fresh(to.dx, from.dx), fresh(to.dh0, from.dh0), fresh(to.dc0, from.dc0);
  for (int d = 0; d < 2; ++d) {
    copy(to.w_ih[d], from.w_ih[d]), copy(to.w_hh[d], from.w_hh[d]), copy(to.b_ih[d], from.b_ih[d]);
    copy(to.b_hh[d], from.b_hh[d]), copy(to.w_hr[d], from.w_hr[d]);
    fresh(to.dw_ih[d], from.dw_ih[d]), fresh(to.dw_hh[d], from.dw_hh[d]);
    fresh(to.db_ih[d], from.db_ih[d]), fresh(to.db_hh[d], from.db_hh[d]);
    fresh(to.dw_hr[d], from.dw_hr[d]);
  }
  return to;
}

template <class T>
T* pointer(Array<T>& a) {
  return a.empty() ? nullptr : a.data();
}

template <class T>
fastrnn::Backward<T> arguments(const Shape& s, Tensors<T>& t, const bool* reset) {
  fastrnn::Backward<T> b{};
  fastrnn::Forward<T>& f = b.forward;
  const int64_t rows = static_cast<int64_t>(t.x.size()) / s.I;
  const bool ordered = !t.order.empty();
  f.size = {static_cast<int64_t>(t.active.size()),
            s.N,
            s.I,
            s.H,
            s.P,
            s.D,
            rows,
            s.projected,
            t.active.data(),
            t.offset.data(),
            ordered ? t.place.data() : nullptr,
            ordered ? t.order.data() : nullptr};
  f.reset = reset;
  for (int d = 0; d < s.D; ++d) {
    f.weights[d] = {t.w_ih[d].data(), t.w_hh[d].data(), pointer(t.b_ih[d]), pointer(t.b_hh[d]),
                    pointer(t.w_hr[d])};
    b.dweights[d] = {t.dw_ih[d].data(), t.dw_hh[d].data(), pointer(t.db_ih[d]), pointer(t.db_hh[d]),
                     pointer(t.dw_hr[d])};
  }
  f.x = t.x.data(), f.h0 = t.h0.data(), f.c0 = pointer(t.c0);
  f.y = t.y.data(), f.h_n = t.h_n.data(), f.c_n = pointer(t.c_n);
  f.save = true, f.gates = pointer(t.gates), f.cells = pointer(t.cells);
  f.hidden = pointer(t.hidden);
  b.dy = t.dy.data(), b.dh_n = t.dh_n.data(), b.dc_n = pointer(t.dc_n);
  b.dx = t.dx.data(), b.dh0 = t.dh0.data(), b.dc0 = pointer(t.dc0), b.need_weights = true;
  b.dcells = pointer(t.dcells), b.detach_every = s.detach_every;
  b.grad_clip = s.grad_clip;
  return b;
}
