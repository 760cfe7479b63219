"""A GGUF file as a checkpoint: Hugging Face's names, shapes and side files over ggml's blocks.

Tensors are dequantized a block of rows at a time, the row order that llama.cpp gives q and k of Llama models is
undone, and the numbers are rounded to one dtype for the whole file. So a quantized GGUF file is read as the float
model it stands for, rounded to BF16; that rounding is the only loss. (formats/gguf/read.py gives the same file without
it.) It does not know how GGUF is written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.arch.tables import Architecture, size
from r1quant.checkpoint.gguf.config import (
    ROPE_FREQS,
    SAFETENSORS,
    architecture_of_gguf,
    dtype_of,
    generation_config,
    model_config,
)
from r1quant.checkpoint.gguf.header import PART_NAME, GgufHeader, StoredTensor, read_gguf_parts, shown
from r1quant.checkpoint.gguf.tokenizer import tokenizer_files
from r1quant.checkpoint.safetensors import CHUNK, ITEM_SIZE, Checkpoint, TensorInfo, fill, finite, not_finite
from r1quant.core.floats import round_to
from r1quant.core.json import Config
from r1quant.errors import CheckpointError

F32 = 0
FLOAT_KINDS = {0: "F32", 1: "F16", 30: "BF16"}
WORDS = {"F32": np.uint32, "F16": np.uint16, "BF16": np.uint16}


@dataclass(frozen=True)
class GgufCheckpoint(Checkpoint):
    """A model in one GGUF file, or in several parts.

    `tensors` says what is presented: float dtype and Hugging Face shape; only `file` and `offset` are those of the
    stored blocks. By Hugging Face name, `stored` has the blocks, `heads` the number of heads of each tensor whose rows
    are permuted in the file, and `offsets` what the file has added to a tensor: the norms of some families multiply by
    their weight and one, which is stored as one number.
    """

    stored: Mapping[str, StoredTensor] = field(repr=False)
    heads: Mapping[str, int] = field(repr=False)
    offsets: Mapping[str, int] = field(repr=False)

    @property
    def missing_bytes(self) -> int:
        ends: dict[Path, int] = {}
        for tensor in self.stored.values():
            ends[tensor.file] = max(tensor.end, ends.get(tensor.file, 0))
        return sum(max(0, end - file.stat().st_size) for file, end in ends.items())

    @property
    def name(self) -> str:
        last = super().name
        part = PART_NAME.fullmatch(last)
        return part["stem"] if part else last.removesuffix(".gguf")

    def read_bytes(self, info: TensorInfo) -> npt.NDArray[np.uint8]:
        """The presented tensor's bytes as uint8 [nbytes]."""
        buffer, done = np.empty(info.nbytes, np.uint8), 0
        for chunk in self.chunks(info):
            buffer[done : done + chunk.size] = chunk
            done += chunk.size
        return buffer

    def chunks(self, info: TensorInfo) -> Iterator[npt.NDArray[np.uint8]]:
        """The presented tensor's bytes piece by piece: some rows each, whole heads if rows are permuted."""
        stored, heads = self.stored[info.name], self.heads.get(info.name)
        rows = stored.nbytes // stored.row_bytes
        offset = self.offsets.get(info.name, 0)
        unit = rows // heads if heads and rows > 1 else 1
        step = max(1, CHUNK * rows // (4 * int(np.prod(info.shape))) // unit) * unit
        with info.file.open("rb", buffering=0) as file:
            file.seek(stored.offset)
            for start in range(0, rows, step):
                count = min(step, rows - start)
                raw = np.empty((count, stored.row_bytes), np.uint8)
                fill(file, raw.reshape(-1), info.file)
                same = FLOAT_KINDS.get(stored.kind) == info.dtype and not offset
                values = raw.reshape(-1).view(WORDS[info.dtype]) if same else dequantize(raw, stored.kind)
                if offset:
                    values = values - np.float32(offset)
                if heads:
                    head_dim = info.shape[0] // heads
                    columns = values.size // (heads * head_dim) if rows == 1 else values.size // count
                    values = neox_order(values.reshape(-1, columns), head_dim)
                yield values.reshape(-1).view(np.uint8) if same else round_to(values, info.dtype)

    def survey(self, step: Callable[[int], None] = lambda read: None) -> dict[str, str]:
        """Reads each file once for its sha256 and once for its numbers. As Checkpoint.survey, on what is presented."""
        digests = {}
        for path in self.files:
            digest = hashlib.sha256()
            with path.open("rb") as file:
                for info in sorted((i for i in self.tensors.values() if i.file == path), key=lambda i: i.offset):
                    while (left := info.offset - file.tell()) > 0 and (raw := file.read(min(CHUNK, left))):
                        digest.update(raw)
                    for chunk in self.chunks(info):
                        if not finite(chunk, info.dtype):
                            raise not_finite(info.name)
                        step(chunk.size)
                while raw := file.read(CHUNK):
                    digest.update(raw)
            digests[path.name] = digest.hexdigest()
        return digests


def open_gguf(path: Path, source: str | None = None, partial: bool = False) -> GgufCheckpoint:
    """A GGUF file of a supported architecture.

    partial  whether tensor data may be missing: then `missing_bytes` says how much, and no weight must be read

    Raises CheckpointError if the file is damaged or something is unknown.
    """
    header = read_gguf_parts(path, partial)
    if header.metadata.get("general.type", "model") != "model":
        raise header.unusable(f"it holds {shown(header.metadata['general.type'])}, not a model")
    arch = architecture_of_gguf(header)
    config = model_config(header, arch, _rope_freqs(header))
    stored = _assign(header, arch, config)
    _check_kinds(header)
    dtype = dtype_of(header)
    heads = heads_of(arch, config, stored) if arch.gguf.interleaved_rope else {}
    return GgufCheckpoint(
        source=source or str(path),
        folder=path.parent,
        config=config,
        config_text=_json(config).decode(),
        tensors={name: presented(name, tensor, dtype) for name, tensor in stored.items()},
        side_files={"generation_config.json": _json(generation_config(header)), **tokenizer_files(header)},
        stored=stored,
        heads=heads,
        offsets={name: offset for name in stored if (offset := arch.offset_of(name))},
    )


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def gguf_names(arch: Architecture, layers: int) -> dict[str, str]:
    """GGUF's name of every tensor that the family can have, by Hugging Face's."""
    tensors = arch.tensors
    names = {
        tensors.embedding: "token_embd.weight",
        tensors.final_norm: "output_norm.weight",
        tensors.head: "output.weight",
    }
    for index in range(layers):
        for module, short in arch.gguf.modules.items():
            for part in ("weight", "bias"):
                names[f"{arch.layer_prefix(index)}{module}.{part}"] = f"blk.{index}.{short}.{part}"
    return names


def _assign(header: GgufHeader, arch: Architecture, config: Config) -> dict[str, StoredTensor]:
    """The stored tensor behind every Hugging Face name, in the order of the file; none missing, none left over."""
    names = gguf_names(arch, config["num_hidden_layers"])
    tied, found = config["tie_word_embeddings"], {}
    for name, shape in arch.shapes(config).items():
        tensor = header.tensors.get(names[name])
        if tensor is None:
            optional = name == arch.tensors.head and tied
            if name.endswith(".bias"):
                attention = arch.layer.stage("attention_out").module
                optional = not config.get("attention_bias" if f".{attention}." in name else "mlp_bias")
            if not optional:
                raise header.unusable(f"the tensor {names[name]} is missing")
        elif tensor.shape != shape:
            raise header.unusable(
                f"the tensor {tensor.name} has the shape {list(tensor.shape)}, but the metadata imply {list(shape)}"
            )
        else:
            found[name] = tensor
    extra = set(header.tensors) - {tensor.name for tensor in found.values()} - {ROPE_FREQS}
    if extra:
        raise CheckpointError(
            f"{header.path.name}: the tensor {shown(min(extra))} has no place in {arch.model_class}", SAFETENSORS
        )
    return dict(sorted(found.items(), key=lambda item: item[1].offset))


def heads_of(arch: Architecture, config: Config, names: Iterable[str]) -> dict[str, int]:
    """The number of heads of every q and k tensor."""
    heads = size(config, "num_attention_heads")
    of_rows = {"query": heads, "key": size(config, "num_key_value_heads", heads)}
    linears = [pair for stage in arch.layer.stages for pair in zip(stage.linears, stage.rows, strict=True)]
    counts = {linear: of_rows[rows] for linear, rows in linears if rows in of_rows}
    return {name: count for name in names for linear, count in counts.items() if f".{linear}." in name}


def presented(name: str, tensor: StoredTensor, dtype: str) -> TensorInfo:
    """A stored tensor as one of that dtype, which `read` and `chunks` then give."""
    nbytes = int(np.prod(tensor.shape)) * ITEM_SIZE[dtype]
    return TensorInfo(name, dtype, tensor.shape, tensor.file, tensor.offset, nbytes)


def _rope_freqs(header: GgufHeader) -> npt.NDArray[np.float32] | None:
    tensor = header.tensors.get(ROPE_FREQS)
    if tensor is None:
        return None
    if tensor.kind != F32 or len(tensor.shape) != 1 or tensor.nbytes > 1 << 16:
        raise header.unusable(f"{ROPE_FREQS} is not a short list of 32-bit floats")
    if not tensor.whole:
        raise header.unusable(f"the file ends before {ROPE_FREQS}, which decides the configuration")
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        return np.frombuffer(file.read(tensor.nbytes), "<f4").astype(np.float32)


def _check_kinds(header: GgufHeader) -> None:
    """That the gguf package can dequantize every type in the file, tried on one block of zeros each."""
    from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

    for kind in {tensor.kind: tensor for tensor in header.tensors.values()}:
        block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)][1]
        try:
            dequantize(np.zeros((1, block_bytes), np.uint8), kind)
        except NotImplementedError:
            name = GGMLQuantizationType(kind).name
            raise CheckpointError(
                f"{header.path.name}: tensors of type {name} cannot be read",
                "update the gguf package, or use a file of another quantization",
            ) from None


def dequantize(raw: npt.NDArray[np.uint8], kind: int) -> npt.NDArray[np.float32]:
    """Rows of ggml blocks [rows, row_bytes] as floats, flat."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize as to_floats

    with np.errstate(all="ignore"):  # NaN and Inf are found, and named, by whoever looks for them
        return np.asarray(to_floats(raw, GGMLQuantizationType(kind)), np.float32).reshape(-1)


def neox_order(rows: npt.NDArray[Any], head_dim: int) -> npt.NDArray[Any]:
    """Undoes llama.cpp's order of the rows of whole heads: there the two that are rotated together are neighbours."""
    pairs = rows.reshape(-1, head_dim // 2, 2, *rows.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(rows.shape)
