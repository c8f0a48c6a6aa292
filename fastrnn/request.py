"""What an autograd Function of a layer is given besides tensors, and in which order these are."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from .call import Call
from .dispatch import Backend, cpu
from .dispatch.reference.twice import Derivation
from .results import Cotangents, Needs, Saved
from .samples import Tensors
from .torch_private import may_derive

# Which dimension of a tensor is the batch: of input, h0, c0, reset and lengths; gradients
# of output, h_n and c_n; output, gates, cells and hidden as they are saved.
OF_CALL, OF_GRADIENTS, OF_SAVED = (1, 1, 1, 1, 0), (1, 1, 1), (1, 2, 2, 2)
BEFORE = len(OF_GRADIENTS + OF_SAVED)  # what comes before the call in a backward


class Request:
    """What is no tensor in a call, and what of it may have gradients. `vmap` looks into tuples, and
    not into this.

    needs: which gradients a backward makes.
    of_rows: whether those of the weights are those of each row.
    is_derived: whether the backward is one of eager mode that may be derived again. Then there are
        the backend of the layer, and whether the user has changed in place what was saved.
    derivation: what such a backward has left.
    """

    backend: Backend = cpu
    is_derived: bool = False
    is_stale: Callable[[], bool] | None = None
    derivation: Derivation | None = None

    def __init__(
        self,
        call: Call,
        needs: Needs | None = None,
        of_rows: bool = False,
    ) -> None:
        self.rest, self.limits, self.needs, self.of_rows = call[5:7], call[9:], needs, of_rows
        self.batch_sizes = call.batch_sizes
        kind = call.kind
        self.has = (kind.saved > 0, kind.has_c, kind.keeps_hidden(call.projected))
        self.saves = may_derive()

    def call(self, tensors: Tensors) -> Call:
        """The call of these tensors: `tensors_of` gives them."""
        input, h0, c0, reset, lengths, *weights = tensors
        return Call(
            input, self.batch_sizes, h0, c0, weights, *self.rest, reset, lengths, *self.limits
        )

    def makes(self, count: int) -> list[bool]:
        """Of so many tensors of a call those whose gradients a backward makes."""
        input, state, weights = self.needs
        own = [input, state, state and self.has[1], False, False]
        return own + [weights] * (count - len(own))

    def parts(self, tensors: Tensors) -> tuple[Call, Cotangents, Saved]:
        """The call, the cotangents and what was saved."""
        count = len(OF_GRADIENTS)
        came, saved = tensors[:count], tensors[count:BEFORE]
        return self.call(tensors[BEFORE:]), Cotangents(*came, None), Saved(*saved)


def tensors_of(call: Call) -> list[Tensor | None]:
    """The tensors of a call, all but batch_sizes."""
    return [call.input, call.h0, call.c0, call.reset, call.lengths, *call.weights]


def over_time(call: Call, saved: Saved) -> Saved:
    """What was saved with planes (D, T, N, ...), as tensors of a Function have them."""
    kept = [t if t is not None and t.dim() > 1 else None for t in saved[1:]]  # an op gives (0,)
    if call.batch_sizes is None:
        kept = [t if t is None else t.unflatten(1, call.input.shape[:2]) for t in kept]
    return Saved(saved.output, *kept)


def flat(call: Call, saved: Saved) -> Saved:
    """The other way, as kernels have them."""
    if call.batch_sizes is not None:
        return saved
    flat = (t if t is None else t.flatten(1, 2).contiguous() for t in saved[1:])
    return Saved(saved.output, *flat)
