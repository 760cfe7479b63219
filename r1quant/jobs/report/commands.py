"""The commands that make and measure a variant again, out of its records. Options at their defaults are left out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from r1quant.jobs.verify.options import VerifyOptions
from r1quant.recipe import TARGETS, Recipe
from r1quant.reporting import untrusted
from r1quant.reporting.variants import VariantRecords

ALWAYS = ("method", "bits")  # a method that is named keeps presets out
OFF = {
    "symmetric": "asymmetric",
    "scale_search": "min-max",
    "act_order": "no-act-order",
    "awq": "no-awq",
}  # what false is called


def commands(variant: VariantRecords) -> list[str]:
    """One a line, in the order in which they are to be run."""
    found, recipe = [], untrusted.mapping(variant.made, "recipe")
    if recipe and variant.model:
        found.append(
            _line("quantize", _source(variant.made, variant.model), "-o", variant.name, *_flags(recipe, Recipe()))
        )
    for record in variant.verified:
        options = untrusted.mapping(record, "options")
        found.append(_line("verify", variant.name, *_flags(options, VerifyOptions())))
    for record in variant.benched:
        found.append(_line("bench", variant.name, *_bench(record)))
    return found


def _source(made: Mapping[str, Any], model: str) -> str:
    """A Hub id or embedded name as it was given; of a local path, its last part."""
    return untrusted.short(untrusted.text(made, "source") or model)


def _flags(given: Mapping[str, Any], defaults: object) -> list[str]:
    words = []
    budget = any(given.get(name) is not None for name in TARGETS)
    for each in fields(defaults):  # type: ignore[arg-type]  # a dataclass
        value, default = given.get(each.name), getattr(defaults, each.name)
        same = value == default or (isinstance(value, list) and tuple(value) == default)
        wanted = not same or each.name in ALWAYS
        if each.name in given and wanted and value is not None and not (budget and each.name == "bits"):
            words += _words(each.name, value)
    return words


def _words(name: str, value: Any) -> list[str]:
    flag = f"--{name.replace('_', '-')}"
    if isinstance(value, bool):
        return [flag] if value else [f"--{OFF.get(name, 'un' + name)}"]
    if isinstance(value, list):
        joined = name in ("tasks", "allowed_bits")
        values = [",".join(map(str, value))] if joined else map(str, value)
        return [word for each in values for word in (flag, untrusted.plain(each))]
    if isinstance(value, str):
        return [flag, untrusted.short(value) if value.startswith(("/", ".", "~")) else untrusted.plain(value)]
    return [flag, str(value)] if untrusted.finite(value) is not None else []


def _bench(record: Mapping[str, Any]) -> list[str]:
    words, rows = [], untrusted.rows(record, "rows")
    for key in ("prompt_tokens", "new_tokens", "batch"):
        values = list(dict.fromkeys(untrusted.count(row, key) for row in rows))
        words += [f"--{key.replace('_', '-')}", ",".join(map(str, values))] if None not in values and values else []
    for key in ("repeats", "warm_up"):
        value = untrusted.count(record, f"protocol.{key}")
        words += [f"--{key.replace('_', '-')}", str(value)] if value is not None else []
    return words


def _line(*words: str) -> str:
    return "r1quant " + shlex.join(words)
