"""The safetensors formats by name. It knows no format's insides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from r1quant.checkpoint import Checkpoint
from r1quant.errors import CheckpointError
from r1quant.formats.awq import Awq
from r1quant.formats.codec import Codec, CodecArtifact
from r1quant.formats.compressed_tensors import CompressedTensors
from r1quant.formats.gptq import Gptq, version_of

CODECS: Mapping[str, Codec] = {
    codec.name: codec for codec in (Gptq(1), Gptq(2), Awq(), CompressedTensors(), CompressedTensors(packed=False))
}
NAMES = ", ".join(CODECS)


def codec_of(stated: Mapping[str, Any]) -> Codec:
    """The codec of a quantization_config, ours or anybody's. Raises CheckpointError for a kind that is not read."""
    method = str(stated.get("quant_method", "")).lower()
    if method in ("gptq", "gptq_marlin"):
        return CODECS["gptq" if version_of(stated) == 1 else "gptq-v2"]
    if method == "awq":
        version = str(stated.get("version", "gemm")).lower()
        if version != "gemm":
            raise CheckpointError(f"AWQ version {version!r} cannot be read", "use a checkpoint of version gemm")
        return CODECS["awq"]
    if method == "compressed-tensors":
        layout = stated.get("format")
        if layout in ("pack-quantized", "mixed-precision"):
            return CODECS["compressed-tensors"]
        if layout in ("int-quantized", "naive-quantized"):
            return CODECS["compressed-tensors-int"]
        raise CheckpointError(
            f"compressed-tensors of format {layout!r} cannot be read", "use pack-quantized or int-quantized"
        )
    raise CheckpointError(
        f"the quantization {stated.get('quant_method')!r} cannot be read", "use a GPTQ, AWQ or compressed-tensors one"
    )


def artifact(checkpoint: Checkpoint) -> CodecArtifact:
    """A safetensors checkpoint as an Artifact, quantized or not."""
    stated = checkpoint.config.get("quantization_config")
    if stated is None:
        return CodecArtifact(checkpoint, None)
    if not isinstance(stated, dict):
        raise CheckpointError("config.json: quantization_config is not an object", "download the file again")
    return CodecArtifact(checkpoint, codec_of(stated))
