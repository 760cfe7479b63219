"""A workplace for crashes: one model, one text, and what an uninterrupted run makes of them."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest

from tests import models
from tests.conftest import QUICK, Ran
from tests.crash.points import Point

REPOSITORY = Path(__file__).resolve().parents[2]
BEST = ("--preset", "best", "--draws", "2", "--continued", "0.5")
SHARD_LIMIT = 70_000  # so that the tiny model has several shards


class Server:
    """The process that forks the children."""

    def __init__(self) -> None:
        threads = {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.crash.server"],
            cwd=REPOSITORY,
            env={**os.environ, **threads},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def run(self, folder: Path, words: tuple[str, ...], point: Point | None, action: str) -> Ran:
        request = {
            "folder": str(folder),
            "words": words,
            "point": None if point is None else asdict(point),
            "action": action,
            "shard_limit": SHARD_LIMIT,
        }
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return Ran(**json.loads(self._process.stdout.readline()))

    def close(self) -> None:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


@dataclass(frozen=True)
class Place:
    """A folder of its own for one test; the model and the text lie beside it."""

    server: Server
    folder: Path

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def run_folder(self) -> Path:
        return self.folder / "out.run"

    def quantize(
        self,
        *options: str,
        model: str = "../model",
        text: str = "../text.txt",
        at: Point | None = None,
        do: str = "kill",
    ) -> Ran:
        """The same command each time, with something happening at a point."""
        method = () if "--preset" in options else ("--method", "gptq")
        words = ("quantize", model, "-o", "out", "--calib", text, *QUICK, *method, *options)
        return self.server.run(self.folder, words, at, do)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a folder, by its name inside it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.close()


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("crash")
    models.write_model(folder / "model", "llama", num_hidden_layers=3, shards=2)
    (folder / "text.txt").write_text(models.text(60), "utf-8")
    return folder


NUMBERS = itertools.count()


@pytest.fixture
def place(server: Server, base: Path) -> Place:
    folder = base / f"place{next(NUMBERS)}"
    folder.mkdir()
    return Place(server, folder)


@pytest.fixture(scope="session")
def straight(server: Server, base: Path) -> dict[str, bytes]:
    """The output of a run that nothing happened to."""
    return undisturbed(Place(server, base / "straight"))


@pytest.fixture(scope="session")
def best(server: Server, base: Path) -> dict[str, bytes]:
    """The same on text that the model writes too, with sensitivity passes before, and the float model beside."""
    return undisturbed(Place(server, base / "best"), *BEST)


def undisturbed(place: Place, *options: str) -> dict[str, bytes]:
    place.folder.mkdir()
    ran = place.quantize(*options)
    assert ran.code == 0, ran.err
    assert [p.name for p in place.folder.iterdir()] == ["out"]
    return contents(place.out)
