"""Exports an artifact as a safetensors folder: quantized in a format of formats/table.py, or as floats."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from r1quant.arch.tables import Architecture, linears
from r1quant.checkpoint.artifact import Artifact, quantized, rows
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core.floats import FLOAT_DTYPES, round_to, widen
from r1quant.core.grid import UNIFORM
from r1quant.core.json import Config, JsonObject
from r1quant.formats.table import CODECS
from r1quant.jobs.checkpoint_writer import Contents, with_attention_factor, with_key, write_side_files, write_weights
from r1quant.jobs.export.task import ExportTask, TaskOutput
from r1quant.planning import layout
from r1quant.planning.targets import DTYPES
from r1quant.storage import provenance


def write_folder(task: ExportTask, folder: Path) -> TaskOutput:
    """Writes all but the record."""
    artifact, codec = task.artifact, CODECS.get(task.format)
    linear_specs = task.linear_specs if codec is not None else {}
    dtype = DTYPES[task.options.dtype] if task.options.dtype else None
    floats = _Floats(artifact, frozenset(linear_specs), dtype, _usual_dtype(artifact, task.arch))
    specs = floats.specs()
    made = layout.make(specs, task.arch, linear_specs, codec)
    task.progress.begin(f"writing {task.format}", made.nbytes)
    contents = Contents(codec, linear_specs, floats.chunks, artifact.qlinear)
    write_weights(folder, made, contents, task.progress.advance)
    text = with_attention_factor(_config_text(artifact, task.options.dtype))
    sides: Mapping[str, JsonObject] = {}
    if codec is not None:
        plain = tuple(name for name in linears(artifact.config, task.arch) if name not in linear_specs)
        quant_config = codec.quant_config(linear_specs, plain, {"quantizer": [f"r1quant:{provenance.VERSION}"]})
        text, sides = with_key(text, "quantization_config", quant_config), codec.side_files(quant_config)
    write_side_files(folder, text, artifact.side_files, sides)
    return TaskOutput(floats.rounded)


@dataclass
class _Floats:
    """The tensors of an artifact that the folder holds as floats.

    linears  those that it holds as integers
    dtype    the dtype of all floats; None keeps what is stored, and gives what is dequantized the usual one, or
             float32 if it is on another grid than the uniform one
    rounded  tensors that did not survive their dtype, once they are written
    """

    artifact: Artifact
    linears: frozenset[str]
    dtype: str | None
    usual: str
    rounded: dict[str, str] = field(default_factory=dict)

    def specs(self) -> list[TensorSpec]:
        return [self._spec(name) for name in self.artifact.tensors]

    def _spec(self, name: str) -> TensorSpec:
        spec = self.artifact.tensors[name]
        if spec.dtype not in FLOAT_DTYPES or name.removesuffix(".weight") in self.linears:
            return spec
        linear = quantized(self.artifact, name)
        uniform = linear is not None and self.artifact.linear_specs[linear].kind == UNIFORM
        return replace(spec, dtype=self.dtype or (self.usual if uniform else spec.dtype))

    def chunks(self, name: str) -> Iterator[npt.NDArray[np.uint8]]:
        """The bytes as they are written."""
        wanted = self._spec(name).dtype
        if quantized(self.artifact, name) is None and self.artifact.tensors[name].dtype == wanted:
            yield from self.artifact.chunks(name)
            return
        for piece in rows(self.artifact, name):
            raw = round_to(piece, wanted)
            if not np.array_equal(widen(raw, wanted), piece.reshape(-1)):
                self.rounded[name] = f"rounded to {wanted}"
            yield raw


def _usual_dtype(artifact: Artifact, arch: Architecture) -> str:
    """The dtype of the embedding if it is stored as floats, else BF16."""
    name = arch.tensors.embedding
    dtype = artifact.tensors[name].dtype
    return dtype if quantized(artifact, name) is None and dtype in FLOAT_DTYPES else "BF16"


def _config_text(artifact: Artifact, dtype: str | None) -> str:
    """config.json of the float model, as it was written if that can be kept."""
    config: Config = artifact.config
    if dtype is not None:
        config = {**config, "dtype" if "dtype" in config else "torch_dtype": dtype}
    path = artifact.folder / "config.json"
    if path.is_file() and artifact.format != "gguf":
        text = path.read_text("utf-8")
        if json.loads(text) == config:
            return text
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
