"""Models with int8 weights, as the tools of the runtimes make them."""

import importlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np


def for_onnxruntime(model):
    """A ModelProto by onnxruntime's own tool: of an LSTM it makes a node DynamicQuantizeLSTM, in
    which weights are rounded for each gate, and states and inputs in each call. It knows files
    alone."""
    onnx = importlib.import_module("onnx")
    tool = importlib.import_module("onnxruntime.quantization")
    with tempfile.TemporaryDirectory() as folder:
        given, made = Path(folder) / "given.onnx", Path(folder) / "made.onnx"
        onnx.save(model, given)
        tool.quant_pre_process(given, given)  # without which it warns
        tool.quantize_dynamic(given, made, per_channel=True, weight_type=tool.QuantType.QInt8)
        return onnx.load(made)


def for_openvino(model, inputs: Sequence[dict[str, np.ndarray]]):
    """A model of OpenVINO by nncf, its own tool: an LSTM or a GRU has int8 weights with a scale for
    each row, and x and h are rounded to 256 values between bounds that these `inputs` have met.

    Constants are folded first, as nncf does not see weights past the nodes that put gates in
    OpenVINO's order. It would also round the cell state, which OpenVINO takes as floats."""
    nncf, passes = importlib.import_module("nncf"), importlib.import_module("openvino.passes")
    nncf.set_log_level("ERROR")
    manager = passes.Manager()
    manager.register_pass(passes.ConstantFolding())
    manager.run_passes(model)
    model = nncf.quantize(model, nncf.Dataset(inputs), subset_size=len(inputs))
    for node in model.get_ops():
        if node.get_type_name() == "FakeQuantize" and node.get_friendly_name().startswith("c_0"):
            for reader in list(node.output(0).get_target_inputs()):
                reader.replace_source_output(node.input_value(0))
    model.validate_nodes_and_infer_types()
    return model
