"""Which model, recipe and folder: from the command line, the environment, r1quant.toml or a default, in this order."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from r1quant.cli.options import Given
from r1quant.errors import RecipeError
from r1quant.recipe import TARGETS, Recipe, from_values
from r1quant.registry import PRESETS


@dataclass(frozen=True)
class Settings:
    """r1quant.toml: `model`, `out` and `gates` (of verify) at the top, recipe values under [quantize]."""

    model: str | None
    out: str | None
    quantize: Mapping[str, object]
    gates: tuple[str, ...] = ()


def read_settings(folder: Path) -> Settings:
    """The settings of a folder; all None if it has no r1quant.toml."""
    path = folder / "r1quant.toml"
    if not path.is_file():
        return Settings(None, None, {})
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"r1quant.toml cannot be read: {error}", "mend the file or remove it") from None
    unknown = set(raw) - {"model", "out", "gates", "quantize"}
    table = raw.get("quantize", {})
    if unknown or not isinstance(table, dict):
        raise RecipeError(
            f"r1quant.toml: {', '.join(sorted(unknown)) or 'quantize'} is not understood",
            "keys are model, out, gates and the table [quantize]",
        )
    for key in ("model", "out"):
        if not (isinstance(raw.get(key, "a name"), str) and raw.get(key, "a name")):
            raise RecipeError(f"r1quant.toml: {key} is {raw[key]!r}", "give a name or a path, in quotes")
    gates = raw.get("gates", [])
    if not isinstance(gates, list) or not all(isinstance(gate, str) for gate in gates):
        raise RecipeError(f"r1quant.toml: gates is {gates!r}", 'give a list of strings: gates = ["kl.mean<0.05"]')
    return Settings(raw.get("model"), raw.get("out"), table, tuple(gates))


def pick_model(model: str | None) -> str:
    """MODEL, or what stands in for it."""
    return model or os.environ.get("R1QUANT_MODEL") or read_settings(Path.cwd()).model or "tiny-r1"


def pick_out(out: Path | None) -> Path | None:
    """--out, or `out` of r1quant.toml; None if neither says anything."""
    stated = read_settings(Path.cwd()).out
    return out or (Path(stated) if stated else None)


def pick_recipe(preset: str | None, given: Given) -> Recipe:
    """Options over the preset over [quantize] of r1quant.toml. Bits, types and budgets replace each other."""
    replaced = set(PRESETS.get(preset, {})) if preset is not None else set()
    single = given.keys() & {"bits", "type"}
    if single or given.keys() & set(TARGETS):
        replaced |= {"bits", "type", *TARGETS, "context"}
        replaced |= {"allowed_bits", "allowed_types"} if single else set()
    stated = {key: value for key, value in read_settings(Path.cwd()).quantize.items() if key not in replaced}
    return from_values({**stated, **given}, preset)
