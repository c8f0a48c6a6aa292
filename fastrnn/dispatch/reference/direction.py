"""One direction of a layer in `twice`, which says what happens here."""

from __future__ import annotations

import torch
from torch import Tensor

from ...call import Call
from ...results import Cotangents, Gradients, Needs, Saved
from .chunk import BIASES, Chunk, add, by_step, joined, product, shifted, stack, state, step, zeros
from .order import Order
from .steps import Gru, Lstm, Rnn, Sources, plus

_AT_ONCE = 65536  # numbers in a plane of a chunk


class Direction:
    """One direction of a layer, in the order in which it takes its steps."""

    def __init__(self, call: Call, d: int, came: Cotangents, saved: Saved) -> None:
        P, order = call.h0.size(-1), Order(call, reverse=d == 1)
        self.order, self.limit, self.w = order, call.grad_clip, call.by_name()[d]
        self.h0, self.c0 = call.h0[d], state(call.c0, d)

        def own(output: Tensor | None) -> Tensor | None:
            return None if output is None else order.of(output[..., d * P : (d + 1) * P])

        h, x = own(saved.output), order.of(call.input)
        gates, c = order.of(state(saved.gates, d)), order.of(state(saved.cells, d))
        hidden = order.of(saved.hidden[d]) if call.projected else h
        T, N = order.size
        size = max(1, _AT_ONCE // max(1, N * call.hidden_size))
        self.chunks = []
        for t in range(0, T, size):
            chunk = Chunk()
            at = chunk.at = slice(t, t + size)
            chunk.x, chunk.hidden, chunk.passes = (
                x[at],
                hidden[at],
                by_step(state(order.passes, at)),
            )
            chunk.h_before, taken = order.before(h, self.h0, at), state(order.taken, at)
            if c is not None:
                chunk.cell = Lstm(gates[at], order.before(c, self.c0, at), c[at])
            elif call.kind.saved:
                chunk.cell = Gru(gates[at], chunk.h_before, taken)
            else:
                chunk.cell = Rnn(h[at], call.cell == "rnn_relu", taken)
            self.chunks.append(chunk)
        last_h, last_c = state(came.h_n, d), state(came.c_n, d)
        self._arrive(order.with_last(own(came.output), last_h), order.with_last(None, last_c))
        self.e0 = plus(self.e0, order.of_no_step(last_h))
        self.e_c0 = plus(self.e_c0, order.of_no_step(last_c))

    def first(self, needs: Needs) -> Gradients:
        """The gradients that are needed."""
        w, inputs, total = self.w, [], dict.fromkeys(self.w)
        for chunk in self.chunks:
            if needs.input:
                inputs.append(chunk.a @ w["w_ih"])
            if needs.weights:
                add(total, chunk.a, chunk.d, chunk.e_h, chunk.x, chunk.h_before, chunk.hidden)
        input = self.order.back(torch.cat(inputs)) if inputs else None
        return Gradients(input, self.e0, self.e_c0, [*total.values()])

    def second(
        self,
        dx: Tensor | None,
        dh0: Tensor | None,
        dc0: Tensor | None,
        dw: dict[str, Tensor | None],
    ) -> tuple[Gradients, tuple[Tensor, Tensor, Tensor | None]]:
        """The derivatives by the tensors of the call, and by output, h_n and c_n."""
        w, chunks = self.w, [chunk.again() for chunk in self.chunks]
        h_n, c_n = self._change(chunks, dx, dh0, dc0, dw)
        e, e_c, inputs, total = torch.zeros_like(self.h0), zeros(self.c0), [], dict.fromkeys(w)
        for chunk in reversed(chunks):
            sources = self._sources(chunk, dw)
            e, e_c, de_h, de, _, dd, _ = self._adjoint(chunk, e, e_c, sources)
            da = chunk.cell.of_input(dd, de, sources.a)
            inputs.append(product((da, w["w_ih"]), (chunk.a, dw["w_ih"])))
            add(total, da, dd, de_h, chunk.x, chunk.h_before, chunk.hidden)
            self._add_directions(total, chunk)
        input = self.order.back(torch.cat(inputs[::-1]))
        return Gradients(input, e, e_c, [*total.values()]), (self._changed(chunks), h_n, c_n)

    def partial(
        self, dx: Tensor | None, dh0: Tensor | None, _: None, dw: dict[str, Tensor | None]
    ) -> tuple[Gradients, tuple[Tensor, Tensor, None], Tensor]:
        """The same of a vanilla RNN, where its output stands for itself: also the derivative by
        that."""
        chunks, sources, inputs = [chunk.again() for chunk in self.chunks], [], []
        h_n, _ = self._change(chunks, dx, dh0, None, dw)
        total = dict.fromkeys(self.w)
        for chunk in chunks:
            sources.append(self._sources(chunk, dw))
            inputs.append(product((chunk.a, dw["w_ih"])))
            self._add_directions(total, chunk)
        h, h0 = shifted(
            joined([each.h for each in sources]), joined([each.h_before for each in sources])
        )
        changed, input, back = self._changed(chunks), joined(inputs), self.order.back
        output = torch.zeros_like(changed) if h is None else back(h)  # none: relu's slope is fixed
        of_call = Gradients(None if input is None else back(input), h0, None, [*total.values()])
        return of_call, (changed, h_n, None), output

    def _sources(self, chunk: Chunk, dw: dict[str, Tensor | None]) -> Sources:
        """What arrives in the steps of a chunk, as the first backward changes."""
        found = chunk.cell.varied(chunk.e, chunk.e_c)
        return found._replace(
            h_before=plus(found.h_before, product((chunk.d, dw["w_hh"]))),
            hidden=product((chunk.e_h, dw.get("w_hr"))),
        )

    def _add_directions(self, total: dict[str, Tensor | None], chunk: Chunk) -> None:
        """Adds to the gradients of the weights what comes of the changes of the states."""
        there = chunk.dx, chunk.dh_before, chunk.dhidden
        add(total, chunk.a, chunk.d, chunk.e_h, *there, biases=False)

    def _changed(self, chunks: list[Chunk]) -> Tensor:
        return self.order.back(torch.cat([chunk.dh for chunk in chunks]))

    def _arrive(self, of_h: Tensor | None, of_c: Tensor | None) -> None:
        """The backward itself, from what comes for the states of each step."""
        plain = of_h is not None and not self.limit and self.order.passes is None
        e, e_c = of_h[-1] if plain else torch.zeros_like(self.h0), zeros(self.c0)
        for chunk in reversed(self.chunks):
            own, before = state(of_h, chunk.at), None
            if plain:  # one addition less in each step
                own, before = None, self.order.before(of_h, torch.zeros_like(self.h0), chunk.at)
            sources = Sources(h=own, c=state(of_c, chunk.at), h_before=before)
            found = self._adjoint(chunk, e, e_c, sources)
            e, e_c, chunk.e_h, chunk.e, chunk.e_c, chunk.d, chunk.carried = found
            chunk.a = chunk.cell.of_input(chunk.d, chunk.e, None)
        self.e0, self.e_c0 = e, e_c

    def _adjoint(self, chunk: Chunk, e: Tensor, e_c: Tensor | None, sources: Sources) -> tuple:
        """e and e_c before the steps of a chunk, from those after it. Of each step: what arrives at
        h, at h before a projection, at c and at z, and what goes back through h, not clamped."""
        w_hh, w_hr, limit, cell = self.w["w_hh"], self.w.get("w_hr"), self.limit, chunk.cell
        of_h, of_c, of_d, _, of_before, of_c_before, of_hidden = map(by_step, sources)
        adjoint, passes = cell.adjoint, chunk.passes
        e_hs, hiddens, cs, ds, carried = [], [], [], [], []
        for t in range(len(cell.each) - 1, -1, -1):
            if of_h is not None:
                e = e + of_h[t]
            e_hs.append(e)
            if w_hr is not None:
                e = step(of_hidden and of_hidden[t], e, w_hr)
                hiddens.append(e)
            if of_c is not None:
                e_c = e_c + of_c[t]
            d, e, c, e_c = adjoint(t, e, e_c, of_d and of_d[t], of_before and of_before[t])
            e = step(e, d, w_hh)
            if of_c_before is not None:
                e_c = e_c + of_c_before[t]
            if limit:
                carried.append(e)
                e = e.clamp(-limit, limit)
            if passes is not None:
                e = e * passes[t]
                e_c = None if e_c is None else e_c * passes[t]
            cs.append(c)
            ds.append(d)
        e_hs = stack(e_hs[::-1])
        hiddens = e_hs if w_hr is None else stack(hiddens[::-1])
        return e, e_c, e_hs, hiddens, stack(cs[::-1]), stack(ds[::-1]), carried[::-1]

    def _change(
        self,
        chunks: list[Chunk],
        dx: Tensor | None,
        dh0: Tensor | None,
        dc0: Tensor | None,
        dw: dict[str, Tensor | None],
    ) -> tuple[Tensor, Tensor | None]:
        """How the states change, of each chunk; returns the change of the last ones."""
        w, w_hh, w_hr = self.w, self.w["w_hh"].t(), self.w.get("w_hr")
        w_hr, dx = None if w_hr is None else w_hr.t(), self.order.of(dx)
        dh0 = torch.zeros_like(self.h0) if dh0 is None else dh0
        dc0 = zeros(self.c0) if dc0 is None else dc0
        turned = {name: None if way is None else way.t() for name, way in dw.items()}
        h, c, all_c = dh0, dc0, []
        for chunk in chunks:
            cell, passes, shape = chunk.cell, chunk.passes, (*chunk.x.shape[:2], -1)
            of_a, of_u = [b if b is None else b.expand(shape) for b in map(dw.get, BIASES)]
            chunk.dx = state(dx, chunk.at)
            of_a = plus(product((chunk.dx, w["w_ih"].t()), (chunk.x, turned["w_ih"])), of_a)
            of_u = plus(product((chunk.h_before, turned["w_hh"])), of_u)
            source = by_step(cell.source(of_a, of_u))
            of_h = by_step(product((chunk.hidden, turned.get("w_hr"))))
            hs, hiddens, cs, h_befores, c_befores, zs = [], [], [], [], [], []
            for t in range(len(cell.each)):
                if passes is not None:
                    h, c = h * passes[t], None if c is None else c * passes[t]
                if self.limit:
                    h = h.where(chunk.carried[t].abs() <= self.limit, 0)
                h_befores.append(h)
                c_befores.append(c)
                zs.append(step(source and source[t], h, w_hh))
                h, c = cell.tangent(t, zs[-1], h, c)
                if w_hr is not None:
                    hiddens.append(h)
                    h = step(of_h and of_h[t], h, w_hr)
                hs.append(h)
                cs.append(c)
            chunk.dh, chunk.dhidden, chunk.dh_before = map(stack, (hs, hiddens, h_befores))
            all_c.append(stack(cs))
            cell.vary(stack(zs), chunk.dh_before, stack(c_befores), all_c[-1])
        if self.order.lengths is None:
            return h, c
        h = self.order.last(torch.cat([chunk.dh for chunk in chunks]), dh0)
        return h, None if c is None else self.order.last(torch.cat(all_c), dc0)
