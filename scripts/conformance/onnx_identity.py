"""What the linears of an ONNX decoder multiply by, as onnxruntime computes it: each is run on the identity matrix.

A linear is the part of the graph that ends at NAME.out and begins at the activation of its matrix multiplication.
Several linears that share their input are one, NAME+NAME, row after row. Needs onnx and onnxruntime.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

PRODUCTS = ("MatMul", "MatMulNBits")
LINEAR = re.compile(r"(?P<prefix>.*layers\.\d+\.\w+)\.(?P<names>\w+_proj(\+\w+_proj)*)\.out")
FLOAT32_LEVEL = "1"  # of MatMulNBits


def linears(path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """The weight [out, in] of every linear with quantized codes, float32. path: the .onnx file."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    config = json.loads((path.parent / "config.json").read_text("utf-8"))
    made = {name: node for node in model.graph.node for name in node.output}
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    for name in made:
        found = LINEAR.fullmatch(name)
        if found is None:
            continue
        nodes, activation = _behind(name, made)
        used = [stored[i] for i in sorted({i for node in nodes for i in node.input}) if i in stored]
        weight = _run(model, path, nodes, used, activation, name, _columns(nodes, stored)).T
        names = found["names"].split("+")
        ends = np.cumsum([_rows(each, config) for each in names[:-1]], dtype=int)
        rows = np.split(weight, ends) if len(names) > 1 else [weight]
        yield from zip((f"{found['prefix']}.{each}" for each in names), rows, strict=True)


def _behind(name: str, made: dict[str, Any]) -> tuple[list[Any], str]:
    """The nodes between the activation and a value, in order, and the activation's name."""
    found: list[Any] = []
    activation = ""

    def visit(value: str) -> None:
        nonlocal activation
        node = made.get(value)
        if node is None or any(node is other for other in found):
            return
        inputs = list(node.input)
        if node.op_type in PRODUCTS:
            activation, inputs = inputs[0], inputs[1:]
        for each in inputs:
            visit(each)
        found.append(node)

    visit(name)
    return found, activation


def _columns(nodes: list[Any], stored: dict[str, Any]) -> int:
    for node in nodes:
        for attribute in node.attribute:
            if node.op_type == "MatMulNBits" and attribute.name == "K":
                return int(attribute.i)
    codes = next(stored[i] for node in nodes if node.op_type == "DequantizeLinear" for i in node.input[:1])
    return int(codes.dims[0])


def _run(
    model: Any, path: Path, nodes: list[Any], tensors: list[Any], activation: str, output: str, columns: int
) -> np.ndarray:
    import onnx
    import onnxruntime
    from onnx import helper

    own = []
    for node in nodes:
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        for attribute in copied.attribute:
            if attribute.name == "accuracy_level":
                attribute.i = int(FLOAT32_LEVEL)
        own.append(copied)
    shape = [columns, columns]
    graph = helper.make_graph(
        own,
        "linear",
        [helper.make_tensor_value_info(activation, onnx.TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)],
        [_inside(tensor, path.parent) for tensor in tensors],
    )
    small = helper.make_model(graph, opset_imports=model.opset_import, ir_version=model.ir_version)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", FLOAT32_LEVEL)
    session = onnxruntime.InferenceSession(small.SerializeToString(), options, ["CPUExecutionProvider"])
    result: np.ndarray = session.run(None, {activation: np.eye(columns, dtype=np.float32)})[0]
    return result


def _inside(tensor: Any, folder: Path) -> Any:
    """The same tensor with its bytes in it; float16 ones widened, so that no product is rounded."""
    import onnx
    from onnx import numpy_helper

    if tensor.data_type == onnx.TensorProto.FLOAT16:
        wide = numpy_helper.to_array(tensor, str(folder)).astype(np.float32)
        return numpy_helper.from_array(wide, tensor.name)
    copied = onnx.TensorProto()
    copied.CopyFrom(tensor)
    if copied.external_data:
        onnx.external_data_helper.load_external_data_for_tensor(copied, str(folder))
    del copied.external_data[:]
    copied.data_location = onnx.TensorProto.DEFAULT
    return copied


def _rows(name: str, config: dict[str, Any]) -> int:
    """The rows of a linear that shares its input with others."""
    heads = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads", "v_proj": "num_key_value_heads"}
    if name not in heads:
        return int(config["intermediate_size"])
    head_dim = config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    return int(config[heads[name]] * head_dim)
