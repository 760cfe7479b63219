"""The record for people: a table for each model and grid. It knows the record and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from string import ascii_letters
from typing import Any

from peers.record import Entry

UNITS = (("wall_seconds", 1, ".0f"), ("cpu_seconds", 1, ".0f"), ("peak_rss_bytes", 1e6, ".0f"))
HEADINGS = ["", "setting", "wall s", "CPU s", "peak MB", "bits/weight"]


def markdown(entries: Iterable[Entry]) -> str:
    """A title, a note and a table for each model and grid; then the runs that the letters stand for, and failures."""
    entries = list(entries)
    runs = dict(zip(sorted({entry["run"] for entry in entries}), ascii_letters, strict=False))
    parts = ["# Quantizers side by side", _NOTE]
    for (model, layers, bits, group), found in groupby(sorted(entries, key=_place), _place):
        cut = f", first {layers} layers" if layers else ""
        parts.append(f"## {model}{cut}: {bits} bits, groups of {group}")
        parts += _section(list(found), runs)
    parts.append("\n".join(["Runs:", "", *(_run(letter, run, entries) for run, letter in runs.items())]))
    return "\n\n".join(parts) + "\n"


_NOTE = (
    "Each row is a whole process, imports and all, on the processor alone; medians where it was repeated. All were "
    "given the same model and the same calibration tokens. All results were scored by `r1quant verify`: both models "
    "in float32, KL in nats against the bf16 weights. Bits a weight are those of the linears as they are stored: "
    "codes, scales, zero points, group maps. An asterisk marks grids with free zero points. The load is the machine's "
    "average over a minute, before the row began: where it is not small, times say little."
)


def _place(entry: Entry) -> tuple[Any, ...]:
    return entry["model"], entry["layers"] or 0, entry["bits"], entry["group_size"]


def _section(found: Sequence[Entry], runs: dict[str, str]) -> list[str]:
    """Best first, by the text that most were measured on."""
    done = [entry for entry in found if "error" not in entry]
    texts = list(dict.fromkeys(name for entry in done for name in entry["quality"]))
    texts.sort(key=lambda name: -sum(name in entry["quality"] for entry in done))
    notes = [f"Calibrated on {calibration}." for calibration in dict.fromkeys(map(_calibration, found))]
    notes += [f"{name}: {_measured(done, name)}." for name in texts]
    columns = [f"{name} {what}" for name in texts for what in ("KL", "ppl", "top-1")]
    table = [[*HEADINGS, *columns, "run", "load"]]
    done.sort(key=lambda entry: [_quality(entry, name)["kl"]["mean"] for name in texts[:1] if name in entry["quality"]])
    for entry in done:
        table.append([*_costs(entry), *(cell for name in texts for cell in _scores(entry, name)), *_when(entry, runs)])
    failed = [f"{entry['name']} failed: {entry['error']}" for entry in found if "error" in entry]
    return [" ".join(notes), *([_table(table)] if done else []), *failed]


def _quality(entry: Entry, text: str) -> Any:
    return entry["quality"][text]


def _calibration(entry: Entry) -> str:
    calibration = entry["calibration"]
    return f"{calibration['windows']} x {calibration['seq_len']} tokens of {calibration['source']}"


def _measured(done: Sequence[Entry], name: str) -> str:
    """Perplexities of the float model are those of the first row: all have the same."""
    quality = next(_quality(entry, name) for entry in done if name in entry["quality"])
    size = f"{quality['text']['windows']} x {quality['text']['seq_len']} tokens"
    return f"{size}, perplexity of the bf16 weights {quality['perplexity']['baseline']:.3f}"


def _costs(entry: Entry) -> list[str]:
    version = entry["versions"][entry["tool"]]
    title = entry["name"] + ("" if entry["symmetric"] else "*")
    figures = [f"{entry['median'][name] / unit:{form}}" for name, unit, form in UNITS]
    return [f"{title} {version}", entry["setting"], *figures, f"{entry['bits_per_weight']:.2f}"]


def _scores(entry: Entry, text: str) -> list[str]:
    if text not in entry["quality"]:
        return [""] * 3
    quality = _quality(entry, text)
    return [f"{quality['kl']['mean']:.4f}", f"{quality['perplexity']['quantized']:.3f}", f"{quality['top1']:.4f}"]


def _when(entry: Entry, runs: dict[str, str]) -> list[str]:
    times = f" ({len(entry['runs'])}x)" if len(entry["runs"]) > 1 else ""
    return [runs[entry["run"]] + times, f"{entry['machine']['load_before']:.1f}"]


def _run(letter: str, run: str, entries: Sequence[Entry]) -> str:
    machine = next(entry["machine"] for entry in entries if entry["run"] == run)
    threads = machine["threads_variable"]
    limit = f", OMP_NUM_THREADS={threads}" if threads else ""
    return f"* {letter}: {run}, {machine['cores']} cores, {machine['cpu']}{limit}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|---|" + "---:|" * (len(rows[0]) - 2), *lines[1:]])
