"""A model in a process of its own, to be timed: started, given batches, ended. The other end is jobs/bench/child.py.

One process a model, because a process never gives back its largest memory: only a fresh one tells what a model needs.
It does not know what is measured, or what for.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from types import TracebackType

from r1quant import errors
from r1quant.core.json import JsonObject
from r1quant.errors import R1QuantError
from r1quant.jobs.setup import Setup
from r1quant.metrics.speed import Timed
from r1quant.records.bench import BenchCard
from r1quant.records.reading import read

CHILD = "r1quant.jobs.bench.child"
PATIENCE = 10  # seconds that a child may take to end once it has nothing to do


@dataclass(frozen=True)
class ProcessSettings:
    """What is opened, how, and for what: `slots` texts at a time, of `context` tokens. Of a model that servers run
    `model` gives the tokenizer."""

    model: str
    setup: Setup
    context: int
    slots: int
    debug: bool = False

    @staticmethod
    def restored(values: JsonObject) -> ProcessSettings:
        """From what dataclasses.asdict made of them."""
        stated = values["setup"]
        return ProcessSettings(**{**values, "setup": Setup(**{**stated, "base_urls": tuple(stated["base_urls"])})})


@dataclass(frozen=True)
class BenchPrompt:
    """A text to complete, and its tokens."""

    key: str
    text: str
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class OpenedModel:
    """What a process says once it has the model. What a runtime does not tell is None.

    empty_rss_bytes  of the process before it had the model
    elsewhere        whether a server has the model, whose memory nobody here knows
    resident         whether all weights are in memory
    holds            how many texts of the context memory holds
    environment      versions, and kind of machine
    """

    backend: str
    device: str | None = None
    dtype: str | None = None
    card: BenchCard | None = None
    empty_rss_bytes: int | None = None
    elsewhere: bool = False
    resident: bool | None = None
    holds: int | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class PeakMemory:
    """Bytes: rss of the process, torch of what torch held on a GPU, nvml of what the GPU's driver says."""

    rss: int | None = None
    torch: int | None = None
    nvml: int | None = None


@dataclass(frozen=True)
class BenchLoad:
    """One batch completed. at_once: the most texts that ran at the same time so far, None if the runtime does not
    say."""

    texts: tuple[Timed, ...]
    memory: PeakMemory
    at_once: int | None = None


class BenchProcess:
    """Use it in a with block. Whatever the child raises is raised here."""

    def __init__(self, settings: ProcessSettings) -> None:
        self.settings = settings
        words = [sys.executable, "-m", CHILD, json.dumps(asdict(settings))]
        self._child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.opened = read(OpenedModel, self._answer())
        except BaseException:
            self.close()
            raise

    @property
    def crowded(self) -> bool:
        """Whether the model has less memory than it wants."""
        holds = self.opened.holds
        return self.opened.resident is False or (holds is not None and holds < self.settings.slots)

    def run(self, prompts: Sequence[BenchPrompt], new_tokens: int) -> BenchLoad:
        """Completes prompts by new_tokens each, all at once."""
        assert self._child.stdin is not None
        try:
            request = {"prompts": [asdict(prompt) for prompt in prompts], "new_tokens": new_tokens}
            self._child.stdin.write(json.dumps(request) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        return read(BenchLoad, self._answer())

    def _answer(self) -> JsonObject:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise self._ended()
        answer: JsonObject = json.loads(line)
        if "error" in answer:
            problem = answer["error"]
            kind = getattr(errors, problem["kind"], R1QuantError)
            raise kind(problem["message"], problem["hint"])
        return answer

    def _ended(self) -> R1QuantError:
        code = self._child.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        return R1QuantError(
            f"the process that ran {self.settings.model} {how}",
            "if memory was short: a smaller --batch or fewer tokens, or --baseline none",
        )

    def close(self) -> None:
        """Ends the child: its input is closed, and if that does not help it is killed."""
        assert self._child.stdin is not None and self._child.stdout is not None
        with suppress(BrokenPipeError):
            self._child.stdin.close()
        try:
            self._child.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        finally:
            self._child.stdout.close()

    def __enter__(self) -> BenchProcess:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if kind is not None:
            self._child.kill()
        self.close()
