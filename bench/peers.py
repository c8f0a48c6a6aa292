"""Other libraries. The runtimes for inference read one ONNX model, made here from the weights:
ONNX has LSTM, GRU and RNN as nodes, and what an exporter adds around them depends on its version.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from itertools import cycle, islice

import numpy as np
import torch

from bench import quantized
from bench.cases import STEPS, Spec
from bench.contenders import Call, Contender, module_of
from bench.problems import CHUNKS, Problem

# ONNX stacks gates in another order (https://onnx.ai/onnx/operators/onnx__LSTM.html, ...__GRU):
# the places of ONNX's gates in torch's.
GATE_ORDER = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}  # iofc in ifgo, zrh in rzn
CALIBRATION = 64  # steps that bounds of int8 are found in
OPSET, IR = 17, 8  # of the year 2022, which every runtime in use reads


def onnx_model(problem: Problem, step: bool = False):
    """A ModelProto from x (T, N, input) to y, h_n and, for an LSTM, c_n as torch.nn gives them.
    With `step` also from the states: h_0 and c_0 are inputs. Where rows end early also from
    lengths (N,) int32: y is zero past the end of a row.

    ONNX's LSTM has no projection. But h = P k, where k is what ONNX takes for h, and the next step
    reads it as R h: with R P for its recurrent weights the node gives k, and one product h."""
    onnx = importlib.import_module("onnx")
    helper, spec = onnx.helper, problem.spec
    case = spec.case
    directions, hidden = case.directions, case.hidden_size
    ragged = problem.lengths is not None
    states = ("h", "c") if spec.cell == "LSTM" else ("h",)
    nodes, constants = [], []

    def constant(name: str, value: np.ndarray) -> str:
        constants.append(onnx.numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def stacked(stem: str, layer: int) -> np.ndarray:
        """Of both directions, gates in the order of ONNX: (directions, gates*hidden, ...)."""
        found = []
        for suffix in ("", "_reverse")[:directions]:
            parts = problem.weights[f"{stem}_l{layer}{suffix}"].chunk(spec.gates)
            found.append(torch.cat([parts[gate] for gate in GATE_ORDER[spec.cell]]).numpy())
        return np.stack(found)

    shape = constant("shape", np.array([0, 0, -1], np.int64))  # keeps T and N, joins directions
    sizes = constant("sizes", np.full(case.layers, directions, np.int64))
    if step:
        for s in states:
            names = [f"{s}_0_{layer}" for layer in range(case.layers)]
            nodes.append(helper.make_node("Split", [f"{s}_0", sizes], names, axis=0))
    x = "x"
    for layer in range(case.layers):
        bias = np.concatenate([stacked("bias_ih", layer), stacked("bias_hh", layer)], 1)
        recurrent = stacked("weight_hh", layer)
        found = ["Y", "h_n_", "c_n_"][: 1 + len(states)]
        if case.proj_size:
            projection = problem.weights[f"weight_hr_l{layer}"].numpy()
            recurrent = recurrent @ projection
            found[:2] = "K", "k_n_"
        inputs = [
            x,
            constant(f"W{layer}", stacked("weight_ih", layer)),
            constant(f"R{layer}", recurrent),
            constant(f"B{layer}", bias),
            "lengths" if ragged else "",
            *(f"{s}_0_{layer}" if step else "" for s in states),
        ]
        y = "y" if layer == case.layers - 1 else f"y{layer}"
        options = {"linear_before_reset": 1} if spec.cell == "GRU" else {}
        options["direction"] = "bidirectional" if case.bidirectional else "forward"
        outputs = [f"{name}{layer}" for name in found]
        nodes.append(helper.make_node(spec.cell, inputs, outputs, hidden_size=hidden, **options))
        if case.proj_size:
            right = constant(f"P{layer}", projection.T)
            for k, h in (("K", "Y"), ("k_n_", "h_n_")):
                nodes.append(helper.make_node("MatMul", [f"{k}{layer}", right], [f"{h}{layer}"]))
        nodes += [
            helper.make_node("Transpose", [f"Y{layer}"], [f"Z{layer}"], perm=(0, 2, 1, 3)),
            helper.make_node("Reshape", [f"Z{layer}", shape], [y]),
        ]
        x = y
    for s in states:
        names = [f"{s}_n_{layer}" for layer in range(case.layers)]
        nodes.append(helper.make_node("Concat", names, [f"{s}_n"], axis=0))
    kind = helper.np_dtype_to_tensor_dtype(problem.input.numpy().dtype)
    steps, widths = case.T, {"h": case.output_size, "c": hidden}

    def value(name: str, *dims: int, kind=kind):
        return helper.make_tensor_value_info(name, kind, dims)

    def state(name: str):
        return value(name, case.layers * directions, case.N, widths[name[0]])

    given = [state(f"{s}_0") for s in states] if step else []
    given += [value("lengths", case.N, kind=onnx.TensorProto.INT32)] if ragged else []
    graph = helper.make_graph(
        nodes,
        spec.cell,
        [value("x", steps, case.N, case.input_size), *given],
        [
            value("y", steps, case.N, directions * case.output_size),
            *(state(f"{s}_n") for s in states),
        ],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    onnx.checker.check_model(model)
    return model


def onnxruntime_run(problem: Problem, step: bool, int8: bool = False) -> Callable[[dict], list]:
    """The function from arrays by name to arrays, on as many threads as the spec says."""
    runtime = importlib.import_module("onnxruntime")
    model = onnx_model(problem, step)
    if int8:
        model = quantized.for_onnxruntime(model)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = problem.spec.threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    return lambda inputs: session.run(None, inputs)


def openvino_run(problem: Problem, step: bool, int8: bool = False) -> Callable[[dict], list]:
    """The same. Its results are arrays that the next call overwrites, so that a step has to copy
    those it is given back."""
    # OpenVINO and nncf send messages home, by a fork of this process, but not from such a service.
    os.environ.setdefault("CI", "true")
    openvino = importlib.import_module("openvino")
    core = openvino.Core()
    model = core.read_model(onnx_model(problem, step).SerializeToString())
    if int8:
        taken = islice(steps(problem, openvino_run(problem, step)), CALIBRATION)
        # By now the next call has overwritten the states, by others of their size.
        inputs = [{name: array.copy() for name, array in each.items()} for each, _ in taken]
        model = quantized.for_openvino(model, inputs)
    model = core.compile_model(
        model,
        "CPU",
        {
            "INFERENCE_NUM_THREADS": problem.spec.threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            # Without it a CPU with bfloat16 would compute in that.
            "INFERENCE_PRECISION_HINT": "f32",
        },
    )
    request = model.create_infer_request()
    outputs = range(len(model.outputs))

    def run(inputs: dict) -> list:
        request.infer(inputs, share_inputs=not step)
        return [request.get_output_tensor(number).data for number in outputs]

    return run


Runtime = Callable[[Problem, bool], Callable[[dict], list]]


def whole(runtime: Runtime) -> Callable[[Problem], Call]:
    """`prepare` of a call over the whole sequence."""

    def prepare(problem: Problem) -> Call:
        run, inputs = runtime(problem, False), {"x": problem.input.numpy()}
        if problem.lengths is not None:
            inputs["lengths"] = problem.lengths.to(torch.int32).numpy()
        return lambda: run(inputs)

    return prepare


def steps(problem: Problem, run: Callable[[dict], list]) -> Iterator[tuple[dict, np.ndarray]]:
    """The inputs of one chunk after the other, with the states that came of the one before, and the
    output."""
    case = problem.spec.case
    zeros = np.zeros((case.layers, case.N, case.hidden_size), problem.input.numpy().dtype)
    states = dict.fromkeys(("h_0", "c_0") if problem.spec.cell == "LSTM" else ("h_0",), zeros)
    for x in cycle(np.split(problem.input.numpy(), CHUNKS)):
        inputs = {"x": x, **states}
        output, *found = run(inputs)
        states = dict(zip(states, found, strict=True))
        yield inputs, output if case.job == "chunk" else output[0]


def stepwise(runtime: Runtime) -> Callable[[Problem], Call]:
    """`prepare` of a call of one frame or chunk."""

    def prepare(problem: Problem) -> Call:
        chunks = steps(problem, runtime(problem, True))
        return lambda: next(chunks)[1]

    return prepare


def infers(name: str, prepare) -> Contender:
    return Contender(
        name,
        prepare,
        modes=("inference",),
        devices=("cpu",),
        dtypes=("float32",),  # onnxruntime has no double in these nodes
        fits=lambda spec: (
            spec.cell not in STEPS and not (spec.case.proj_size and spec.case.bidirectional)
        ),
    )


def plain(spec: Spec, *cells: str) -> bool:
    """One of these cells, in one direction and without a projection."""
    return spec.cell in cells and spec.case.directions == 1 and not spec.case.proj_size


def haste(problem: Problem) -> Call:
    """https://github.com/lmnt-com/haste, docs/pytorch: one layer, weights (input, 4*hidden) with
    the gates in the order i, g, f, o, and one bias."""
    spec, w = problem.spec, problem.weights
    layer = importlib.import_module("haste_pytorch").LSTM(
        spec.case.input_size, spec.case.hidden_size
    )

    def ordered(value: torch.Tensor) -> torch.Tensor:
        i, f, g, o = value.chunk(4)
        return torch.cat([i, g, f, o])

    layer.load_state_dict(
        {
            "kernel": ordered(w["weight_ih_l0"]).T,
            "recurrent_kernel": ordered(w["weight_hh_l0"]).T,
            "bias": ordered(w["bias_ih_l0"] + w["bias_hh_l0"]),
        }
    )
    layer = layer.to(problem.input.device, problem.input.dtype).eval()

    def call() -> object:
        with torch.no_grad():
            return layer(problem.input)

    return call


RUNTIMES = (
    infers("onnxruntime", whole(onnxruntime_run)),
    infers("OpenVINO", whole(openvino_run)),
)
STEP_RUNTIMES = (
    infers("onnxruntime", stepwise(onnxruntime_run)),
    infers("OpenVINO", stepwise(openvino_run)),
)
# Both have int8 for LSTM alone. OpenVINO's comes of nncf, another package, and is wrong in stacks.
SMALL_RUNTIMES = (
    replace(
        infers("onnxruntime, int8", stepwise(partial(onnxruntime_run, int8=True))),
        fits=lambda spec: spec.cell == "LSTM",
        tolerance=0.2,
    ),
    replace(
        infers("OpenVINO, int8", stepwise(partial(openvino_run, int8=True))),
        fits=lambda spec: plain(spec, "LSTM") and spec.case.layers == 1,
        tolerance=0.2,
    ),
    *STEP_RUNTIMES,
)
LIBRARIES = (
    Contender(
        "TorchRL",
        module_of("torchrl.modules", batch_first=True),
        fits=lambda spec: plain(spec, "LSTM", "GRU"),
        asked=True,
    ),
    Contender(
        "haste",
        haste,
        modes=("inference",),
        devices=("cuda",),
        dtypes=("float32", "float64"),
        fits=lambda spec: plain(spec, "LSTM") and spec.case.layers == 1,
        asked=True,
    ),
)
