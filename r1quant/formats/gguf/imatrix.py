"""The importance matrix of llama.cpp, in its GGUF form: for every weight the sums of x**2 over the inputs x.

It is written as llama.cpp's own tools/imatrix writes it, and read as its quantizer reads it
(common/imatrix-loader.cpp). The older .dat form is not read. It does not know who measured the sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.checkpoint.gguf.header import GgufHeader, StoredTensor, read_gguf_header
from r1quant.errors import CheckpointError
from r1quant.formats.gguf.container import Entry, Metadata, header
from r1quant.storage import atomic

KIND = "imatrix"
SUMS, COUNTS = ".in_sum2", ".counts"
DATASETS, CHUNK_COUNT, CHUNK_SIZE = "imatrix.datasets", "imatrix.chunk_count", "imatrix.chunk_size"
F32 = 0  # of ggml_type
REMEDY = "make it again, or use a file that llama.cpp's llama-imatrix wrote in its GGUF form"


@dataclass(frozen=True, eq=False)
class ImportanceMatrix:
    """sums: float32 [K] for each weight by its GGUF name, over `counts` inputs; datasets: names of the text.

    The inputs are those of chunk_count texts of chunk_size tokens.
    """

    sums: Mapping[str, npt.NDArray[np.float32]]
    counts: Mapping[str, int]
    datasets: tuple[str, ...]
    chunk_count: int
    chunk_size: int

    def means(self) -> dict[str, npt.NDArray[np.float32]]:
        """What the quantizer weighs errors by: the mean of x**2, and 1 if no input was seen."""
        return {
            name: sums / np.float32(self.counts[name]) if self.counts[name] else np.ones_like(sums)
            for name, sums in self.sums.items()
        }


def write(
    path: Path,
    sums: Mapping[str, npt.NDArray[Any]],
    counts: Mapping[str, int],
    datasets: Sequence[str],
    chunk_count: int,
    chunk_size: int,
) -> None:
    """Writes the file, which appears whole or not at all; the same content gives the same bytes.

    Raises ValueError for an empty matrix, no dataset, and sums that are not a vector of finite numbers from 0 up.
    """
    if not sums or not datasets:
        raise ValueError("an importance matrix needs sums, and a dataset they come from")
    vectors = {name: np.ascontiguousarray(values, np.float32) for name, values in sums.items()}
    for name, vector in vectors.items():
        if vector.ndim != 1 or not vector.size or not bool((np.isfinite(vector) & (vector >= 0)).all()):
            raise ValueError(f"the sums of {name} are not a vector of finite numbers from 0 up")
    tensors = {}
    for name in sorted(vectors, key=str.encode):
        tensors[name + SUMS] = vectors[name]
        tensors[name + COUNTS] = np.array([counts[name]], np.float32)
    metadata: Metadata = {
        "general.type": KIND,
        DATASETS: list(datasets),
        CHUNK_COUNT: chunk_count,
        CHUNK_SIZE: chunk_size,
    }
    entries = [Entry(name, values.shape, F32, values.nbytes) for name, values in tensors.items()]
    with atomic.replacing(path) as file:
        file.write(header(metadata, entries))
        for entry, values in zip(entries, tensors.values(), strict=True):
            file.write(values.astype("<f4").tobytes() + bytes(entry.padded - entry.nbytes))


def read(path: Path) -> ImportanceMatrix:
    """Raises CheckpointError if the file is not an importance matrix, is damaged, or is one of experts."""
    contents = read_gguf_header(path)
    if contents.metadata.get("general.type") != KIND:
        raise CheckpointError(f"{path.name} is not an importance matrix", REMEDY)
    sums: dict[str, npt.NDArray[np.float32]] = {}
    counts: dict[str, int] = {}
    for tensor in contents.tensors.values():
        name, values = tensor.name, _values(contents, tensor)
        if name.endswith(SUMS):
            sums[name.removesuffix(SUMS)] = values
        elif name.endswith(COUNTS) and len(values) == 1:
            counts[name.removesuffix(COUNTS)] = round(float(values[0]))
        else:
            raise CheckpointError(f"{path.name}: the tensor {name[:60]!r} is not expected there", REMEDY)
    if not sums or sums.keys() != counts.keys():
        raise CheckpointError(f"{path.name}: sums and counts do not belong together", REMEDY)
    datasets = contents.metadata.get(DATASETS, [])
    return ImportanceMatrix(
        sums,
        counts,
        tuple(text for text in datasets if isinstance(text, str)) if isinstance(datasets, list) else (),
        contents.whole(CHUNK_COUNT, 0),
        contents.whole(CHUNK_SIZE, 0),
    )


def _values(of: GgufHeader, stored: StoredTensor) -> npt.NDArray[np.float32]:
    """The numbers of one tensor, flat."""
    columns = stored.shape[-1]
    if stored.kind != F32 or stored.nbytes != 4 * columns:
        raise CheckpointError(f"{of.path.name}: {stored.name[:60]!r} is not one row of F32", REMEDY)
    values = np.fromfile(of.path, "<f4", columns, offset=stored.offset)
    if not bool((np.isfinite(values) & (values >= 0)).all()):
        raise CheckpointError(f"{of.path.name}: {stored.name[:60]!r} holds NaN, Inf or a negative number", REMEDY)
    return values
