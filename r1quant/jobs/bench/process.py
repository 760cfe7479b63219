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
from dataclasses import asdict, dataclass
from types import TracebackType
from typing import Any

from r1quant import errors
from r1quant.errors import R1QuantError
from r1quant.jobs.runtimes import Setup
from r1quant.metrics.speed import Timed

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
    def restored(values: Mapping[str, Any]) -> ProcessSettings:
        """From what dataclasses.asdict made of them."""
        return ProcessSettings(**{**values, "setup": Setup(**values["setup"])})


@dataclass(frozen=True)
class BenchLoad:
    """One batch completed.

    memory   bytes by kind, see bench_child.peak_memory
    at_once  the most texts that ran at the same time so far; None where the runtime does not tell
    """

    texts: tuple[Timed, ...]
    memory: Mapping[str, int | None]
    at_once: int | None = None


class BenchProcess:
    """Use it in a with block. Whatever the child raises is raised here; `opened` is what it said at first.

    Of models in torch it also says whether they are `resident` (all weights in memory), and how many texts of the
    context their memory `holds`; of others None.
    """

    def __init__(self, settings: ProcessSettings) -> None:
        self.settings = settings
        words = [sys.executable, "-m", CHILD, json.dumps(asdict(settings))]
        self._child = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        try:
            self.opened = self._answer()
        except BaseException:
            self.close()
            raise

    @property
    def crowded(self) -> bool:
        """Whether the model has less memory than it wants."""
        resident, holds = self.opened["resident"], self.opened["holds"]
        return resident is False or (holds is not None and holds < self.settings.slots)

    def run(self, prompts: Sequence[Mapping[str, Any]], new_tokens: int) -> BenchLoad:
        """Completes prompts (key, text and tokens of each) by new_tokens each, all at once."""
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps({"prompts": list(prompts), "new_tokens": new_tokens}) + "\n")
            self._child.stdin.flush()
        except BrokenPipeError:
            raise self._ended() from None
        found = self._answer()
        texts = tuple(Timed(**{**text, "moments": tuple(text["moments"])}) for text in found["texts"])
        return BenchLoad(texts, found["memory"], found["at_once"])

    def _answer(self) -> dict[str, Any]:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise self._ended()
        found: dict[str, Any] = json.loads(line)
        if "error" in found:
            problem = found["error"]
            kind = getattr(errors, problem["kind"], R1QuantError)
            raise kind(problem["message"], problem["hint"])
        return found

    def _ended(self) -> R1QuantError:
        code = self._child.wait()
        how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        return R1QuantError(
            f"the process that ran {self.settings.model} {how}",
            "if memory was short: a smaller --batch or fewer tokens, or --baseline none",
        )

    def close(self) -> None:
        """Ends the child: its input is closed, and where that does not do it is killed."""
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
