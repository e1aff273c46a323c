"""The faster form of a quantized model says the same."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from steermoe.data.vnni import sign_activations


@pytest.mark.skipif(not torch.cpu._is_vnni_supported(), reason="signed products are exact with VNNI alone")
def test_sign_activations_changes_no_number(tmp_path):
    rng = np.random.default_rng(0)
    weights = numpy_helper.from_array(rng.integers(0, 256, (8, 4, 3), np.uint8), "w")
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"]),
        helper.make_node("ConvInteger", ["q", "w", "zero", "w_zero"], ["one"], pads=[1, 1]),
        helper.make_node("ConvInteger", ["q", "w", "zero", "w_zero"], ["two"], dilations=[2], pads=[2, 2]),
        helper.make_node("Identity", ["scale"], ["s"]),
    ]
    graph = helper.make_graph(
        nodes,
        "two convolutions of one input",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, "time"])],
        [helper.make_tensor_value_info(name, TensorProto.INT32, [1, 8, "time"]) for name in ("one", "two")]
        + [helper.make_tensor_value_info("s", TensorProto.FLOAT, [])],
        [weights, numpy_helper.from_array(np.array(131, np.uint8), "w_zero")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "plain.onnx"
    )
    sign_activations(tmp_path / "plain.onnx", tmp_path / "signed.onnx")
    x = rng.normal(size=(1, 4, 200)).astype(np.float32) + 0.5
    plain, signed = (
        onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx"), providers=["CPUExecutionProvider"]).run(
            None, {"x": x}
        )
        for name in ("plain", "signed")
    )
    for before, after in zip(plain, signed, strict=True):
        np.testing.assert_array_equal(before, after)
    inputs = {
        i for n in onnx.load(str(tmp_path / "signed.onnx")).graph.node if n.op_type == "ConvInteger" for i in n.input
    }
    assert "q_signed" in inputs and "q" not in inputs
