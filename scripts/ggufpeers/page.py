"""The record for people: a table for each model and type. It knows the record and nothing else."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby
from string import ascii_letters
from typing import Any

from peers.record import Entry

REFERENCE = "llama.cpp-imatrix"  # what the others' divergences are divided by
HEADINGS = ["", "setting", "MB", "embedding / head", "importance s", "quantize s"]

_NOTE = (
    "Every row starts from the same float model and the same calibration tokens, on the processor alone. All files "
    f"were scored by `r1quant verify`: both models in float32, KL in nats against the bf16 weights; x is that of "
    f"{REFERENCE} at the same type and on the same text. MB are those of the whole file. Seconds are of whole "
    "processes; an importance matrix is measured once for all types, and named at each. The load is the machine's "
    "average over a minute, before the row began: where it is not small, times say little. Rows marked * share "
    "one sensitivity pass, which the time of the first alone has, and none if it was in the cache before."
)


def markdown(entries: Iterable[Entry]) -> str:
    """A title, a note and a table for each model and type; then the runs that the letters stand for, and failures."""
    entries = list(entries)
    runs = dict(zip(sorted({entry["run"] for entry in entries}), ascii_letters, strict=False))
    parts = ["# GGUF files side by side", _NOTE]
    places = list(dict.fromkeys((entry["model"], entry["layers"]) for entry in entries))
    order = {kind: index for index, kind in enumerate(dict.fromkeys(entry["type"] for entry in entries))}

    def place(entry: Entry) -> tuple[int, int]:
        return places.index((entry["model"], entry["layers"])), order[entry["type"]]

    for _, found in groupby(sorted(entries, key=place), place):
        section = list(found)
        first = section[0]
        cut = f", first {first['layers']} layers" if first["layers"] else ""
        parts += [f"## {first['model']}{cut}: {first['type']}", *_section(section, runs)]
    parts.append("\n".join(["Runs:", "", *(_run(letter, run, entries) for run, letter in runs.items())]))
    return "\n\n".join(parts) + "\n"


def _section(found: Sequence[Entry], runs: dict[str, str]) -> list[str]:
    """Best first, by the first text."""
    done = [entry for entry in found if "error" not in entry]
    texts = list(dict.fromkeys(name for entry in done for name in entry["quality"]))
    notes = [f"Calibrated on {calibration}." for calibration in dict.fromkeys(map(_calibration, found))]
    notes += [f"{name}: {_measured(done, name)}." for name in texts]
    reference = next((entry for entry in done if entry["name"] == REFERENCE), None)
    columns = [f"{name} {what}" for name in texts for what in ("KL", "x", "top-1")]
    done.sort(key=lambda entry: [_kl(entry, name) for name in texts[:1] if name in entry["quality"]])
    table = [[*HEADINGS, *columns, "run", "load"]]
    for entry in done:
        scores = (cell for name in texts for cell in _scores(entry, reference, name))
        table.append([*_costs(entry), *scores, runs[entry["run"]], f"{entry['machine']['load_before']:.1f}"])
    failed = [f"{entry['name']} failed: {entry['error']}" for entry in found if "error" in entry]
    return [" ".join(notes), *([_table(table)] if done else []), *failed]


def _kl(entry: Entry, text: str) -> float:
    mean: float = entry["quality"][text]["kl"]["mean"]
    return mean


def _calibration(entry: Entry) -> str:
    calibration = entry["calibration"]
    return f"{calibration['windows']} x {calibration['seq_len']} tokens of {calibration['source']}"


def _measured(done: Sequence[Entry], name: str) -> str:
    quality: Any = next(entry["quality"][name] for entry in done if name in entry["quality"])
    size = f"{quality['text']['windows']} x {quality['text']['seq_len']} tokens"
    return f"{size}, perplexity of the bf16 weights {quality['perplexity']['baseline']:.3f}"


def _costs(entry: Entry) -> list[str]:
    title = f"{entry['name']}{'*' if entry.get('shared') else ''} {entry['versions'][entry['tool']]}"
    tables = f"{entry['embedding']} / {entry['head']}"
    seconds = [
        f"{entry['steps'][step]['wall_seconds']:.0f}" if step in entry["steps"] else ""
        for step in ("importance", "quantize")
    ]
    return [title, entry["setting"], f"{entry['bytes'] / 1e6:.2f}", tables, *seconds]


def _scores(entry: Entry, reference: Entry | None, text: str) -> list[str]:
    if text not in entry["quality"]:
        return [""] * 3
    kl, ratio = _kl(entry, text), ""
    if reference is not None and text in reference["quality"]:
        ratio = f"{kl / _kl(reference, text):.2f}"
    return [f"{kl:.5f}", ratio, f"{entry['quality'][text]['top1']:.4f}"]


def _run(letter: str, run: str, entries: Sequence[Entry]) -> str:
    machine = next(entry["machine"] for entry in entries if entry["run"] == run)
    threads = machine["threads_variable"]
    limit = f", OMP_NUM_THREADS={threads}" if threads else ""
    return f"* {letter}: {run}, {machine['cores']} cores, {machine['cpu']}{limit}"


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([lines[0], "|---|---|" + "---:|" * (len(rows[0]) - 2), *lines[1:]])
