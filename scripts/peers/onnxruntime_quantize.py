"""onnxruntime's quantizer of constant MatMuls: options are {"algorithm": "rtn" or "hqq"}.

It is given one MatMul for each linear of the decoder, and no other node: neither algorithm looks at anything but the
weight. The result is OUT/model.onnx; its initializers are named after the linears.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from peers.job import Job, run


def graph(model: str) -> Any:
    """The float32 weights, transposed to [in, out] as MatMul takes them."""
    import onnx
    import torch
    from safetensors.torch import load_file

    nodes, weights, inputs, outputs = [], [], [], []
    for name, tensor in load_file(Path(model) / "model.safetensors").items():
        linear = name.removesuffix(".weight")
        if ".layers." not in name or tensor.ndim != 2:
            continue
        weights.append(onnx.numpy_helper.from_array(tensor.to(torch.float32).T.contiguous().numpy(), linear))
        nodes.append(onnx.helper.make_node("MatMul", [f"{linear}/in", linear], [f"{linear}/out"], linear))
        out, columns = tensor.shape
        inputs.append(onnx.helper.make_tensor_value_info(f"{linear}/in", onnx.TensorProto.FLOAT, [1, columns]))
        outputs.append(onnx.helper.make_tensor_value_info(f"{linear}/out", onnx.TensorProto.FLOAT, [1, out]))
    made = onnx.helper.make_graph(nodes, "linears", inputs, outputs, weights)
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 21)], ir_version=10)


def quantize(job: Job) -> None:
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        HQQWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )

    grid: dict[str, Any] = {"block_size": job.group_size, "bits": job.bits}
    if job.options["algorithm"] == "hqq":
        config: Any = HQQWeightOnlyQuantConfig(**grid)
    else:
        config = DefaultWeightOnlyQuantConfig(**grid, is_symmetric=True)
    quantizer = MatMulNBitsQuantizer(graph(job.model), algo_config=config)
    with job.timed():
        quantizer.process()
    Path(job.out).mkdir()
    quantizer.model.save_model_to_file(str(Path(job.out) / "model.onnx"), True)


if __name__ == "__main__":
    run(quantize, ("onnxruntime", "onnx", "torch"))
