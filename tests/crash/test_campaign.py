"""Crashes at flushes, renames and deletions of every command that writes: killed, interrupted, the disk full.

`make faults` runs it: thousands of runs if every such moment is taken. `make test` has the named moments of
test_killed.py and test_resumed.py. STEP=1 in the environment takes every one of them, and 5, the default, each fifth.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.conftest import QUICK, Ran
from tests.crash.conftest import BEST, Place, Server, contents
from tests.crash.points import Point

pytestmark = pytest.mark.faults

STEP = int(os.environ.get("STEP", "5"))
TEXT = ("--calib", "../text.txt", *QUICK)
WRITTEN = ("--prompts", "../prompts.jsonl", "--max-tokens", "8", "--device", "cpu", "--dtype", "float32")
COMMANDS = {
    "gptq": ("quantize", "../model", "-o", "out", "--method", "gptq", *TEXT),
    "best": ("quantize", "../model", "-o", "out", *TEXT, *BEST),
    "rotated and scaled": ("quantize", "../model", "-o", "out", "--rotate", "r1", "--awq", *TEXT),
    "to a budget": (
        "quantize", "../model", "-o", "out", "--target-bpw", "5.5", "--format", "compressed-tensors",
        "--preset", "fast", *TEXT,
    ),
    "to the nearest": ("quantize", "../model", "-o", "out", "--method", "rtn", "--group-size", "32"),
    "export to gguf": ("export", "../made", "-o", "out", "--to", "gguf"),
    "export to a file": ("export", "../made", "-o", "out.gguf", "--to", "gguf"),
    "export to onnx": ("export", "../made", "-o", "out", "--to", "onnx"),
    "export to compressed-tensors": ("export", "../made", "-o", "out", "--to", "compressed-tensors"),
    "calib generate": ("calib", "generate", "../model", "-o", "out.jsonl", *WRITTEN),
    "verify": ("verify", "../made", "--baseline", "../model", "--text", "../text.txt", "--seq-len", "32",
               "--windows", "4", "--record", "out.json"),
}  # fmt: skip
MOMENTS = {
    "before a flush": Point("os:fsync"),
    "after a flush": Point("os:fsync", after=True),
    "before a rename": Point("pathlib:Path.replace"),
    "after a rename": Point("pathlib:Path.replace", after=True),
    "before a deletion": Point("pathlib:Path.unlink"),
}
ENDS = {"kill": -9, "interrupt": 130, "full": 3}
CASES = [(moment, "kill") for moment in MOMENTS]
CASES += [("before a flush", "full"), ("before a flush", "interrupt"), ("before a rename", "interrupt")]
Bytes = dict[str, bytes]


@pytest.fixture(scope="module")
def prepared(server: Server, base: Path) -> Path:
    """The folder of the model, with an artifact and prompts beside it."""
    words = ("quantize", "model", "-o", "made", "--method", "rtn", "--group-size", "32")
    assert server.run(base, words, None, "").code == 0
    (base / "prompts.jsonl").write_text('{"prompt": "one"}\n{"prompt": "two"}\n', "utf-8")
    return base


@pytest.fixture(params=COMMANDS)
def command(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return COMMANDS[request.param]


@pytest.fixture
def wanted(server: Server, prepared: Path, command: tuple[str, ...]) -> Bytes:
    """What the command leaves when nothing happens to it."""
    folder = emptied(prepared / "undisturbed")
    return left(folder, server.run(folder, command, None, ""))


@pytest.mark.parametrize(("moment", "action"), CASES)
def test_the_same_command_again_ends_in_the_same_bytes(
    place: Place, command: tuple[str, ...], wanted: Bytes, moment: str, action: str
) -> None:
    point, reached = MOMENTS[moment], 0
    while True:
        at = Point(point.where, 1 + reached * STEP, point.after)
        ran = place.server.run(place.folder, command, at, action)
        if ran.code == 0:
            break
        where = f"{action} {moment} {at.nth}: {ran.err[-2000:]}"
        assert ran.code == ENDS[action] and "Traceback" not in ran.err, where
        assert action == "kill" or not list(place.folder.rglob("*.partial")), where
        assert finished(place.folder).items() <= wanted.items(), where
        assert left(place.folder, place.server.run(place.folder, command, None, "")) == wanted, where
        emptied(place.folder)
        reached += 1
    assert left(place.folder, ran) == wanted
    assert reached or point.where != "os:fsync"


def left(folder: Path, ran: Ran) -> Bytes:
    """All that lies in a folder after a command, which must have succeeded."""
    assert ran.code == 0, ran.err
    found = contents(folder)
    assert found and all(name.startswith("out") and ".partial" not in name for name in found), list(found)
    return {name: steady(name, content) for name, content in found.items()}


def finished(folder: Path) -> Bytes:
    """What others may take for a result: all but what is marked as unfinished."""
    found = contents(folder).items()
    return {n: steady(n, c) for n, c in found if ".partial" not in n and not n.startswith("out.run/")}


def steady(name: str, content: bytes) -> bytes:
    """Without what differs each time: of a record of verify only what was measured."""
    if name != "out.json":
        return content
    record = json.loads(content)
    return json.dumps([record[key] for key in ("kl", "perplexity", "top1")]).encode()


def emptied(folder: Path) -> Path:
    """A folder without anything in it, and without a cache beside it."""
    for path in (folder, folder.with_name(f"{folder.name}.cache")):
        shutil.rmtree(path, ignore_errors=True)
    folder.mkdir()
    return folder
