"""How configurations name linears: readers match names, and some know a fused layer only by a name of its own."""

from __future__ import annotations

import re
from collections.abc import Iterable

# What vLLM and SGLang make one layer of, and what it is called then.
FUSED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}
NUMBERED = re.compile(r"(.*?\.)(\d+)(\..+)")  # up to the layer's number, the number, what is inside the layer


def with_fused(linears: Iterable[str]) -> list[str]:
    """The names, and after them those of the fused layers all of whose parts are among them."""
    names = list(dict.fromkeys(linears))
    known, results = set(names), list(names)
    for whole, parts in FUSED.items():
        for name in names:
            parent, dot, leaf = name.rpartition(".")
            if leaf == parts[0] and all(f"{parent}{dot}{part}" in known for part in parts):
                results.append(f"{parent}{dot}{whole}")
    return results


def patterns(linears: Iterable[str], end: str = "$") -> list[str]:
    """Regular expressions for re.match: one of them takes exactly these names, and those of their fused layers.

    Layers in which the same linears are named share an expression. The order of the names does not matter.
    end: the expression that a name ends with.
    """
    inside: dict[tuple[str, str, str], list[str]] = {}
    for name in sorted(with_fused(linears), key=_place):
        parts = NUMBERED.fullmatch(name)
        before, number, within = parts.groups() if parts else ("", "", name)
        parent, dot, leaf = within.rpartition(".")
        inside.setdefault((before, number, parent + dot), []).append(leaf)
    layers: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for (before, number, parent), leaves in inside.items():
        layers.setdefault((before, parent, tuple(leaves)), []).append(number)
    return [
        f"^{re.escape(before)}{_any(numbers)}{re.escape(parent)}{_any(leaves)}{end}"
        for (before, parent, leaves), numbers in layers.items()
    ]


def _place(name: str) -> tuple[bool, str, int, str]:
    """The sort key: the number of the layer; names outside the layers come last."""
    parts = NUMBERED.fullmatch(name)
    return (False, parts[1], int(parts[2]), parts[3]) if parts else (True, name, 0, "")


def _any(words: Iterable[str]) -> str:
    escaped = [re.escape(word) for word in words]
    return escaped[0] if len(escaped) == 1 else f"(?:{'|'.join(escaped)})"
