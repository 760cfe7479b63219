"""The header of a GGUF file, or of all parts of a split one: metadata and where each tensor lies.

A strict reader with bounds: every count and length is compared with what is left of the file before it is used, so
that a damaged or hostile header costs an error message and neither memory nor time. The gguf package's own reader
does not do that. Here only its tables of block sizes are used. It does not know what the metadata mean.
"""

from __future__ import annotations

import math
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from r1quant.checkpoint.safetensors import HEADER_LIMIT
from r1quant.errors import CheckpointError

AGAIN = "the file is damaged or incomplete; download it again"
VERSIONS = (2, 3)
PART_NAME = re.compile(r"(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})\.gguf")
SCALARS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"), 1: np.dtype("<i1"), 2: np.dtype("<u2"), 3: np.dtype("<i2"), 4: np.dtype("<u4"),
    5: np.dtype("<i4"), 6: np.dtype("<f4"), 7: np.dtype("?"), 10: np.dtype("<u8"), 11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}  # fmt: skip
BOOL, STRING, ARRAY = 7, 8, 9


@dataclass(frozen=True)
class StoredTensor:
    """One tensor as the file has it.

    file    the part that holds it
    shape   row-major, [out, in] for a linear
    kind    the number of its ggml type; a row takes `row_bytes` bytes
    offset  from the start of the file, in bytes
    """

    name: str
    file: Path
    shape: tuple[int, ...]
    kind: int
    offset: int
    nbytes: int
    row_bytes: int

    @property
    def end(self) -> int:
        """Where its data end, from the start of the file."""
        return self.offset + self.nbytes

    @property
    def whole(self) -> bool:
        """Whether all of its data are in the file as it is now."""
        return self.end <= self.file.stat().st_size


@dataclass(frozen=True)
class GgufHeader:
    """Metadata and tensors, the latter by their names in the file."""

    path: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]

    def whole(self, key: str, default: int | None = None, least: int = 0) -> int:
        """An integer of at least `least` and below 2**32. Raises CheckpointError if it is missing or not that."""
        value = self.metadata.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 32:
            raise self.unusable(f"{key} is {shown(value)}, not an integer of at least {least}")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A positive finite number. Raises CheckpointError if it is missing or not that."""
        value = self.metadata.get(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < math.inf:
            raise self.unusable(f"{key} is {shown(value)}, not a positive number")
        return float(value)

    def text(self, key: str, default: str | None = None) -> str:
        """A string. Raises CheckpointError if it is missing or not that."""
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise self.unusable(f"{key} is {shown(value)}, not a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean. Raises CheckpointError if it is something else."""
        value = self.metadata.get(key, default)
        if not isinstance(value, bool):
            raise self.unusable(f"{key} is {shown(value)}, not a boolean")
        return value

    def unusable(self, what: str) -> CheckpointError:
        return CheckpointError(
            f"{self.path.name}: {what}", "use another GGUF file or the model's safetensors checkpoint"
        )


def shown(value: object) -> str:
    """A value for an error message: short, and on one line."""
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_gguf_header(path: Path, partial: bool = False) -> GgufHeader:
    """partial: whether tensor data may be missing, as in a download that is not complete.

    Raises CheckpointError if the file is not GGUF, or the header and the file do not agree.
    """
    try:
        total = path.stat().st_size
        with path.open("rb") as file:
            return _Cursor(path, file, total, partial).header()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}", "check the path") from None


def read_gguf_parts(path: Path, partial: bool = False) -> GgufHeader:
    """The header of a model in one file or in several, whichever of its parts is named.

    The metadata are those of the first part, the tensors those of all. Each part lists its own tensors alone, so every
    part must be there, though with `partial` not all of its data. Raises CheckpointError as read_gguf_header, and if a
    part is missing or the parts do not belong together.
    """
    header = read_gguf_header(path, partial)
    count = header.metadata.get("split.count", 0)
    if count in (0, 1):
        return header
    matched = PART_NAME.fullmatch(path.name)
    if not isinstance(count, int) or matched is None or int(matched["count"]) != count:
        raise CheckpointError(
            f"{path.name} is one of {shown(count)} parts of a model, and its name does not say which",
            "give the parts the names they had: NAME-00001-of-00003.gguf and so on",
        )
    files = [path.with_name(f"{matched['stem']}-{n + 1:05d}-of-{count:05d}.gguf") for n in range(count)]
    absent = next((file.name for file in files if not file.is_file()), None)
    if absent is not None:
        raise CheckpointError(f"the part {absent} of the model is missing", f"put it beside {path.name}")
    parts = [header if file == path else read_gguf_header(file, partial) for file in files]
    tensors: dict[str, StoredTensor] = {}
    for number, part in enumerate(parts):
        numbered = part.metadata.get("split.no"), part.metadata.get("split.count")
        if numbered != (number, count) or not tensors.keys().isdisjoint(part.tensors):
            raise CheckpointError(f"{part.path.name} is not the part that its name says", AGAIN)
        tensors |= part.tensors
    expected = parts[0].metadata.get("split.tensors.count", len(tensors))
    if expected != len(tensors):
        raise CheckpointError(f"{path.name}: the parts hold {len(tensors)} of {shown(expected)} tensors", AGAIN)
    return GgufHeader(files[0], parts[0].metadata, tensors)


class _Cursor:
    """Reads forward through a header and never past its bounds."""

    def __init__(self, path: Path, file: BinaryIO, total: int, partial: bool) -> None:
        self.path, self.file, self.total, self.partial = path, file, total, partial
        self.left = min(total, HEADER_LIMIT)

    def damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"{self.path.name}: {what}", AGAIN)

    def take(self, count: int) -> bytes:
        raw = self.file.read(count) if count <= self.left else b""
        if len(raw) != count:
            raise self.damaged("the header is truncated or larger than it can be")
        self.left -= count
        return raw

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def string(self) -> str:
        try:
            return self.take(self.u64()).decode("utf-8")
        except UnicodeDecodeError:
            raise self.damaged("a string of the header is not UTF-8") from None

    def strings(self, count: int) -> list[str]:
        """As `string`, many times; vocabularies are long."""
        read, left, raws = self.file.read, self.left, []
        for _ in range(count):
            length = int.from_bytes(read(8), "little")
            left -= 8 + length
            if left < 0:
                raise self.damaged("the header is truncated or larger than it can be")
            raws.append(read(length))
        if sum(map(len, raws)) != self.left - left - 8 * count:
            raise self.damaged("the header is truncated")
        self.left = left
        try:
            return [raw.decode("utf-8") for raw in raws]
        except UnicodeDecodeError:
            raise self.damaged("a string of the header is not UTF-8") from None

    def header(self) -> GgufHeader:
        if self.total < 24 or self.take(4) != b"GGUF":
            raise CheckpointError(f"{self.path.name} is not a GGUF file", AGAIN)
        version = self.u32()
        if version not in VERSIONS:
            raise CheckpointError(
                f"{self.path.name}: GGUF version {version} cannot be read",
                "use a little-endian file of version 2 or 3; current converters write them",
            )
        tensor_count, metadata_count = self.u64(), self.u64()
        metadata: dict[str, Any] = {}
        for _ in range(metadata_count):
            key = self.string()
            if key in metadata:
                raise self.damaged(f"the metadata key {shown(key)} appears twice")
            metadata[key] = self.value(self.u32(), key)
        entries = [self.tensor_entry() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment not in (1 << n for n in range(3, 17)):
            raise self.damaged(f"general.alignment is {shown(alignment)}")
        start = -(-self.file.tell() // alignment) * alignment
        tensors: dict[str, StoredTensor] = {}
        for name, dims, kind, offset in entries:
            if name in tensors:
                raise self.damaged(f"the tensor {shown(name)} appears twice")
            if offset % alignment:
                raise self.damaged(f"the tensor {shown(name)} is not aligned")
            tensors[name] = self.placed(name, dims, kind, start + offset)
        return GgufHeader(self.path, metadata, tensors)

    def value(self, kind: int, key: str) -> Any:
        if kind == STRING:
            return self.string()
        if kind in SCALARS:
            return self.scalar(kind)
        if kind != ARRAY:
            raise self.damaged(f"{shown(key)} has the unknown value type {kind}")
        item, count = self.u32(), self.u64()
        if item == STRING and count <= self.left // 8:
            return self.strings(count)
        if item in SCALARS and count <= self.left // SCALARS[item].itemsize:
            if item == BOOL:
                return [byte != 0 for byte in self.take(count)]
            return np.frombuffer(self.take(count * SCALARS[item].itemsize), SCALARS[item]).tolist()
        raise self.damaged(f"{shown(key)} is an array of type {item} and length {count}, which cannot be read")

    def scalar(self, kind: int) -> Any:
        raw = self.take(SCALARS[kind].itemsize)
        if kind == BOOL:
            return raw != b"\0"
        number = np.frombuffer(raw, SCALARS[kind])[0]
        # The shortest decimal that gives this float32 again: 1e-05, as config.json has it.
        return float(str(number)) if SCALARS[kind] == np.float32 else number.item()

    def tensor_entry(self) -> tuple[str, tuple[int, ...], int, int]:
        name, rank = self.string(), self.u32()
        if not 1 <= rank <= 4:
            raise self.damaged(f"the tensor {shown(name)} has {rank} dimensions")
        dims = struct.unpack(f"<{rank}Q", self.take(8 * rank))
        return name, dims, self.u32(), self.u64()

    def placed(self, name: str, dims: tuple[int, ...], kind: int, offset: int) -> StoredTensor:
        """dims come fastest first, as the file has them."""
        from gguf.constants import GGML_QUANT_SIZES, GGMLQuantizationType

        try:
            block, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType(kind)]
        except (ValueError, KeyError):
            raise CheckpointError(
                f"{self.path.name}: the tensor {shown(name)} has the unknown type {kind}",
                "update the gguf package, or use a file of another quantization",
            ) from None
        if not all(0 < d < 1 << 48 for d in dims) or math.prod(dims) >= 1 << 48 or dims[0] % block:
            raise self.damaged(f"the tensor {shown(name)} has the shape {list(dims)}, which cannot be")
        row_bytes = dims[0] // block * block_bytes
        nbytes = row_bytes * math.prod(dims[1:])
        if offset >= 1 << 62:
            raise self.damaged(f"the tensor {shown(name)} lies at {offset}, which cannot be")
        if offset + nbytes > self.total and not self.partial:
            missing = offset + nbytes - self.total
            raise self.damaged(f"the file is truncated: {missing} bytes of {shown(name)} are missing")
        return StoredTensor(name, self.path, dims[::-1], kind, offset, nbytes, row_bytes)
