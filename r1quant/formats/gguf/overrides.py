"""A type for each tensor, as llama.cpp's quantizer takes it: patterns of names, of which the first that matches counts.

Names are those of GGUF, types keys of BLOCK_TYPES. It does not know why a tensor gets its type.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

EMBEDDING, HEAD = "token_embd.weight", "output.weight"
LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.weight")


@dataclass(frozen=True)
class Override:
    """pattern: a regular expression, found in the names of the tensors that it is for; type: theirs."""

    pattern: str
    type: str


def overrides(types: Mapping[str, str]) -> tuple[Override, ...]:
    """One for each module and type, by module and then from its first layer on; embedding and head are left out, which
    llama.cpp has options of their own for."""
    layers: dict[tuple[str, str], list[str]] = {}
    for name, type in types.items():
        if found := LAYER.fullmatch(name):
            layers.setdefault((found[2], type), []).append(found[1])
    modules = list(dict.fromkeys(module for module, _ in layers))
    ordered = sorted(layers.items(), key=lambda item: (modules.index(item[0][0]), int(item[1][0])))
    return tuple(
        Override(rf"blk\.({'|'.join(sorted(of, key=int))})\.{module}\.weight", type) for (module, type), of in ordered
    )


def arguments(types: Mapping[str, str]) -> tuple[str, ...]:
    """The same as arguments of llama-quantize, each in quotes where a shell needs them. A head that is the embedding
    has the embedding's type in either option."""
    head = types.get(HEAD, types.get(EMBEDDING))
    lines = [f"--token-embedding-type {types[EMBEDDING]}"] if EMBEDDING in types else []
    lines += [f"--output-tensor-type {head}"] if head is not None else []
    return (*lines, *(f"--tensor-type '{one.pattern}={one.type}'" for one in overrides(types)))
