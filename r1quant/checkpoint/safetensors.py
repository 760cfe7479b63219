"""A read-only view of a model on disk: headers first, then one tensor at a time.

A checkpoint is a folder of safetensors files with a config.json, or a GGUF file (gguf/source.py). Every header is
treated as hostile: sizes, offsets, counts and names are bounded before use, and no name leads out of the folder.
Weights are read with plain reads, not through a memory map, so that what was read does not stay in memory.
It does not know architectures.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
import numpy.typing as npt

from r1quant.core.formatting import bytes_text
from r1quant.errors import CheckpointError, NumericError

if TYPE_CHECKING:
    import torch

ITEM_SIZE = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1,
    "F8_E4M3": 1, "F8_E5M2": 1, "U16": 2, "U32": 4, "U64": 8,
}  # fmt: skip
TORCH_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
HEADER_LIMIT = 100_000_000
SIDE_FILE_LIMIT = 200_000_000
NAME_LIMIT = 250
CHUNK = 1 << 24
CARRIED = (
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "merges.txt", "chat_template.*", "LICENSE*", "NOTICE*",
)  # fmt: skip
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies: `offset` counts from the start of its file, in bytes; `dtype` is safetensors' name."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    nbytes: int


def short_name(source: str, folder: Path) -> str:
    """Of a model, for files and reports: the last part of what the user named, or its folder's own name."""
    last = source.rstrip("/").split("/")[-1]
    return folder.resolve().name if last in ("", ".", "..") else last


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk.

    source   what the user named
    folder   where side files are
    config   the parsed config.json; `config_text` is the file itself
    tensors  by name, in the order of the files
    carried  names and contents of the tokenizer and other small files that travel with the model
    """

    source: str
    folder: Path
    config: Mapping[str, Any]
    config_text: str
    tensors: Mapping[str, TensorInfo]
    side_files: Mapping[str, bytes] = field(repr=False)

    @property
    def name(self) -> str:
        """A short name for files and reports."""
        return short_name(self.source, self.folder)

    @property
    def missing_bytes(self) -> int:
        """Of tensor data that the files should have and do not: only of a file that was opened as one partly there."""
        return 0

    @property
    def incomplete(self) -> str:
        """What is to be said of missing data, in one line; nothing if there are none."""
        if not self.missing_bytes:
            return ""
        return f"{self.name} is only partly here: {bytes_text(self.missing_bytes)} of its tensors are missing"

    @property
    def dtype(self) -> str:
        """The dtype of most of the weights' bytes."""
        sizes: dict[str, int] = {}
        for info in self.tensors.values():
            sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
        return max(sizes, key=lambda dtype: sizes[dtype])

    def read(self, name: str) -> torch.Tensor:
        """The tensor in its stored dtype. Raises CheckpointError if the checkpoint has no such tensor."""
        import torch

        info = self.info(name)
        if info.dtype not in TORCH_NAMES:
            raise CheckpointError(f"{name}: dtype {info.dtype} cannot be read", "use a BF16, F16 or F32 checkpoint")
        dtype = getattr(torch, TORCH_NAMES[info.dtype])
        if info.nbytes == 0:
            return torch.empty(info.shape, dtype=dtype)
        return torch.from_numpy(self.read_bytes(info)).view(dtype).reshape(info.shape)

    def info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise CheckpointError(f"{self.source}: tensor {name} is missing", "download the model again")
        return self.tensors[name]

    def read_bytes(self, info: TensorInfo) -> npt.NDArray[np.uint8]:
        """The tensor's bytes as uint8 [nbytes]."""
        buffer = np.empty(info.nbytes, np.uint8)
        with info.file.open("rb", buffering=0) as file:
            file.seek(info.offset)
            fill(file, buffer, info.file)
        return buffer

    def chunks(self, info: TensorInfo) -> Iterator[npt.NDArray[np.uint8]]:
        """The tensor's bytes piece by piece, for copying what is too large to hold."""
        with info.file.open("rb", buffering=0) as file:
            file.seek(info.offset)
            for start in range(0, info.nbytes, CHUNK):
                buffer = np.empty(min(CHUNK, info.nbytes - start), np.uint8)
                fill(file, buffer, info.file)
                yield buffer

    def unrounded(self) -> Checkpoint:
        """Where tensors are computed from stored ones: the same before they are rounded to their dtype."""
        return self

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files, each once."""
        return tuple(dict.fromkeys(info.file for info in self.tensors.values()))

    def survey(self, step: Callable[[int], None] = lambda read: None) -> dict[str, str]:
        """Reads every weight file once: the sha256 of each, by file name.

        step is called with the number of bytes just read. Raises NumericError naming the first tensor that holds
        NaN or Inf.
        """
        digests = {}
        for path in self.files:
            infos = sorted((i for i in self.tensors.values() if i.file == path), key=lambda i: i.offset)
            digest = hashlib.sha256()
            with path.open("rb") as file:
                for info in infos:
                    _hash_until(file, info.offset, digest)
                    for start in range(0, info.nbytes, CHUNK):
                        buffer = np.empty(min(CHUNK, info.nbytes - start), np.uint8)
                        fill(file, buffer, path)
                        digest.update(buffer.data)
                        if not finite(buffer, info.dtype):
                            raise not_finite(info.name)
                        step(buffer.size)
                _hash_until(file, None, digest)
            digests[path.name] = digest.hexdigest()
        return digests


def not_finite(name: str) -> NumericError:
    return NumericError(
        f"tensor {name} holds NaN or Inf", "the checkpoint is damaged or was trained into overflow; download it again"
    )


def finite(raw: npt.NDArray[np.uint8], dtype: str) -> bool:
    """Whether floating-point numbers, given as bytes, are all finite. Other dtypes always are."""
    words = {"BF16": (np.uint16, 0x7F80), "F16": (np.uint16, 0x7C00), "F32": (np.uint32, 0x7F800000)}
    if dtype not in words:
        return True
    kind, exponent = words[dtype]
    return not bool(((raw.view(kind) & kind(exponent)) == exponent).any())


def fill(file: Any, buffer: npt.NDArray[np.uint8], path: Path) -> None:
    """Reads exactly the buffer's length."""
    view, done = memoryview(buffer), 0
    while done < len(view):
        count = file.readinto(view[done:])
        if not count:
            raise CheckpointError(f"{path.name} ends too early", "the file changed or is damaged; download it again")
        done += count


def _hash_until(file: BinaryIO, offset: int | None, digest: Any) -> None:
    while chunk := file.read(CHUNK if offset is None else min(CHUNK, max(0, offset - file.tell()))):
        digest.update(chunk)


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file. Raises CheckpointError if the header and the file do not agree."""
    again = "the file is damaged or incomplete; download it again"
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if total < 8 or length > min(total - 8, HEADER_LIMIT):
                raise CheckpointError(f"{path.name} is truncated: its header is not all there", again)
            header = json.loads(file.read(length))
    except OSError as error:
        raise CheckpointError(f"{path.name} cannot be read: {error.strerror}", "check the path") from None
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path.name} is not a safetensors file", again) from None
    if not isinstance(header, dict):
        raise CheckpointError(f"{path.name} is not a safetensors file", again)
    infos = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        info = _entry(path, name, entry, 8 + length)
        if info.offset + info.nbytes > total:
            missing = info.offset + info.nbytes - total
            raise CheckpointError(f"{path.name} is truncated: {missing} bytes of {name} are missing", again)
        infos[name] = info
    ordered = sorted(infos.values(), key=lambda info: (info.offset, info.nbytes))
    for before, after in pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise CheckpointError(f"{path.name}: {before.name} and {after.name} overlap", again)
    return {info.name: info for info in ordered}


def _entry(path: Path, name: str, entry: Any, base: int) -> TensorInfo:
    def whole(value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 48

    fits = isinstance(entry, dict) and isinstance(entry.get("dtype"), str) and entry["dtype"] in ITEM_SIZE
    fits = fits and len(name) <= NAME_LIMIT and name.isprintable()
    shape, offsets = (entry.get("shape"), entry.get("data_offsets")) if fits else (None, None)
    fits = isinstance(shape, list) and isinstance(offsets, list) and len(offsets) == 2 and len(shape) <= 8
    if fits and all(map(whole, [*shape, *offsets])):  # type: ignore[misc]
        begin, end = offsets  # type: ignore[misc]
        if end - begin == math.prod(shape) * ITEM_SIZE[entry["dtype"]]:  # type: ignore[arg-type]
            return TensorInfo(name, entry["dtype"], tuple(shape), path, base + begin, end - begin)  # type: ignore[arg-type]
    raise CheckpointError(
        f"{path.name}: the header entry of {name[:100]!r} is not valid", "the file is damaged; download it again"
    )


def read_side_file(path: Path) -> bytes:
    """A small file whole. Raises CheckpointError if it is not small or cannot be read."""
    try:
        with path.open("rb") as file:
            content = file.read(SIDE_FILE_LIMIT + 1)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", "download the file again") from None
    if len(content) > SIDE_FILE_LIMIT:
        raise CheckpointError(f"{path} is larger than any such file is", "download the file again")
    return content


def read_json(path: Path) -> Any:
    try:
        return json.loads(read_side_file(path).decode("utf-8"))
    except (ValueError, RecursionError):
        raise CheckpointError(f"{path} is not valid JSON", "download the file again") from None


def open_folder(folder: Path, source: str | None = None) -> Checkpoint:
    """A folder with config.json and safetensors, single or sharded by an index."""
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder} has no config.json", "name a folder that holds a Hugging Face checkpoint")
    config = read_json(folder / "config.json")
    if not isinstance(config, dict):
        raise CheckpointError(f"{folder / 'config.json'} is not a JSON object", "download the file again")
    index = folder / "model.safetensors.index.json"
    tensors = _sharded(folder, index) if index.is_file() else _single(folder)
    if not tensors:
        raise CheckpointError(f"{folder} holds no tensors", "download the model again")
    names = sorted(f.name for f in folder.iterdir() if any(fnmatch(f.name, p) for p in CARRIED) and f.is_file())
    return Checkpoint(
        source=source or str(folder),
        folder=folder,
        config=config,
        config_text=read_side_file(folder / "config.json").decode("utf-8"),
        tensors=tensors,
        side_files={name: read_side_file(folder / name) for name in names},
    )


def _single(folder: Path) -> dict[str, TensorInfo]:
    files = sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return read_header(files[0])
    if files:
        raise CheckpointError(
            f"{folder} has {len(files)} safetensors files and no model.safetensors.index.json",
            "download the index file too",
        )
    if any(path for pattern in PICKLES for path in folder.glob(pattern)):
        raise CheckpointError(
            f"{folder} holds a pickle checkpoint, which can run code when it is opened",
            "convert it to safetensors first: transformers' save_pretrained(..., safe_serialization=True) does",
        )
    raise CheckpointError(f"{folder} has no safetensors files", "name a folder that holds a model's weights")


def _sharded(folder: Path, index: Path) -> dict[str, TensorInfo]:
    raw = read_json(index)
    weight_map = raw.get("weight_map") if isinstance(raw, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(v, str) for v in weight_map.values()):
        raise CheckpointError(f"{index.name} has no weight_map", "download the file again")
    tensors: dict[str, TensorInfo] = {}
    for shard in dict.fromkeys(weight_map.values()):
        if shard != Path(shard).name or shard in ("", ".", "..") or "\\" in shard or not shard.endswith(".safetensors"):
            raise CheckpointError(
                f"{index.name} names {shard!r}, which is not a safetensors file of this folder",
                "do not use this checkpoint unless you trust its source",
            )
        if not (folder / shard).is_file():
            raise CheckpointError(f"shard {shard} is missing from {folder}", "download it again")
        tensors |= read_header(folder / shard)
    for name, shard in weight_map.items():
        if name not in tensors or tensors[name].file.name != shard:
            raise CheckpointError(f"{index.name} says {shard} holds {name}, but it does not", "download both again")
    return tensors
