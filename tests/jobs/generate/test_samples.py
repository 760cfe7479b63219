"""The store of samples: crashes, torn lines, second writers and full disks cost no sample and repeat none."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r1quant.backends import Completion, Prompt, Sampling
from r1quant.backends.mock import Mock
from r1quant.errors import CheckpointError, OutOfSpaceError, ResumeError
from r1quant.jobs.generate.samples import Sample, Samples, collect
from r1quant.progress import Silent
from r1quant.storage.cache import cache_folder

IDENTITY = {"model": "a" * 64, "backend": "mock", "protocol": "r1", "sampling": "0.6/0.95", "problems": "b" * 64}
ANSWERS = {f"p{i}": str(i) for i in range(30)}
PROMPTS = [Prompt(key, (), ()) for key in ANSWERS]
SAMPLING = Sampling(max_tokens=1000)
ONE = Sample("p0", "zwei\u2028Zeilen\nund \ud800 etwas", 3, True)

CHILD = """
import os, signal, sys
from pathlib import Path
from r1quant.backends.mock import Mock
from r1quant.jobs.generate import samples
from r1quant.progress import Silent
from tests.jobs.generate.test_samples import ANSWERS, IDENTITY, PROMPTS, SAMPLING

folder, point, nth = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
calls, write, sync = 0, os.write, os.fsync

def killed(descriptor, *rest):
    global calls
    calls += 1
    if calls == nth:
        if point == "torn":
            write(descriptor, rest[0][:-7])
        os.kill(os.getpid(), signal.SIGKILL)
    return (write if rest else sync)(descriptor, *rest)

setattr(os, {"torn": "write", "before": "write", "written": "fsync"}[point], killed)
with samples.Samples.open(folder, IDENTITY) as store:
    samples.collect(Mock("mock:0.5", ANSWERS), PROMPTS, SAMPLING, frozenset(), store, str, Silent())
"""


def collected(folder: Path, runtime: Any = None, prompts: list[Prompt] = PROMPTS) -> list[Sample]:
    with Samples.open(folder, IDENTITY) as store:
        return collect(runtime or Mock("mock:0.5", ANSWERS), prompts, SAMPLING, frozenset(), store, str, Silent())


def lines(folder: Path) -> list[Any]:
    (path,) = folder.iterdir()
    return [json.loads(line) for line in path.read_bytes().splitlines()]


class Watched(Mock):
    """Remembers what it was asked; the order of its answers is not that of the prompts."""

    def __init__(self) -> None:
        super().__init__("mock:0.5", ANSWERS)
        self.asked: list[str] = []

    def complete(self, prompts: Iterable[Prompt], sampling: Sampling, stop: frozenset[int]) -> Iterator[Completion]:
        prompts = list(prompts)
        self.asked += [prompt.key for prompt in prompts]
        return super().complete(reversed(prompts), sampling, stop)


@pytest.mark.parametrize(("point", "nth"), [("torn", 1), ("torn", 2), ("before", 1), ("torn", 17), ("written", 17)])
def test_a_killed_run_loses_and_repeats_nothing(point: str, nth: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", CHILD, str(tmp_path / "killed"), point, str(nth)]
    done = subprocess.run(command, capture_output=True, check=False, cwd=Path(__file__).parents[3])
    assert done.returncode == -9, done.stderr
    runtime = Watched()
    found = collected(tmp_path / "killed", runtime)
    stored = max(0, nth - 2)  # before the first sample, the file is begun; where it is synced, so is its folder
    assert runtime.asked == [prompt.key for prompt in PROMPTS[stored:]]
    assert found == collected(tmp_path / "straight")
    keys = [line["key"] for line in lines(tmp_path / "killed")[1:]]
    assert sorted(keys) == sorted(ANSWERS)


def test_what_is_there_is_not_asked_for_again(tmp_path: Path) -> None:
    first = collected(tmp_path, prompts=PROMPTS[5:9])
    runtime = Watched()
    found = collected(tmp_path, runtime)
    assert runtime.asked == [p.key for p in PROMPTS if p not in PROMPTS[5:9]]
    assert [sample.key for sample in found] == list(ANSWERS) and found[5:9] == first
    again = Watched()
    assert collected(tmp_path, again) == found and again.asked == []


@pytest.mark.parametrize("kept", range(1, 80, 6))
def test_a_torn_line_is_cut_off(kept: int, tmp_path: Path) -> None:
    with Samples.open(tmp_path, IDENTITY) as store:
        store.add(ONE)
        whole = store.path.read_bytes()
        store.add(replace(ONE, key="p1", text="x" * 100))
        both = store.path.read_bytes()
    store.path.write_bytes(both[: len(whole) + kept])
    with Samples.open(tmp_path, IDENTITY) as store:
        assert dict(store.have) == {"p0": ONE}
        assert store.path.read_bytes() == whole
        store.add(replace(ONE, key="p1", text="x" * 100))
    assert store.path.read_bytes() == both


def test_a_line_that_the_disk_never_got_is_cut_off(tmp_path: Path) -> None:
    with Samples.open(tmp_path, IDENTITY) as store:
        store.add(ONE)
    with store.path.open("ab") as file:
        file.write(b"\0" * 50 + b"\n")
    with Samples.open(tmp_path, IDENTITY) as store:
        assert dict(store.have) == {"p0": ONE}


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with Samples.open(tmp_path, IDENTITY) as store:
        store.add(ONE)
        with pytest.raises(ResumeError, match="another process is writing"), Samples.open(tmp_path, IDENTITY):
            pass
        with Samples.open(tmp_path, {**IDENTITY, "model": "c"}) as other:
            assert not other.have
    with Samples.open(tmp_path, dict(reversed(IDENTITY.items()))) as store:
        assert dict(store.have) == {"p0": ONE}


def test_a_look_needs_no_lock_and_leaves_nothing(tmp_path: Path) -> None:
    assert Samples.peek(tmp_path / "absent", IDENTITY) == {} and not (tmp_path / "absent").exists()
    with Samples.open(tmp_path, IDENTITY) as store:
        assert Samples.peek(tmp_path, IDENTITY) == {}
        store.add(ONE)
        store.add(replace(ONE, key="p1"))
        assert Samples.peek(tmp_path, dict(reversed(IDENTITY.items()))) == store.have
        whole = store.path.read_bytes()
        for cut in (7, 1, len(whole) - 10):
            store.path.write_bytes(whole[:-cut])
            assert set(Samples.peek(tmp_path, IDENTITY)) == ({"p0"} if cut < 10 else set())
            assert store.path.read_bytes() == whole[:-cut]
    store.path.write_bytes(whole.replace(b'"mock"', b'"real"'))
    with pytest.raises(ResumeError, match="something else"):
        Samples.peek(tmp_path, IDENTITY)


def test_a_key_has_one_sample(tmp_path: Path) -> None:
    with Samples.open(tmp_path, IDENTITY) as store:
        store.add(ONE)
        with pytest.raises(ValueError, match="p0"):
            store.add(ONE)
    assert len(lines(tmp_path)) == 2
    with pytest.raises(ValueError, match="same key"):
        collected(tmp_path, prompts=[PROMPTS[1], PROMPTS[1]])


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text.replace(b'"mock"', b'"real"'), "something else"),
        (lambda text: text.replace(b'"r1quant_samples": 1', b'"r1quant_samples": 2'), "something else"),
        (lambda text: text.replace(b'"key": "p3"', b'"key": "p4"'), "a key twice"),
        (lambda text: text.replace(b'"key": "p3"', b'"KEY": "p3"'), "damaged in line 5"),
        (lambda text: text.replace(b'"key": "p3"', b'"key: "p3"'), "damaged in line 5"),
    ],
)
def test_a_file_that_was_changed_is_refused(damage: Any, reason: str, tmp_path: Path) -> None:
    collected(tmp_path)
    (path,) = tmp_path.iterdir()
    changed = damage(path.read_bytes())
    path.write_bytes(changed)
    with pytest.raises(ResumeError, match=reason) as caught:
        collected(tmp_path)
    assert str(caught.value).count("\n") == 1 and path.read_bytes() == changed


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, left = os.write, 1000

    def limited(descriptor: int, content: bytes) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        done = write(descriptor, content[:left])
        left -= done
        return done

    monkeypatch.setattr(os, "write", limited)
    with pytest.raises(OutOfSpaceError):
        collected(tmp_path)
    (path,) = tmp_path.iterdir()
    assert path.stat().st_size < 1000 and path.read_bytes().endswith(b"}\n")
    monkeypatch.undo()
    before = len(lines(tmp_path))
    runtime = Watched()
    collected(tmp_path, runtime)
    assert len(runtime.asked) == 31 - before


def test_ids_are_decoded_without_the_token_that_ended_them(tmp_path: Path) -> None:
    class Ids(Mock):
        def complete(self, prompts: Iterable[Prompt], *_: Any) -> Iterator[Completion]:
            for prompt in prompts:
                yield Completion(prompt.key, (7, 8, 1), "", 3, True)

    with Samples.open(tmp_path, IDENTITY) as store:
        found = collect(Ids("mock", {}), PROMPTS[:1], SAMPLING, frozenset({1}), store, repr, Silent())
    assert found == [Sample("p0", "[7, 8]", 3, True)]


def test_a_runtime_that_forgets_a_prompt_is_an_error(tmp_path: Path) -> None:
    class Lazy(Mock):
        def complete(self, prompts: Iterable[Prompt], *rest: Any) -> Iterator[Completion]:
            return super().complete(list(prompts)[:-1], *rest)

    with pytest.raises(CheckpointError, match="no answer to 1 of 30"):
        collected(tmp_path, Lazy("mock", ANSWERS))
    assert len(lines(tmp_path)) == 30


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("R1QUANT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "r1quant"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/r1quant")
    monkeypatch.setenv("R1QUANT_CACHE", "/own")
    assert cache_folder() == Path("/own")
