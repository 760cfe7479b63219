"""Prompts of the embedded model, and llama-cpp-python's server with that model in it."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import r1quant
from r1quant.backends import Prompt
from r1quant.checkpoint.resolve import embedded_folder, open_model
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.tinyr1.problems import INSTRUCTION

SCRIPT = Path(__file__).with_name("llama_server.py")
STARTING_S = 120.0


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No key of the person who runs the tests, and no proxy before the loopback."""
    for name in list(os.environ):
        if name.startswith("OPENAI_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.of(open_model("tiny-r1"))


@pytest.fixture(scope="session")
def prompts(tokenizer: Tokenizer) -> list[Prompt]:
    """The first held-out problems, in R1's protocol, with a blank for its newline.

    This tokenizer makes one token of a newline and a word; no pre-tokenizer that GGUF has a name for does.
    """
    found = []
    for i, line in enumerate((embedded_folder().parent / "heldout.jsonl").read_text("utf-8").splitlines()[:12]):
        messages = ({"role": "user", "content": f"{json.loads(line)['problem']} {INSTRUCTION}"},)
        tokens = tokenizer.encode(tokenizer.render(messages, add_generation_prompt=True))
        found.append(Prompt(f"problem {i}", messages, tuple(tokens), seed=i))
    return found


@dataclass
class LlamaServer:
    """A server that can be killed and started again at the same address."""

    model: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, str(SCRIPT), str(self.model), str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def wait(self) -> None:
        assert self.process is not None
        end = time.monotonic() + STARTING_S
        while time.monotonic() < end:
            assert self.process.poll() is None, f"the server ended with {self.process.returncode}"
            try:
                with urllib.request.urlopen(f"{self.url}/models", timeout=5) as answer:
                    assert answer.status == 200
                    return
            except OSError:
                time.sleep(0.05)
        raise AssertionError("the server does not answer")

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()


@pytest.fixture(scope="session")
def gguf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("gguf") / "tiny"
    r1quant.export("tiny-r1", "gguf", folder)
    return next(folder.glob("*.gguf"))


@pytest.fixture(scope="session")
def llama_server(gguf: Path) -> Iterator[LlamaServer]:
    for package in ("llama_cpp", "fastapi", "uvicorn", "sse_starlette", "starlette_context", "pydantic_settings"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: llama-cpp-python's server cannot run")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        server = LlamaServer(gguf, taken.getsockname()[1])
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()
