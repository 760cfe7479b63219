"""A lock on a file: who has it is named, and it is free when its process is dead, however that ended."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from r1quant.errors import ResumeError
from r1quant.storage.lock import HeldElsewhere, take, take_named
from r1quant.storage.rundir import RunDir

HOLDER = """
import sys
from pathlib import Path
from r1quant.storage.rundir import RunDir
with RunDir(Path(sys.argv[1])) as run:
    run.claim({"a": "1"})
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_named_and_a_dead_one_holds_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "x.run"
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    with holder:
        assert holder.stdout is not None and holder.stdout.readline() == b"held\n"
        with pytest.raises(ResumeError) as caught:
            RunDir(folder)
        assert caught.value.message == f"another process ({holder.pid}) is working in {folder}"
        assert (folder / "lock").read_text() == str(holder.pid)  # the refused one has not touched it
        holder.send_signal(signal.SIGKILL)
        assert holder.wait() == -signal.SIGKILL
    with RunDir(folder) as run:
        run.claim({"a": "1"})
        assert (folder / "lock").read_text() == str(os.getpid())


def test_whoever_waits_gets_it_when_the_other_lets_go(tmp_path: Path) -> None:
    events = list[str]()
    waits = threading.Event()
    with (tmp_path / "lock").open("a+") as first, (tmp_path / "lock").open("a+") as second:
        take_named(first)

        def release() -> None:
            assert waits.wait(60)
            events.append("released")
            first.close()

        def waiting() -> None:
            events.append("waiting")
            waits.set()

        thread = threading.Thread(target=release)
        thread.start()
        take_named(second, waiting)
        events.append("taken")
        thread.join()
    assert events == ["waiting", "released", "taken"]


@pytest.mark.parametrize("content", ["", "nobody", "-5", "²"])
def test_what_is_no_process_is_not_named(content: str, tmp_path: Path) -> None:
    with (tmp_path / "lock").open("a+") as first, (tmp_path / "lock").open("a+") as second:
        take(first)
        first.write(content)
        first.flush()
        with pytest.raises(HeldElsewhere) as caught:
            take_named(second)
        assert caught.value.pid is None and caught.value.holder == "another process"
