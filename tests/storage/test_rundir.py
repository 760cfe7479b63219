"""The run directory and the atomic writes under it, by themselves."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import IO

import pytest

from r1quant.errors import ResumeError
from r1quant.storage import atomic, rundir
from r1quant.storage.lock import take_named
from r1quant.storage.rundir import RunDir, folder_for


def test_it_lies_beside_the_output() -> None:
    assert folder_for(Path("/data/my.model-w4")) == Path("/data/my.model-w4.run")


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with RunDir(tmp_path / "x.run") as run:
        run.claim({"a": "1"})
        with pytest.raises(ResumeError, match=rf"another process \({os.getpid()}\) is working"):
            RunDir(tmp_path / "x.run")
    RunDir(tmp_path / "x.run").__exit__()


def test_what_changed_is_named(tmp_path: Path) -> None:
    with RunDir(tmp_path / "x.run") as run:
        run.claim({"a": "1", "b": "2"})
        run.claim({"a": "1", "b": "2"})
        with pytest.raises(ResumeError) as caught:
            run.claim({"a": "1", "b": "3", "c": "4"})
    assert caught.value.message.endswith("different b (2 -> 3), c (None -> 4)")
    assert caught.value.exit_code == 2


def test_what_may_change_is_let_pass_and_noted_if_the_user_says_so(tmp_path: Path) -> None:
    def threads(name: str) -> bool:
        return name == "threads"

    with RunDir(tmp_path / "x.run") as run:
        run.claim({"weights": "a", "threads": "1"}, threads, anyway=True)
        assert run.changes == []
        with pytest.raises(ResumeError) as refused:
            run.claim({"weights": "a", "threads": "2"}, threads)
        assert "threads (1 -> 2)" in refused.value.message and "--resume-anyway" in refused.value.hint
        for fingerprint in ({"weights": "b", "threads": "1"}, {"weights": "b", "threads": "2"}):
            with pytest.raises(ResumeError) as refused:
                run.claim(fingerprint, threads, anyway=True)
            assert "weights (a -> b)" in refused.value.message and "--resume-anyway" not in refused.value.hint
        for now in ("2", "2", "3"):
            run.claim({"weights": "a", "threads": now}, threads, anyway=True)
        assert run.changes == [{"threads": ["1", "2"]}, {"threads": ["2", "3"]}]
        run.claim({"weights": "a", "threads": "3"})


def test_unclaimed_it_goes_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), RunDir(tmp_path / "x.run") as run:
        (run.folder / "weights.json").write_text("{}")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_layers_count_from_the_first(tmp_path: Path) -> None:
    with RunDir(tmp_path / "x.run") as run:
        assert run.done(3) == 0
        run.layer_file(1).touch()
        assert run.done(3) == 0
        run.layer_file(0).touch()
        assert run.done(3) == run.done(2) == 2
        for layer in (1, 2):
            run.layer_input(layer).write_bytes(b"12345")
        assert run.size == 10
        run.forget_layer_inputs(keep=2)
        assert not run.layer_input(1).exists() and run.layer_input(2).exists()


def test_a_lock_on_a_directory_that_was_removed_is_worth_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other process ends, and removes the directory, between our opening of the lock and our locking it."""
    folder = tmp_path / "x.run"
    calls: list[IO[str]] = []

    def late(file: IO[str], waiting: None) -> None:
        calls.append(file)
        if len(calls) == 1:
            shutil.rmtree(folder)
        take_named(file, waiting)

    monkeypatch.setattr(rundir, "take_named", late)
    with RunDir(folder) as run:
        assert len(calls) == 2
        run.claim({"a": "1"})
        assert folder.exists()


def test_who_begins_in_a_directory_being_removed_keeps_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, rmdir, begun = tmp_path / "x.run", Path.rmdir, []

    def late(path: Path) -> None:
        monkeypatch.setattr(Path, "rmdir", rmdir)
        begun.append(RunDir(path))
        rmdir(path)

    with RunDir(folder) as run:
        run.claim({"a": "1"})
        monkeypatch.setattr(Path, "rmdir", late)
        run.remove()
    begun[0].claim({"a": "2"})
    begun[0].__exit__()
    assert sorted(path.name for path in folder.iterdir()) == ["fingerprint.json", "lock"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    atomic.write_bytes(path, b"old")
    with pytest.raises(KeyboardInterrupt), atomic.replacing(path) as file:
        file.write(b"new" * 100_000)
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a"]
    atomic.write_bytes(path, b"new")
    assert path.read_bytes() == b"new" and [p.name for p in tmp_path.iterdir()] == ["a"]


def test_a_folder_takes_only_a_free_name(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    for folder in (source, target):
        folder.mkdir()
        (folder / "file").write_text(folder.name)
    with pytest.raises(OSError, match="not empty"):
        atomic.rename_folder(source, target)
    (target / "file").unlink()
    atomic.rename_folder(source, target)
    assert (target / "file").read_text() == "source" and not source.exists()
