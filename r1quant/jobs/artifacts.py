"""From what a user names to an Artifact: float or quantized safetensors, a GGUF file, an ONNX folder."""

from __future__ import annotations

from pathlib import Path

from r1quant.arch.tables import Architecture, architecture_of, layer_count
from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.resolve import open_model
from r1quant.core.json import Config
from r1quant.errors import CheckpointError, R1QuantError
from r1quant.formats import table
from r1quant.jobs.checkpoint_writer import RECORD, own_record
from r1quant.records.quantization import Quantization
from r1quant.storage.jsonfile import read_object

ONNX_FILE, CONFIG = "model.onnx", "config.json"


def open_artifact(model: str | Path, partial: bool = False) -> Artifact:
    """partial: whether a GGUF file may lack tensor data, as open_gguf has it.

    Raises CheckpointError if the model is unknown, damaged, or in a form that is not read.
    """
    path = Path(model)
    try:
        is_onnx = path.name == ONNX_FILE or (path / ONNX_FILE).is_file()
        path = _only_gguf(path) or path
        is_gguf = path.suffix.lower() == ".gguf" and path.is_file()
    except (OSError, ValueError):
        is_onnx = is_gguf = False
    if is_onnx:
        from r1quant.formats.onnx.read import open_onnx

        return open_onnx(path)
    if is_gguf:
        from r1quant.formats.gguf.read import open_gguf_artifact

        return open_gguf_artifact(path, partial=partial)
    checkpoint = open_model(model)
    layer_count(checkpoint.config, len(checkpoint.tensors))
    return table.artifact(checkpoint)


def config_of(out: Path) -> Config | None:
    """config.json of an output, or what its GGUF file says in place of one; None if it has neither."""
    if (out / CONFIG).is_file():
        return read_object(out / CONFIG) or None
    if _only_gguf(out) is None:
        return None
    try:
        return open_artifact(out, partial=True).config
    except R1QuantError:
        return None


def newest_output(folder: Path) -> Path:
    """The quantized checkpoint last written into this folder. Raises CheckpointError if there is none."""
    found = [path.parent for path in folder.glob(f"*/{RECORD}")]
    if not found:
        raise CheckpointError(
            f"no quantized checkpoint in {folder}", "name one, or make one first: r1quant quantize --bits 4"
        )
    return max(found, key=lambda path: (path / RECORD).stat().st_mtime_ns)


def source_of(quantized: Artifact) -> str:
    """What the record of a checkpoint says it was made from. Raises CheckpointError if it does not say."""
    record = own_record(quantized.folder)
    source = record.source if record else None
    if source is None:
        raise CheckpointError(f"{quantized.source} does not say what it was made from", "name it with --baseline")
    local = (quantized.folder / source).resolve()
    return str(local) if local.exists() else source


def predicted_kl(quantized: Artifact) -> float | None:
    """The KL divergence that its own record predicts, in nats; None if it predicts none."""
    record = own_record(quantized.folder)
    return record.predicted_kl if isinstance(record, Quantization) else None


def same_model(one: Artifact, other: Artifact) -> Architecture:
    """The architecture of two forms of one model. Raises CheckpointError if they cannot be that."""
    arch = architecture_of(one.config)
    for key in ("model_type", "hidden_size", "num_hidden_layers", "vocab_size", "intermediate_size"):
        mine, theirs = one.config.get(key), other.config.get(key)
        if mine != theirs and not (key == "model_type" and _related(one, other)):
            raise CheckpointError(
                f"{key} is {mine} in {one.source} and {theirs} in {other.source}", "name two forms of one model"
            )
    return arch


def _related(one: Artifact, other: Artifact) -> bool:
    """Whether two model types are one in GGUF, which calls Mistral models llama."""
    names = {architecture_of(artifact.config).gguf.architecture for artifact in (one, other)}
    return len(names) == 1 and "gguf" in (one.format, other.format)


def _only_gguf(folder: Path) -> Path | None:
    """The model in a folder that holds GGUF and no safetensors; the first part if it is in several."""
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return None
    files = sorted(path for path in folder.glob("*.gguf") if not path.name.endswith(".imatrix.gguf"))
    alone = len(files) == 1 or all("-of-" in path.name for path in files)
    return files[0] if files and alone else None
