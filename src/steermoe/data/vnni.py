"""Kokoro's convolutions in half the time: the same whole numbers, multiplied the way the CPU's VNNI instructions do.

ONNX Runtime multiplies unsigned weights by signed activations with VNNI, by unsigned ones without it, and quantized models have
those. Shifting activations and their zero point by 128 changes no sum. Without VNNI the signed product is the one that
loses (it saturates at 16 bits), so such CPUs keep the model as it is.
"""

from __future__ import annotations

from pathlib import Path


def sign_activations(model: Path, out: Path) -> None:
    """Write ``model`` (an ONNX file) to ``out`` with the input of every ``ConvInteger`` as int8; its outputs stay equal, bit for bit."""
    import numpy as np
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    loaded = onnx.load(str(model))
    graph = loaded.graph
    made_by = {name: node for node in graph.node for name in node.output}
    graph.initializer.append(numpy_helper.from_array(np.array(128, np.int32), "vnni_shift"))
    nodes, signed = [], set()
    for node in graph.node:
        source = made_by.get(node.input[0]) if node.op_type == "ConvInteger" else None
        if source is not None and source.op_type == "DynamicQuantizeLinear":
            quantized, scale, zero = source.output
            if zero not in signed:
                signed.add(zero)
                nodes += [
                    helper.make_node("Cast", [zero], [f"{zero}_wide"], to=TensorProto.INT32),
                    helper.make_node("Sub", [f"{zero}_wide", "vnni_shift"], [f"{zero}_shifted"]),
                    helper.make_node("Cast", [f"{zero}_shifted"], [f"{zero}_signed"], to=TensorProto.INT8),
                    helper.make_node(
                        "QuantizeLinear", [source.input[0], scale, f"{zero}_signed"], [f"{quantized}_signed"]
                    ),
                ]
            node.input[0], node.input[2] = f"{quantized}_signed", f"{zero}_signed"
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    onnx.save(loaded, str(out))
