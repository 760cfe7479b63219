"""A type for each tensor, as llama.cpp's quantizer takes it: patterns of names, of which the first that matches counts.

Names are those of GGUF, types keys of BLOCK_TYPES. It does not know why a tensor gets its type.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from r1quant.core.blocktypes import BLOCK_TYPES
from r1quant.errors import RecipeError

FLOATS = ("F32", "F16", "BF16")
FORM = "name r1quant.json of a quantization under a budget, or a file of lines such as blk.0.attn_v.weight=Q6_K"
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


def read(path: Path, names: Mapping[str, str]) -> dict[str, str]:
    """The type of each tensor that a file names, by its name in GGUF: out of the record of a quantization whose types a
    budget chose, or out of lines PATTERN=TYPE as llama-quantize's --tensor-type-file has them.

    names  GGUF's name of every tensor, by that of the checkpoint

    Raises RecipeError if there is no such file, or it is neither, or names no tensor or a type that is not known.
    """
    try:
        text = path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the types in {path} cannot be read", FORM) from error
    types = _of_record(text, names)
    if types is None:
        types = _of_lines(text.split(), names.values())
    unknown = next((type for type in types.values() if type not in (*BLOCK_TYPES, *FLOATS)), None)
    if unknown is not None:
        raise RecipeError(f"{path} names the type {unknown}", f"choose from {', '.join(BLOCK_TYPES)}")
    if not types:
        raise RecipeError(f"{path} gives no tensor of this model a type", FORM)
    return types


def _of_record(text: str, names: Mapping[str, str]) -> dict[str, str] | None:
    """None if it is no record."""
    try:
        content = json.loads(text)
        types = content["allocation"]["types"] if isinstance(content, dict) else None
    except (ValueError, KeyError, TypeError):
        return None
    if not isinstance(types, dict):
        return None
    stored = {names.get(f"{name}.weight"): str(type) for name, type in types.items()}
    return {name: type for name, type in stored.items() if name is not None}


def _of_lines(words: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """The first pattern that is found in a name counts. Words that are none are left out."""
    pairs = [(pattern, type.upper()) for pattern, sign, type in (word.rpartition("=") for word in words) if sign]
    types: dict[str, str] = {}
    for pattern, type in pairs:
        try:
            found = [name for name in names if name.endswith(".weight") and re.search(pattern, name)]
        except re.error as error:
            raise RecipeError(f"{pattern} is no regular expression: {error}", FORM) from error
        types = {**dict.fromkeys(found, type), **types}
    return types
