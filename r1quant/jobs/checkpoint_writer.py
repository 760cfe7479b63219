"""Writes a safetensors checkpoint folder: weight files, index, configuration, tokenizer, record.

Each file is written whole or not at all, and one that exists is complete, so this can be interrupted and done again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.arch import rope
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.tensorfile import Content, TensorSpec, write
from r1quant.core.json import JsonObject
from r1quant.core.qlinear import QuantizedLinear
from r1quant.errors import RecordError
from r1quant.formats.codec import Encoder
from r1quant.planning.layout import INDEX, METADATA, Layout
from r1quant.planning.layout import RECORD as RECORD
from r1quant.records.export import Export
from r1quant.records.quantization import Quantization
from r1quant.records.table import read_record
from r1quant.storage import atomic
from r1quant.storage.jsonfile import read_object

Step = Callable[[int], None]


@dataclass
class Contents:
    """The bytes of every output tensor, made when asked for. Holds one encoded linear at a time.

    forms    the linears that are stored as integers, each in the form that the layout was made for
    chunks   the bytes of any other tensor
    qlinear  the integers of a linear
    """

    codec: Encoder | None
    linear_specs: Mapping[str, LinearSpec]
    chunks: Callable[[str], Iterable[npt.NDArray[np.uint8]]]
    qlinear: Callable[[str], QuantizedLinear]
    _held: tuple[str, Mapping[str, npt.NDArray[Any]]] = field(default=("", {}), repr=False)

    def of(self, spec: TensorSpec) -> Content:
        linear, _, suffix = spec.name.rpartition(".")
        if self.codec is not None and linear in self.linear_specs and suffix in self.codec.suffixes:
            return lambda: (self._encoded(linear)[suffix],)
        return lambda: self.chunks(spec.name)

    def _encoded(self, linear: str) -> Mapping[str, npt.NDArray[Any]]:
        assert self.codec is not None
        if self._held[0] != linear:
            self._held = (linear, self.codec.encode(self.qlinear(linear), self.linear_specs[linear]))
        return self._held[1]


def write_weights(out: Path, layout: Layout, contents: Contents, step: Step = lambda count: None) -> None:
    """The weight files and their index. step is called with the bytes of each tensor as it is begun."""

    def counted(spec: TensorSpec) -> Content:
        content = contents.of(spec)

        def produce() -> Iterable[npt.NDArray[Any]]:
            step(spec.nbytes)
            return content()

        return produce

    for index, shard in enumerate(layout.shards):
        path = out / layout.name(index)
        if not path.exists():
            write(path, shard, METADATA, [counted(spec) for spec in shard])
    if layout.index is not None:
        atomic.write_bytes(out / INDEX, layout.index)


def write_side_files(out: Path, config_text: str, side_files: Mapping[str, bytes], files: JsonObject) -> None:
    """config.json and the carried files as they are, and further JSON files."""
    for name, content in side_files.items():
        atomic.write_bytes(out / name, content)
    atomic.write_bytes(out / "config.json", config_text.encode())
    for name, value in files.items():
        atomic.write_bytes(out / name, (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode())


def own_record(folder: Path) -> Quantization | Export | None:
    """The record in a checkpoint's folder; None if there is none. What is damaged in it counts as missing."""
    content = read_object(folder / RECORD)
    try:
        record = read_record(content)
    except RecordError:
        record = read_record(content, lenient=True)
    return record if isinstance(record, Quantization | Export) else None


def record_bytes(record: JsonObject) -> bytes:
    return (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode()


def with_attention_factor(text: str) -> str:
    """config.json as it was, with YaRN's attention factor stated: what is not stated, runtimes read differently."""
    config = json.loads(text)
    for key, value in rope.explicit(config).items():
        if value != config[key]:
            stated = f'"attention_factor": {value["attention_factor"]!r}'
            if "attention_factor" in config[key]:
                return re.sub(r'"attention_factor"\s*:\s*null', stated, text, count=1)
            return re.sub(rf'("{key}"\s*:\s*\{{)(\s*)', rf"\g<1>\g<2>{stated},\g<2>", text, count=1)
    return text


def with_key(text: str, key: str, value: JsonObject) -> str:
    """A JSON object's text as it was, byte for byte, with one more key at its end."""
    body, brace, end = text.rpartition("}")
    body = body.rstrip()
    comma = "" if body.endswith("{") else ","
    block = json.dumps(value, indent=2).replace("\n", "\n  ")
    return f'{body}{comma}\n  "{key}": {block}\n{brace}{end}'
