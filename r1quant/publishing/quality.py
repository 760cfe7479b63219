"""Tables of a card out of records: quality, speed and memory. Markdown; numbers with their 95 % intervals."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from r1quant.core.formatting import bytes_text

Row = Sequence[str]
NUMERIC = re.compile(r"[-+×–\d]|$")
HEALTH = {
    "closed_think": "closes `</think>`",
    "truncated": "cut off",
    "unparsed": "no answer found",
    "loops": "repeats itself",
    "language_mixing": "mixes languages",
    "json_valid": "valid JSON",
    "tool_call_valid": "valid function calls",
}


def table(rows: Iterable[Row]) -> str:
    """A Markdown table; the first row is the heading. Numbers are told by their look and stand right."""
    head, *body = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows]
    columns = zip(*body, strict=True) if body else [()] * len(head)
    rule = ["--:" if all(NUMERIC.match(cell) for cell in column) else ":--" for column in columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, rule, *body))


def verdict(record: Mapping[str, Any]) -> str:
    """One verification in a sentence or two."""
    said = []
    if isinstance(record.get("kl"), Mapping):
        said.append(f"KL divergence {record['kl']['mean']:.4g} nats{_within(record['kl'].get('mean_ci95'), '.4g')}")
    if "top1" in record:
        said.append(f"the same likeliest token at {_percent(record['top1'])} of positions")
    if "perplexity" in record:
        said.append(f"perplexity × {record['perplexity']['ratio']:.4f}")
    if "aime" in record:
        aime = record["aime"]
        said.append(
            f"accuracy on {aime['problems']} problems of {aime['set']} {_percent(aime['delta'], '+')}"
            f"{_within(aime['delta_ci95'], '+.1f', 100)}"
        )
    gates = record.get("gates") or []
    held = sum(bool(gate["passed"]) for gate in gates)
    judged = f"{held} of {len(gates)} gates hold" if gates else "no gates were set"
    return f"Against {record.get('model', 'its baseline')}: {', '.join(said) or 'tasks only'}; {judged}."


def readable(record: Mapping[str, Any]) -> bool:
    """Whether all that is shown of a record is in it."""
    try:
        for show in (quality, about, gates, verdict) if "backend" in record else (speeds, machine):
            show(record)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError):
        return False
    return True


def quality(record: Mapping[str, Any]) -> list[Row]:
    """The rows of one verification; a heading alone where it measured nothing that is shown."""
    rows: list[Row] = [["measure", "baseline", "quantized", "difference", "95 % interval"]]
    return rows + _text(record) + _accuracy(record) + _health(record) + _tasks(record)


def about(record: Mapping[str, Any]) -> str:
    """On what a verification was made."""
    said = []
    if "text" in record:
        text = record["text"]
        said.append(f"{record['tokens']} tokens of {text['source']} (sha256 {text['sha256'][:12]})")
    if "aime" in record:
        aime = record["aime"]
        said.append(f"{aime['problems']} problems of {aime['set']}, {aime['samples']} answers each")
    if record.get("kl_estimator", "exact") != "exact":
        said.append(f"KL divergence: {record['kl_estimator']}")
    return f"Run by {record['backend']}, the baseline by {record['baseline_backend']}. {'; '.join(said)}".strip()


def gates(record: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = [["gate", "value", "verdict"]]
    for gate in record.get("gates") or []:
        value = "not measured" if gate["value"] is None else f"{gate['value']:.6g}"
        rows.append([f"`{gate['gate']}`", value, "passed" if gate["passed"] else "**failed**"])
    return rows


def speeds(record: Mapping[str, Any]) -> list[Row]:
    """The rows of one bench, a model in each."""
    rows: list[Row] = [
        ["model", "prompt + new tokens × batch", "prefill tokens/s", "decode tokens/s", "first token, s", "peak memory"]
    ]
    for row in record.get("rows") or []:
        load = f"{row['prompt_tokens']} + {row['new_tokens']} × {row['batch']}"
        for side in ("baseline", "quantized"):
            found = row.get(side)
            if found:
                figures = [_median(found.get(key), form) for key, form in SPEEDS.items()]
                memory = found.get("peak_memory_bytes")
                rows.append([f"{side} ({found['backend']})", load, *figures, bytes_text(memory) if memory else "–"])
    return rows


SPEEDS = {"prefill_tokens_per_second": ".1f", "decode_tokens_per_second": ".1f", "ttft_seconds": ".3f"}


def machine(record: Mapping[str, Any]) -> str:
    """Where a bench ran."""
    env = record.get("environment") or {}
    parts = [
        env.get("gpu"),
        env.get("cpu"),
        env.get("machine"),
        f"{env['threads']} threads" if "threads" in env else None,
    ]
    return ", ".join(str(part) for part in parts if part)


def _text(record: Mapping[str, Any]) -> list[Row]:
    if "perplexity" not in record:
        return []
    ppl, kl = record["perplexity"], record.get("kl")
    interval = _between(ppl.get("ratio_ci95"), ".4f")
    rows: list[Row] = [
        ["perplexity", f"{ppl['baseline']:.4f}", f"{ppl['quantized']:.4f}", f"× {ppl['ratio']:.4f}", interval]
    ]
    if kl is None:
        return rows
    rows.append(["KL divergence, mean (nats)", "", "", f"{kl['mean']:.6f}", _between(kl.get("mean_ci95"), ".6f")])
    if kl.get("predicted") is not None:
        rows.append(["KL divergence, predicted before", "", "", f"{kl['predicted']:.6f}", ""])
    rows.append(["KL divergence, median", "", "", f"{kl['median']:.6f}", ""])
    rows.append(["KL divergence, 99th percentile", "", "", f"{kl['p99']:.6f}", ""])
    for name, part in (record.get("by_class") or {}).items():
        rows.append([f"KL divergence, {name} tokens", "", "", f"{part['kl']['mean']:.6f}", ""])
    top1 = _between(record.get("top1_ci95"), ".1f", 100)
    rows.append(["top-1 agreement", "", "", _percent(record["top1"]), f"{top1} %" if top1 else ""])
    return rows


def _accuracy(record: Mapping[str, Any]) -> list[Row]:
    if "aime" not in record:
        return []
    aime = record["aime"]
    a, b = aime["baseline"], aime["quantized"]
    name = f"accuracy on {aime['set']}, mean of {aime['samples']}"
    change = _percent(aime["delta"], "+")
    return [
        [
            name,
            _percent(a["accuracy"]),
            _percent(b["accuracy"]),
            change,
            _between(aime["delta_ci95"], "+.1f", 100) + " %",
        ],
        ["its 95 % interval", _between(a["ci95"], ".1f", 100), _between(b["ci95"], ".1f", 100), "", ""],
    ]


def _health(record: Mapping[str, Any]) -> list[Row]:
    health = record.get("health") or {}
    rows: list[Row] = []
    for part in (health, health.get("formats") or {}):
        for key, name in HEALTH.items():
            if key in (part.get("baseline") or {}):
                a, b = part["baseline"][key], part["quantized"][key]
                rows.append([name, _percent(a), _percent(b), _percent(b - a, "+"), ""])
    if health.get("length_ratio"):
        a, b = (health[side]["length"]["mean"] for side in ("baseline", "quantized"))
        rows.append(["tokens of an answer, mean", f"{a:.0f}", f"{b:.0f}", f"× {health['length_ratio']:.3f}", ""])
    return rows


def _tasks(record: Mapping[str, Any]) -> list[Row]:
    tasks, rows = record.get("tasks") or {}, list[Row]()
    for task, metrics in (tasks.get("delta") or {}).items():
        for metric, part in metrics.items():
            a, b = (tasks[side]["tasks"][task]["metrics"][metric]["value"] for side in ("baseline", "quantized"))
            rows.append(
                [f"{task}, {metric}", f"{a:.4f}", f"{b:.4f}", f"{part['mean']:+.4f}", _between(part["ci95"], "+.4f")]
            )
    return rows


def _median(found: Mapping[str, float] | None, form: str) -> str:
    return "–" if found is None else format(found["median"], form)


def _percent(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.1f} %"


def _between(bounds: Sequence[float] | None, form: str, scale: float = 1) -> str:
    """An interval; empty where there is none, as with a single window of text."""
    return "" if bounds is None else f"{bounds[0] * scale:{form}} … {bounds[1] * scale:{form}}"


def _within(bounds: Sequence[float] | None, form: str, scale: float = 1) -> str:
    found = _between(bounds, form, scale)
    return f" ({found})" if found else ""
