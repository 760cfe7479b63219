"""The safetensors formats by name. It knows no format's insides."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from r1quant.checkpoint.safetensors import Checkpoint, read_json
from r1quant.core.json import QuantConfig
from r1quant.errors import CheckpointError
from r1quant.formats.awq import Awq
from r1quant.formats.codec import Codec, CodecArtifact, Encoder
from r1quant.formats.compressed_tensors import CompressedTensors
from r1quant.formats.floats import FloatWeights
from r1quant.formats.gguf.encoder import GgufBlocks
from r1quant.formats.gptq import Gptq, version_of

CODECS: Mapping[str, Codec] = {
    codec.name: codec for codec in (Gptq(1), Gptq(2), Awq(), CompressedTensors(), CompressedTensors(packed=False))
}
ENCODERS: Mapping[str, Encoder] = {
    **CODECS,
    FloatWeights.name: FloatWeights(),
    GgufBlocks.name: GgufBlocks(),
}  # what quantize writes
PACKED = (".qweight", ".weight_packed", ".weight_scale")
SIDE_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}  # as AutoGPTQ and AutoAWQ wrote them


def codec_of(quant_config: QuantConfig) -> Codec:
    """The codec of a quantization_config, ours or anybody's. Raises CheckpointError for a kind that is not read."""
    method = str(quant_config.get("quant_method", "")).lower()
    if method in ("gptq", "gptq_marlin", "auto_gptq"):
        known = version_of(quant_config)
        if known is None:
            layout = quant_config.get("checkpoint_format") or quant_config.get("format")
            raise CheckpointError(f"GPTQ of format {layout!r} cannot be read", "use a checkpoint of gptq or gptq_v2")
        return CODECS["gptq" if known == 1 else "gptq-v2"]
    if method == "awq":
        version = str(quant_config.get("version") or quant_config.get("format") or "gemm").lower()
        if version != "gemm":
            raise CheckpointError(f"AWQ version {version!r} cannot be read", "use a checkpoint of version gemm")
        return CODECS["awq"]
    if method == "compressed-tensors":
        layout = quant_config.get("format")
        if layout in ("pack-quantized", "mixed-precision"):
            return CODECS["compressed-tensors"]
        if layout in ("int-quantized", "naive-quantized"):
            return CODECS["compressed-tensors-int"]
        raise CheckpointError(
            f"compressed-tensors of format {layout!r} cannot be read: only integers with scales are",
            "use pack-quantized or int-quantized",
        )
    raise CheckpointError(
        f"the quantization {quant_config.get('quant_method')!r} cannot be read: only integers with scales are",
        "use a GPTQ, AWQ or compressed-tensors checkpoint, or the float model",
    )


def artifact(checkpoint: Checkpoint) -> CodecArtifact:
    """A safetensors checkpoint as an Artifact, quantized or not.

    Raises CheckpointError if it is quantized in a way that is not read, or no configuration says how.
    """
    quant_config = checkpoint.config.get("quantization_config")
    if quant_config is None:
        quant_config = _side_quant_config(checkpoint)
        if quant_config is None:
            return CodecArtifact(checkpoint, None)
        checkpoint = replace(checkpoint, config={**checkpoint.config, "quantization_config": quant_config})
    if not isinstance(quant_config, Mapping):
        raise CheckpointError("the quantization_config is not a JSON object", "download config.json again")
    return CodecArtifact(checkpoint, codec_of(quant_config))


def _side_quant_config(checkpoint: Checkpoint) -> QuantConfig | None:
    """The quantization_config that a file of its own holds, if config.json has none; None for a float checkpoint."""
    marker_suffix = next((name for name in checkpoint.tensors if name.endswith(PACKED)), None)
    if marker_suffix is None:
        return None
    for name, method in SIDE_FILES.items():
        if (checkpoint.folder / name).is_file():
            options = read_json(checkpoint.folder / name)
            if not isinstance(options, dict):
                raise CheckpointError(f"{name} of {checkpoint.source} is not a JSON object", "download it again")
            return {"quant_method": method, **options}
    raise CheckpointError(
        f"{marker_suffix} is quantized, but config.json has no quantization_config",
        f"download config.json again, or the {' or '.join(SIDE_FILES)} beside it",
    )
