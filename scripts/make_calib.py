"""Makes the bundled text: calib/default.jsonl for calibration, calib/verify.jsonl for measuring, and the manifest.

    python scripts/make_calib.py               traces and hand-written texts anew, generated documents kept
    python scripts/make_calib.py --generate    also has SmolLM2-135M-Instruct write its documents again

No question, text or prompt is in both files, and no problem of the embedded model's held-out set is in either.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any, TypeVar

import click

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "scripts")]

from calib_generate import generate, unusable  # noqa: E402
from calib_prose import dialogues, question_of  # noqa: E402
from train_tiny import held_out  # noqa: E402

from r1quant.tinyr1.problems import problems  # noqa: E402

CALIB = ROOT / "calib"
SEEDS = {"default.jsonl": 7_001, "verify.jsonl": 7_002}
CHAINS = {"default.jsonl": 220, "verify.jsonl": 80}
PROSE = {"default.jsonl": 280, "verify.jsonl": 85}
CUT = "-----8<-----\n"
SOURCES = {
    "chain": "step-by-step arithmetic from r1quant/tinyr1/problems.py",
    "prose": "reasoning in words from scripts/calib_prose",
    "written": "written by hand for this project, calib/seed/*.txt",
    "generated": "written by SmolLM2-135M-Instruct (model: Apache-2.0) to the prompts in calib/seed/prompts.txt",
}
ASKED = "prompts.jsonl"  # written by hand, and only entered in the manifest here
SOURCES_OF_ASKED = {
    kind: f"prompts {what}, written by hand for this project"
    for kind, what in {
        "math": "with word problems",
        "algebra": "with equations",
        "logic": "with puzzles",
        "code": "about programs, in Python and nine other languages",
        "science": "that want something explained",
        "planning": "that want a plan",
        "multilingual": "in ten languages other than English",
        "instruction": "that must be followed to the letter",
    }.items()
}
Row = dict[str, Any]
Item = TypeVar("Item")


def chains(name: str, count: int, exclude: frozenset[str]) -> list[Row]:
    rows: dict[str, Row] = {}
    for p in problems(SEEDS[name], exclude):
        turns = [{"role": "user", "content": p.prompt}, {"role": "assistant", "content": p.solution}]
        rows[p.question] = {"kind": "chain", "messages": turns}
        if len(rows) == count:
            break
    return list(rows.values())


def prose(name: str, count: int, exclude: set[str]) -> list[Row]:
    fresh = (turns for turns in dialogues(SEEDS[name]) if question_of(turns) not in exclude)
    return [{"kind": "prose", "messages": turns} for turns in itertools.islice(fresh, count)]


def share(items: list[Item], name: str, every: int) -> list[Item]:
    """Every n-th item is for measuring, the others are for calibration."""
    return [item for i, item in enumerate(items) if (i % every == every - 1) == (name == "verify.jsonl")]


def written() -> list[Row]:
    files = sorted((CALIB / "seed").glob("text-*.txt"))
    return [{"kind": "written", "text": t.strip()} for f in files for t in f.read_text("utf-8").split(CUT)]


def prompts() -> list[str]:
    return (CALIB / "seed" / "prompts.txt").read_text("utf-8").splitlines()


def kept() -> list[Row]:
    """The generated documents of the files as they are, in an order that does not depend on the files'."""
    lines = [line for name in SEEDS if (CALIB / name).is_file() for line in (CALIB / name).open(encoding="utf-8")]
    rows = [row for row in map(json.loads, lines) if row["kind"] == "generated" and not unusable(row["text"])]
    return sorted(rows, key=lambda row: (row["prompt"], row["text"]))


def write(name: str, rows: list[Row]) -> Row:
    """Writes the rows, mixed, and returns the manifest's entry."""
    random.Random(SEEDS[name]).shuffle(rows)
    raw = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    (CALIB / name).write_bytes(raw)
    return entry(raw, rows, SOURCES)


def entry(raw: bytes, rows: list[Row], sources: dict[str, str]) -> Row:
    """What the manifest says of a file."""
    counts = {kind: sum(row["kind"] == kind for row in rows) for kind in sources}
    return {
        "source": {kind: text for kind, text in sources.items() if counts[kind]},
        "licence": "MIT",
        "sha256": hashlib.sha256(raw).hexdigest(),
        "documents": len(rows),
        "kinds": counts,
        "bytes": len(raw),
    }


@click.command(help=__doc__)
@click.option("--generate", "anew", is_flag=True, help="Generate documents anew; takes about ten minutes on two cores.")
@click.option("--batch", default=64, show_default=True, help="Documents generated at a time.")
@click.option("--minutes", default=12.0, show_default=True, help="Start no further batch after that.")
def main(anew: bool, batch: int, minutes: float) -> None:
    asked = prompts()
    if anew:
        generated = [{"kind": "generated", "prompt": p, "text": t} for p, t in generate(asked, 0, batch, 440, minutes)]
        generated.sort(key=lambda row: (row["prompt"], row["text"]))
    else:
        generated = kept()
    exclude = frozenset(p.question for p in held_out())
    seen: set[str] = set()
    manifest = {}
    for name in SEEDS:
        mine = set(share(asked, name, 4))
        traces = chains(name, CHAINS[name], exclude | seen) + prose(name, PROSE[name], seen)
        seen |= {question_of(row["messages"]) for row in traces}
        rows = traces + share(written(), name, 5) + [row for row in generated if row["prompt"] in mine]
        manifest[name] = write(name, rows)
        click.echo(f"{name}: {manifest[name]['documents']} documents, {manifest[name]['bytes']} bytes", err=True)
    raw = (CALIB / ASKED).read_bytes()
    manifest[ASKED] = entry(raw, [json.loads(line) for line in raw.splitlines()], SOURCES_OF_ASKED)
    kept_files = json.loads((CALIB / "manifest.json").read_text("utf-8"))["files"]
    (CALIB / "manifest.json").write_text(json.dumps({"files": kept_files | manifest}, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
