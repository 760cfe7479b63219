"""What all tests share: tiny models made once, a calibration text, and the command line run in this process."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.cli import cli, console
from tests import models

QUICK = ("--group-size", "32", "--samples", "4", "--seq-len", "32", "--device", "cpu", "--dtype", "float32")


@dataclass(frozen=True)
class Ran:
    """How a command ended: its exit code and what it printed."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The one JSON object on stdout."""
        assert self.out.count("\n") == 1 and self.out.endswith("\n"), self.out
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found

    @property
    def error(self) -> list[str]:
        """The lines of the error: what is wrong, and what to do. Nothing else may look like one."""
        assert self.code not in (0, 1), self.err
        assert "Traceback" not in self.err, self.err
        assert self.err.count("error: ") == 1, self.err
        lines = self.err.split("error: ")[1].splitlines()
        assert len(lines) == 2 and all(line.strip() for line in lines), self.err
        return lines


Run = Callable[..., Ran]


def watch(monkeypatch: pytest.MonkeyPatch, module: object, name: str) -> list[Any]:
    """What a function of a module returns from here on, in the order of its calls."""
    kept: list[Any] = []
    real = getattr(module, name)

    def watched(*given: object) -> Any:
        kept.append(real(*given))
        return kept[-1]

    monkeypatch.setattr(module, name, watched)
    return kept


@pytest.fixture(autouse=True, scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of the tests' own: neither do they find what the user's runs have left, nor leave anything."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("R1QUANT_CACHE", str(folder))
        yield folder


@pytest.fixture
def in_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and no settings from the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("R1QUANT_MODEL", raising=False)
    return tmp_path


@pytest.fixture
def run(in_tmp: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """run("plan", "model", ...) runs the command line in this process, in an empty folder."""

    def call(*words: object) -> Ran:
        capsys.readouterr()
        code = console.run(cli, [str(word) for word in words])
        return Ran(code, *capsys.readouterr())

    return call


@pytest.fixture(scope="session")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama in one file. Only to be read; `copied` gives one that may be damaged."""
    return models.write_model(tmp_path_factory.mktemp("models") / "llama", "llama")


@pytest.fixture(scope="session")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama in three files. Only to be read."""
    return models.write_model(tmp_path_factory.mktemp("models") / "sharded", "llama", shards=3)


@pytest.fixture
def copied(llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(llama, tmp_path / "model")


@pytest.fixture(scope="session")
def text_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A calibration text of a few thousand tokens."""
    path = tmp_path_factory.mktemp("text") / "calibration.txt"
    path.write_text(models.text(), "utf-8")
    return path


@pytest.fixture(scope="session")
def toy() -> Tokenizer:
    """A small tokenizer with the chat template of a reasoning model."""
    from tests import toy_tokenizer

    return toy_tokenizer.make()


@pytest.fixture(scope="session")
def llama_cpp() -> None:
    """What needs llama.cpp asks for this: it is skipped if the package is not installed."""
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed; it is not among the development packages: its build is long")


@pytest.fixture(scope="session")
def floats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A llama in F32 as a GGUF file. Only to be read."""
    from tests import llamacpp

    return llamacpp.write_floats(tmp_path_factory.mktemp("floats") / "floats.gguf")
