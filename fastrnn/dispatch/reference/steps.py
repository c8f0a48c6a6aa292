"""The derivatives of some steps of the built-in cells, as planes (t, N, H).

A step makes h, before a projection, and c. They are functions of z, (N, planes, H), and of the
states before. z is an input part and a hidden part in sum, but in the last plane of a GRU it is the
hidden part alone. For small changes a step is linear: `tangent` is that map, and `adjoint` is its
transpose. e and e_c arrive at h and c, and d arrives at z. The change of a quantity x is `dx` here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# What arrives at z, at h before the step but through z, at c, and at c before the step.
Back = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]


class Sources(NamedTuple):
    """What arrives in some steps, but from the steps after these; None is zero."""

    h: Tensor | None = None
    c: Tensor | None = None
    z: Tensor | None = None  # (t, N, planes * H)
    a: Tensor | None = None  # at the input part alone, in the last plane of a GRU
    h_before: Tensor | None = None  # at the states that the steps see
    c_before: Tensor | None = None
    hidden: Tensor | None = None  # at h before a projection


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum; None is zero."""
    return b if a is None else a if b is None else a + b


def _plus_product(a: Tensor | None, b: Tensor, c: Tensor) -> Tensor:
    return b * c if a is None else torch.addcmul(a, b, c)


class Rnn:
    """h = tanh(z) or relu(z)."""

    def __init__(self, h: Tensor, relu: bool, taken: Tensor | None) -> None:
        """taken: (t, N, 1), False where a row takes no step, or None."""
        self.h, self.relu = h, relu
        by_z = (h > 0).to(h.dtype) if relu else 1 - h * h
        self.by_z = by_z if taken is None else by_z * taken
        self.each = self.by_z.unbind(0)

    def source(self, da: Tensor | None, du: Tensor | None) -> Tensor | None:
        """The change of z that comes from the input part and the hidden part, (t, N, planes * H).
        What comes through the states is not in these."""
        return plus(da, du)

    def tangent(
        self, t: int, dz: Tensor, dh: Tensor, dc: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """The changes of h and c."""
        return self.each[t] * dz, None

    def adjoint(
        self, t: int, e: Tensor, e_c: Tensor | None, d: Tensor | None, h: Tensor | None
    ) -> Back:
        """What arrives before a step; d and h are added to the first two of it."""
        return _plus_product(d, self.each[t], e), h, None, None

    def vary(self, dz: Tensor, dh: Tensor, dc: Tensor | None, dc_after: Tensor | None) -> None:
        """Tells how z, the states before the steps, and c after them change."""
        self.turn = None if self.relu else -2 * self.h * dz

    def varied(self, e: Tensor, e_c: Tensor | None) -> Sources:
        """What arrives more then in all steps, as the coefficients change."""
        return Sources(h=None if self.turn is None else self.turn * e)

    def of_input(self, d: Tensor, e: Tensor, a: Tensor | None) -> Tensor:
        """What arrives at the input part, (t, N, gates * H); a: what of `Sources` does."""
        return d


class Lstm(Rnn):
    """c = f c + i g, h = o tanh(c)."""

    def __init__(self, gates: Tensor, c_before: Tensor, c: Tensor) -> None:
        self.gates, self.c_before = gates, c_before
        i, f, g, o = gates.unbind(2)
        m = self.m = c.tanh()
        s_i, s_f, _, s_o = (gates - gates * gates).unbind(2)
        by_z = torch.stack((g * s_i, c_before * s_f, i * (1 - g * g), m * s_o), 2)
        self.of_c, self.of_h = by_z[:, :, :3], by_z[:, :, 3]
        planes = by_z, self.of_c, self.of_h, o * (1 - m * m), f
        self.each = list(zip(*(plane.unbind(0) for plane in planes), strict=True))

    def tangent(self, t, dz, dh, dc):
        by_z, _, _, by_c, f = self.each[t]
        change = by_z * dz.unflatten(-1, (4, -1))
        dc = torch.addcmul(change[:, :3].sum(1), f, dc)
        return torch.addcmul(change[:, 3], by_c, dc), dc

    def adjoint(self, t, e, e_c, d, h):
        _, of_c, of_h, by_c, f = self.each[t]
        e_c = torch.addcmul(e_c, by_c, e)
        own = torch.cat(((of_c * e_c.unsqueeze(1)).flatten(1), of_h * e), 1)
        return own if d is None else own + d, h, e_c, f * e_c

    def vary(self, dz, dh, dc, dc_after):
        i, _, g, o = self.gates.unbind(2)
        dz = dz.unflatten(-1, (4, -1))
        s = self.gates - self.gates * self.gates
        d_gates = s * dz  # but of g
        turn = d_gates - 2 * self.gates * d_gates
        s_i, s_f, _, s_o = s.unbind(2)
        t_i, t_f, _, t_o = turn.unbind(2)
        di, self.df, _, do = d_gates.unbind(2)
        w, v, m = 1 - g * g, 1 - self.m * self.m, self.m
        dg, dm = w * dz[:, :, 2], v * dc_after
        self.dby_z = torch.stack(
            (
                dg * s_i + g * t_i,
                dc * s_f + self.c_before * t_f,
                di * w - 2 * i * g * dg,
                dm * s_o + m * t_o,
            ),
            2,
        )
        self.dby_c = do * v - 2 * o * m * dm

    def varied(self, e, e_c):
        d = self.dby_z * torch.stack((e_c, e_c, e_c, e), 2)
        return Sources(z=d.flatten(2), c=self.dby_c * e, c_before=self.df * e_c)


class Gru(Rnn):
    """r and z are sigmoid, n = tanh(a + r q), h = (h - n) z + n; q is the hidden part alone."""

    def __init__(self, gates: Tensor, h_before: Tensor, taken: Tensor | None) -> None:
        self.gates, self.h_before, self.da = gates, h_before, None
        r, z, n, q = gates.unbind(2)
        by_a = (1 - z) * (1 - n * n)
        self.by_a = by_a if taken is None else by_a * taken
        by_z = self.by_a * q * (r - r * r), (h_before - n) * (z - z * z), self.by_a * r
        self.by_z = torch.stack(by_z, 2)
        self.each = list(zip(self.by_z.unbind(0), z.unbind(0), strict=True))

    def source(self, da, du):
        self.da = None
        if da is None:
            return du
        H = self.by_a.size(-1)
        rz, self.da = da.split((2 * H, H), -1)
        self.through_a = (self.by_a * self.da).unbind(0)
        if du is None:
            return torch.cat((rz, torch.zeros_like(self.da)), -1)
        of_rz, q = du.split((2 * H, H), -1)
        return torch.cat((rz + of_rz, q), -1)

    def tangent(self, t, dz, dh, dc):
        by_z, z = self.each[t]
        kept = _plus_product(None if self.da is None else self.through_a[t], z, dh)
        return kept + (by_z * dz.unflatten(-1, (3, -1))).sum(1), None

    def adjoint(self, t, e, e_c, d, h):
        by_z, z = self.each[t]
        own = (by_z * e.unsqueeze(1)).flatten(1)
        return own if d is None else own + d, _plus_product(h, z, e), None, None

    def vary(self, dz, dh, dc, dc_after):
        r, z, n, q = self.gates.unbind(2)
        s_r, s_z, w = r - r * r, z - z * z, 1 - n * n
        dz_r, dz_z, dq = dz.unflatten(-1, (3, -1)).unbind(2)
        dr, self.dz = s_r * dz_r, s_z * dz_z
        dn = w * plus(dr * q + r * dq, self.da)
        self.dby_a = -self.dz * w - 2 * (1 - z) * n * dn
        self.dby_z = torch.stack(
            (
                self.dby_a * q * s_r + self.by_a * (dq * s_r + q * (dr - 2 * r * dr)),
                (dh - dn) * s_z + (self.h_before - n) * (self.dz - 2 * z * self.dz),
                self.dby_a * r + self.by_a * dr,
            ),
            2,
        )

    def varied(self, e, e_c):
        d = (self.dby_z * e.unsqueeze(2)).flatten(2)
        return Sources(z=d, a=self.dby_a * e, h_before=self.dz * e)

    def of_input(self, d, e, a):
        return torch.cat((d[..., : 2 * e.size(-1)], _plus_product(a, self.by_a, e)), 2)
