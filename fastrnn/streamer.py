"""One time step at a time with the least latency: packed weights and state, held by one object."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from . import arguments, checks, small_weights
from .made import HeldInputs
from .modules import RNNBase
from .packed_stack import packed_stack
from .table import cell_named, cell_of
from .trees import map_tensors

State = Tensor | tuple[Tensor, ...]
Frame = TypeVar("Frame")  # a tensor, or an array of numpy

_WIDE = {torch.float64: torch.float64}  # what a stream computes in, by the dtype of the module
_WIDE |= dict.fromkeys((torch.float32, torch.bfloat16, torch.float16), torch.float32)


class Streamer:
    """Runs a unidirectional LSTM, GRU, RNN or Recurrent forward, one time step a call.

    A call computes what `module.step(x, state)` computes in eval mode, and keeps the state. It
    allocates nothing and releases the GIL. The result is the same memory at every call, and the
    next call overwrites it: clone what you keep. You may change, reshape or share the result; the
    state lives elsewhere. Each thread may run a stream of its own. A thread that uses a stream
    while another one does gets a RuntimeError, and changes nothing. Where no kernels are built,
    PyTorch's own compute the steps, and a call does allocate. A cell with `inputs` is given them
    at each call, as `module.step` is: `stream(x, {"dt": 0.1})`.

    The stream packs the weights when it is made. A later change of the module does not reach it
    until `refresh()`. `copy.deepcopy` and `pickle` take the module and the state along; the copy
    packs the weights that the module then has.

    A step of a few rows takes as long as reading the weights. `weights` makes these smaller, for an
    LSTM, GRU or RNN in float32; biases, states and gates stay float32. Weights of int8 have a scale
    for each row. Their factors, the input and the hidden state, are rounded at every step to 16
    bits, or to 8 with `activations="int8"`, with a scale for each row of the batch. A row with
    infinity or NaN becomes NaN until it is reset. `quantization_error` tells the loss.

    Args:
        module: on the CPU, in float32 or float64; or in bfloat16 or float16: then the state is
            float32, and y is made anew at each call. No gradients, no dropout.
        batch_size: N, rows that are advanced together.
        weights: None for floats, "float16", "bfloat16", "int8", or a dict from the names of
            parameters to these, in which "*" stands for all others. "int8" is `{"weight_ih_l0":
            None, "*": "int8"}`: features of all scales come in there.
        activations: "int8", or None for as many of 16 bits as leave room for the sums.

    Raises:
        TypeError: module is not an LSTM, GRU, RNN or Recurrent of this package, or batch_size no
            integer.
        ValueError: it is bidirectional, or of another dtype or device, or batch_size < 1; or
            weights or activations do not fit it, or a weight has a number that its format cannot
            hold, such as one beyond 65504 in float16.
        RuntimeError: weights is given, and no kernels are built.

    Example:
        >>> stream = fastrnn.Streamer(fastrnn.GRU(8, 16), batch_size=1)
        >>> for x in torch.randn(5, 1, 8):  # (batch_size, input_size)
        ...     y = stream(x)
        >>> y.shape  # (batch_size, hidden_size), or proj_size
        torch.Size([1, 16])
    """

    def __init__(
        self,
        module: RNNBase,
        batch_size: int = 1,
        *,
        weights: small_weights.Weights = None,
        activations: str | None = None,
    ) -> None:
        checks.check_outside_transforms()
        if not isinstance(module, RNNBase):
            torchs = " of torch.nn: fastrnn.convert(module) makes it one"
            raise TypeError(
                "Streamer takes an LSTM, GRU, RNN or Recurrent of fastrnn, got "
                f"{type(module).__name__}{torchs * isinstance(module, torch.nn.RNNBase)}"
            )
        if module.bidirectional:
            raise ValueError("a bidirectional module cannot run one time step at a time")
        batch_size = arguments.count_of("batch_size", batch_size)
        module._update_flat_weights()
        weight = module._flat_weights[0]
        if not weight.is_cpu or weight.dtype not in _WIDE:
            dtypes, own = ", ".join(map(str, _WIDE)), f"{weight.dtype} on {weight.device}"
            raise ValueError(f"Streamer runs on the CPU in {dtypes}, the module is {own}")
        self._weights, self._activations = weights, activations
        self._formats = small_weights.formats(module, weights, activations)
        self._module, self._dtype = module, weight.dtype
        self._input_shape = (batch_size, module.input_size)
        width = module.proj_size or module.hidden_size
        with torch.inference_mode(False), torch.device("cpu"):
            self._h = torch.zeros(module.num_layers, batch_size, width, dtype=_WIDE[self._dtype])
            own = cell_named(cell_of(module)).own * module.hidden_size
            self._c = self._h.new_zeros(module.num_layers, batch_size, own) if own else None
            self._output = self._h.new_zeros(batch_size, width)
            self._inputs = HeldInputs(module, self._output)
        self._address = self._output.data_ptr()
        self._lend()
        self._y_numpy = self._numpy_dtype = None  # where numpy is installed, and asked for
        self._stack = self._packed()

    def _lend(self) -> None:
        """Makes `_y`, of which users get views: their storage, over `_output`, is another."""
        with torch.inference_mode(False):
            self._y = torch.from_dlpack(self._output)

    def __repr__(self) -> str:
        given = {"weights": self._weights, "activations": self._activations}
        small = "".join(f", {name}={value!r}" for name, value in given.items() if value)
        return f"Streamer({self._module!r}, batch_size={self._input_shape[0]}{small})"

    def __getstate__(self) -> dict:
        return {
            "module": self._module,
            "batch_size": self._input_shape[0],
            "weights": self._weights,
            "activations": self._activations,
            "state": self._state_in(self._h.dtype),
        }

    def __setstate__(self, saved: dict) -> None:
        state = saved.pop("state")
        self.__init__(**saved)
        self.load_state(state)

    def refresh(self) -> None:
        """Takes the module's weights as they are now; the state goes on.

        Raises:
            TypeError: a weight is None.
            ValueError: a weight is of another dtype or device than the stream, has no memory now,
                or has a number that its format cannot hold.
            RuntimeError: a weight has another shape.
        """
        with self._stack as old:
            self._stack = self._packed()
            old.__enter__()  # for ever: another thread may have it in its hands

    def _packed(self):
        checks.check_outside_transforms()
        wide, planes = self._activations is None, self._inputs.planes
        memory = self._dtype, self._h, self._c, planes
        return packed_stack(self._module, *memory, self._formats, wide)

    def step(self, x: Frame, inputs: Mapping[str, Any] | None = None) -> Frame:
        """The next time step: x (N, input_size) -> y (N, hidden_size), or proj_size.

        A torch tensor gives a tensor, a numpy array an array; both are views of one memory.
        `inputs` are those of the cell of a `Recurrent`, as of its `step`, or arrays.

        Raises, before anything changes:
            ValueError: x has another shape, dtype or device.
            TypeError, ValueError, RuntimeError: inputs are missing, or do not fit.
            RuntimeError: x is sparse or nested, or a transform of `torch.func` or a tangent goes
                through x or inputs.
        """
        if isinstance(x, Tensor):
            try:
                if x.shape != self._input_shape or x.dtype is not self._dtype or not x.is_cpu:
                    self._refuse(x.shape, x.dtype, x.device)
                if half := self._dtype.itemsize == 2:
                    x, inputs = x.float(), map_tensors(Tensor.float, inputs)
                if x.is_neg() or not x.is_contiguous():
                    x = x.resolve_neg().contiguous()
            except RuntimeError:
                checks.check_dense("x", x)
                raise
            address = checks.address_of(x)
            self._run(address, inputs)
            if self._y.data_ptr() != self._address:
                self._lend()
            return self._y.to(self._dtype) if half else self._y.detach()
        return self._step_numpy(x, inputs)

    __call__ = step

    def _run(self, address: int, inputs: Mapping[str, Any] | None) -> None:
        if inputs is None and not self._inputs.planes:
            return self._stack.step(address, self._address)
        with self._stack as stack:
            self._inputs.write(inputs)
            stack.step(address, self._address)

    def _step_numpy(self, x, inputs):
        if self._y_numpy is None:
            self._y_numpy = self._output.numpy()
            self._numpy_dtype = self._y_numpy.dtype
        if not isinstance(x, type(self._y_numpy)):
            raise TypeError(f"x must be a torch tensor or a numpy array, got {type(x).__name__}")
        if x.shape != self._input_shape or x.dtype != self._numpy_dtype:
            self._refuse(x.shape, x.dtype, "the CPU")
        if not x.flags.c_contiguous:
            x = x.copy()
        self._run(x.__array_interface__["data"][0], inputs)
        return self._y_numpy.view()

    def steps(self, x: Tensor) -> Tensor:
        """The next T time steps: x (T, N, input_size) -> y (T, N, hidden_size), or proj_size.

        The bits of y are those of T calls of `step`, in less time, in memory of its own.

        Raises, before anything changes:
            TypeError, ValueError: x is no such tensor; the cell has inputs.
            RuntimeError: x is sparse or nested, or a transform of `torch.func` or a tangent goes
                through it.
        """
        if self._inputs.planes:
            raise TypeError("steps takes no cell that has inputs; call step in turn")
        if not isinstance(x, Tensor):
            raise TypeError(f"x must be a tensor, got {type(x).__name__}; see torch.from_numpy")
        self.check_frames("x", x)
        checks.check_no_tangent("x", x)
        x = x.detach().to(self._h.dtype).resolve_neg().contiguous()
        y = self._h.new_empty(len(x), *self._output.shape)
        if y.numel():
            self._stack.steps(checks.address_of(x), y.data_ptr(), len(x))
        return y.to(self._dtype)

    def check_frames(self, name: str, frames: Tensor) -> None:
        """ValueError, which has the name, if they are not (T, N, input_size), of the stream's dtype
        and on the CPU; RuntimeError if they are sparse or nested."""
        checks.check_dense(name, frames)
        own = frames.shape[1:] == self._input_shape and frames.dtype is self._dtype
        if not own or not frames.is_cpu:
            self._refuse(frames.shape, frames.dtype, frames.device, name, ("T",))

    def _refuse(self, shape, dtype, device, name: str = "x", before: tuple = ()) -> None:
        N, I = self._input_shape
        sizes = ", ".join((*before, f"batch_size={N}", f"input_size={I}"))
        own = f"({sizes}) {self._dtype}"
        raise ValueError(f"{name} must be {own} on the CPU, got {tuple(shape)} {dtype} on {device}")

    def reset(self, rows: int | Sequence[int] | Tensor | None = None) -> None:
        """Sets the state to zero: of all rows, or of those given, by index or by a bool mask (N,).

        Raises:
            TypeError: rows are neither integers nor a bool mask.
            IndexError: there is no such row, or the mask is not (N,).
        """
        checks.check_outside_transforms()
        at = slice(None) if rows is None else checks.rows_of(rows, len(self._output))
        with self._stack:
            for state in (self._h, self._c):
                if state is not None:
                    state[:, at] = 0

    @property
    def state(self) -> State:
        """A copy of the state, in the form in which the module returns it."""
        return map_tensors(Tensor.contiguous, self._state_in(self._dtype))

    def _state_in(self, dtype: torch.dtype) -> State:
        with self._stack:
            h, c = (s if s is None else s.to(dtype, copy=True) for s in (self._h, self._c))
        return self._module._joined_(h, c)

    def load_state(self, state: State) -> None:
        """Goes on from `state`, in the form that `state` and the module return it; copied.

        Raises:
            TypeError: it is not made of tensors.
            ValueError: it is not a pair for an LSTM, or a size does not fit.
            RuntimeError: a tensor is sparse, nested or on meta, or has a forward-mode tangent.
        """
        checks.check_outside_transforms()
        own = self._module._joined_(self._h, self._c)
        own, given = map(checks.parts_of, (own, state))
        checks.check_states(self._module, own, given)
        with torch.no_grad():
            copies = [torch.empty_like(to).copy_(new) for to, new in zip(own, given, strict=True)]
            with self._stack:
                for to, copy in zip(own, copies, strict=True):
                    to.copy_(copy)
