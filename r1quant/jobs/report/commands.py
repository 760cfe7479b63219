"""The commands that make and measure a variant again, out of its records. Options at their defaults are left out."""

from __future__ import annotations

import shlex

from r1quant.core.options import Option, options_of
from r1quant.jobs.verify.options import VerifyOptions
from r1quant.recipe import TARGETS, Recipe
from r1quant.records.bench import Bench
from r1quant.records.fields import Setting, Settings
from r1quant.reporting import untrusted
from r1quant.reporting.variants import VariantRecords

ALWAYS = ("method", "bits")  # a method that is named keeps presets out


def commands(variant: VariantRecords) -> list[str]:
    """One a line, in the order in which they are to be run."""
    lines, quantization = [], variant.quantization
    if quantization is not None and quantization.recipe and variant.model:
        source = untrusted.short(quantization.source or variant.model)
        lines.append(_line("quantize", source, "-o", variant.name, *_flags(quantization.recipe, Recipe())))
    for record in variant.verifications:
        lines.append(_line("verify", variant.name, *_flags(record.options, VerifyOptions())))
    for bench in variant.benches:
        lines.append(_line("bench", variant.name, *_bench_flags(bench)))
    return lines


def _flags(stated: Settings, defaults: Recipe | VerifyOptions) -> list[str]:
    words: list[str] = []
    kind: type = type(defaults)
    budget = any(stated.get(name) is not None for name in TARGETS)
    for option in options_of(kind):
        value = stated.get(option.name)
        changed = value != option.default or option.name in ALWAYS
        if value is not None and changed and not (budget and option.name == "bits"):
            words += _words(option, value)
    return words


def _words(option: Option, value: Setting) -> list[str]:
    flag = option.flags[0]
    if isinstance(value, bool):
        return [flag if value else option.flags[-1]]
    if isinstance(value, tuple):
        values = [",".join(map(str, value))] if option.commas else map(str, value)
        return [word for one in values for word in (flag, untrusted.plain(one))]
    if isinstance(value, str):
        return [flag, untrusted.short(value) if value.startswith(("/", ".", "~")) else untrusted.plain(value)]
    return [flag, str(value)]


def _bench_flags(record: Bench) -> list[str]:
    words = []
    for key in ("prompt_tokens", "new_tokens", "batch"):
        values = dict.fromkeys(getattr(row, key) for row in record.rows)
        words += [f"--{key.replace('_', '-')}", ",".join(map(str, values))] if values else []
    if record.protocol is not None:
        words += ["--repeats", str(record.protocol.repeats), "--warm-up", str(record.protocol.warm_up)]
    return words


def _line(*words: str) -> str:
    return "r1quant " + shlex.join(words)
