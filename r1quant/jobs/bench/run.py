"""bench: how fast a model and the one it was made from run on this machine, and how much memory they take.

The same protocol whatever runs them: prompts of an exact number of tokens out of the bundled text, never the same
prompt twice (servers keep what they have read), the likeliest token each time, and no token that ends an answer. Each
model has a process of its own for every load. The two take turns, A B A B, so that what else the machine was doing
falls on both alike; but where memory does not hold both, one is measured after the other.

It measures nothing on hardware that is not there: what a card of 40 GB would do is modelled, and says so.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant.backends.openai_client import complete, redact_url
from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import windows
from r1quant.errors import CheckpointError, RecipeError
from r1quant.hardware.detect import host
from r1quant.jobs.artifacts import newest_output, open_artifact, source_of
from r1quant.jobs.bench.process import BenchLoad, BenchProcess, ProcessSettings
from r1quant.jobs.bench.record import headline, order, reference, stated_sizes
from r1quant.jobs.identity import identity
from r1quant.jobs.runtimes import SERVER, Setup, backend_of
from r1quant.metrics.speed import over_repeats, ratios, speed
from r1quant.progress import Progress, Silent
from r1quant.storage import provenance
from r1quant.storage.cache import cache_folder

SCHEMA = "r1quant.bench/1"
NONE = "none"


@dataclass(frozen=True)
class Load:
    """One point of the grid: `batch` texts at the same time, so many tokens in and out of each."""

    prompt_tokens: int
    new_tokens: int
    batch: int


@dataclass(frozen=True)
class Protocol:
    """What is run, and how often. Raises RecipeError for numbers that measure nothing."""

    prompt_tokens: tuple[int, ...] = (512,)
    new_tokens: tuple[int, ...] = (128,)
    batch: tuple[int, ...] = (1,)
    repeats: int = 5
    warm_up: int = 1

    def __post_init__(self) -> None:
        named = (("prompt-tokens", self.prompt_tokens, 1), ("new-tokens", self.new_tokens, 2), ("batch", self.batch, 1))
        for name, values, least in (*named, ("repeats", (self.repeats,), 1), ("warm-up", (self.warm_up,), 0)):
            if not values or min(values) < least:
                raise RecipeError(f"{name} {min(values, default='')} is too few", f"give at least {least}")

    @property
    def loads(self) -> list[Load]:
        return [Load(*point) for point in itertools.product(self.prompt_tokens, self.new_tokens, self.batch)]


@dataclass(frozen=True)
class Benched:
    """The measurement as a record."""

    record: Mapping[str, Any]

    def as_dict(self) -> dict[str, Any]:
        return dict(self.record)


@dataclass
class _Side:
    """One of the two models at one load: its process, and what came of each repeat."""

    process: BenchProcess
    batches: list[BenchLoad] = field(default_factory=list)

    def figures(self) -> dict[str, Any]:
        opened, last = self.process.opened, dict(self.batches[-1].memory)
        if opened["elsewhere"]:
            last = dict.fromkeys(last)
        on_card = last["torch"] if last["torch"] is not None else last["nvml"]
        return {
            **over_repeats([speed(batch.texts) for batch in self.batches]),
            "peak_memory_bytes": last["rss"] if on_card is None else on_card,
            "memory": next((kind for kind in ("torch", "nvml", "rss") if last[kind] is not None), None),
            "peak_rss_bytes": last["rss"],
            "empty_rss_bytes": opened["empty_rss_bytes"],
            "peak_torch_bytes": last["torch"],
            "nvml_bytes": last["nvml"],
            "new_tokens_made": sum(text.count for batch in self.batches for text in batch.texts),
            "backend": opened["backend"],
            "device": opened["device"],
            "dtype": opened["dtype"],
            "card": opened["card"],
            "resident": opened["resident"],
            "slots": self.batches[-1].at_once,
        }


def bench(
    out: str | Path | None = None,
    baseline: str | Path | None = None,
    setup: Setup | None = None,
    protocol: Protocol | None = None,
    progress: Progress | None = None,
    debug: bool = False,
) -> Benched:
    """Tokens a second and memory of a model, at every load of the protocol.

    out       a model in any format that is read; the newest one in the current folder where it is left out
    baseline  the model it was made from, or none; looked up in the record of `out` where it is left out. It runs in
              the backend of its own format
    setup     how `out` is run: auto takes the backend that its format is made for; with openai a server does, `out`
              gives the tokenizer, and there is no baseline unless one is named
    debug     whether the processes of the models show the traceback of an error

    Raises RecipeError, CheckpointError, MissingDependency, and R1QuantError where a model's process was ended.
    """
    begun, setup, protocol, progress = time.monotonic(), setup or Setup(), protocol or Protocol(), progress or Silent()
    options = _told(setup)
    case = _opened(out, baseline, setup, protocol)
    rows, environment = _measured(case, protocol, progress, debug)
    return Benched(
        {
            "schema": SCHEMA,
            "out": case.artifact.source,
            "format": case.artifact.format,
            "model": case.models.get("baseline"),
            "hashes": {"quantized": identity(case.artifact, cache_folder(), progress)},
            **headline(rows[0]["quantized"]),
            "rows": rows,
            "reference": reference(case.artifact, rows),
            "sizes": {side: stated_sizes(open_artifact(model)) for side, model in case.models.items()},
            "machine": vars(host()),
            "protocol": {
                "repeats": protocol.repeats,
                "warm_up": protocol.warm_up,
                "order": order(rows),
                "temperature": 0,
                "text": {"source": case.text.source, "sha256": case.text.sha256},
            },
            "options": options,
            "environment": environment,
            "seconds": time.monotonic() - begun,
        }
    )


@dataclass(frozen=True, eq=False)
class _Case:
    """What is timed: the models by name and how each is run, both by side; and the text that they are given."""

    artifact: Artifact
    models: Mapping[str, str]
    setups: Mapping[str, Setup]
    tokenizer: Tokenizer
    text: windows.Calibration


def _told(setup: Setup) -> dict[str, Any]:
    """The setup without the names and passwords that addresses of servers may hold."""
    urls = [redact_url(complete(url)) for url in setup.base_urls]
    kept = {name: getattr(setup, name) for name in ("backend", "device", "dtype")}
    return {**kept, "base_urls": urls, "served": setup.served}


def _opened(out: str | Path | None, baseline: str | Path | None, setup: Setup, protocol: Protocol) -> _Case:
    """Reads headers and the text. Raises what can be refused before a model is run."""
    named = str(out if out is not None else newest_output(Path()))
    artifact = open_artifact(named)
    _check_context(artifact, protocol)
    models = {"quantized": named}
    setups = {"quantized": replace(setup, backend=backend_of(artifact, setup.backend))}
    base = _baseline(artifact, NONE if setup.backend == SERVER and baseline is None else baseline)
    if base is not None:
        models["baseline"] = base
        own = backend_of(open_artifact(base), "auto")
        setups["baseline"] = replace(setup, backend=own, base_urls=(), served=None)
    tokenizer = Tokenizer.from_files(artifact.side_files, artifact.source)
    vocabulary = int(artifact.config["vocab_size"])
    text = windows.evaluation_text(None, tokenizer, 1 << 14, 64, vocabulary=vocabulary)  # a million, or all
    return _Case(artifact, models, setups, tokenizer, text)


def _measured(
    case: _Case, protocol: Protocol, progress: Progress, debug: bool
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """A row for every load, and what the processes ran in."""
    prompts = _Prompts(case.text.tokens.reshape(-1), case.tokenizer)
    loads = protocol.loads
    progress.begin("timing", len(loads) * (protocol.repeats + protocol.warm_up) * len(case.models))
    rows, environment = [], provenance.environment()
    for load in loads:
        context = load.prompt_tokens + load.new_tokens + 16  # tokens that a chat format may put around a prompt
        made = {
            side: ProcessSettings(model, case.setups[side], context, load.batch, debug)
            for side, model in case.models.items()
        }
        row, found = _row(load, made, prompts, protocol, progress)
        rows.append(row)
        environment |= found
    return rows, environment


def _row(
    load: Load, made: Mapping[str, ProcessSettings], prompts: _Prompts, protocol: Protocol, progress: Progress
) -> tuple[dict[str, Any], dict[str, str]]:
    """Both models at one load, in turn where memory holds both; and what their processes ran in."""
    given = [prompts.take(load) for _ in range(protocol.warm_up + protocol.repeats)]

    def measure(sides: Mapping[str, _Side]) -> None:
        for turn, batch in enumerate(given):
            for name, side in sides.items():
                done = side.process.run(batch, load.new_tokens)
                if turn >= protocol.warm_up:
                    side.batches.append(done)
                progress.advance(1, f"{name}: {load.prompt_tokens} + {load.new_tokens} tokens, batch {load.batch}")

    with ExitStack() as stack:
        sides = {name: _Side(stack.enter_context(BenchProcess(settings))) for name, settings in made.items()}
        together = len(sides) == 1 or not any(side.process.crowded for side in sides.values())
        if together:
            measure(sides)
    if not together:
        for name, settings in made.items():
            with BenchProcess(settings) as process:
                sides[name] = _Side(process)
                measure({name: sides[name]})
    row: dict[str, Any] = {**vars(load), **{name: side.figures() for name, side in sides.items()}}
    for name in sides:
        _note_memory(name, load, row[name], progress)
    speeds = {name: [speed(batch.texts) for batch in side.batches] for name, side in sides.items()}
    both = "baseline" in speeds
    row["ratio"] = ratios(speeds["quantized"], speeds["baseline"]) if both else None
    row["turns"] = together if both else None
    environments = [side.process.opened["environment"] for side in reversed(sides.values())]
    return {"baseline": None, **row}, dict(itertools.chain.from_iterable(found.items() for found in environments))


def _note_memory(name: str, load: Load, figures: Mapping[str, Any], progress: Progress) -> None:
    """Says what was measured for want of memory."""
    if figures["resident"] is False:
        progress.note(f"{name}: the weights do not fit in memory and were read again for every token")
    if figures["slots"] is not None and figures["slots"] < load.batch:
        progress.note(f"{name}: memory held only {figures['slots']} of {load.batch} texts at the same time")


class _Prompts:
    """Prompts out of one long text, each beginning where none has begun before, as long as the text allows."""

    def __init__(self, text: npt.NDArray[np.int64], tokenizer: Tokenizer) -> None:
        self._text, self._tokenizer = text, tokenizer
        self._numbers: Iterator[int] = itertools.count()

    def take(self, load: Load) -> list[dict[str, Any]]:
        made = []
        for number in itertools.islice(self._numbers, load.batch):
            start = number * 7919 % len(self._text)  # a prime, so that no place comes again soon
            tokens = self._text[(start + np.arange(load.prompt_tokens)) % len(self._text)].tolist()
            made.append({"key": str(number), "text": self._tokenizer.decode(tokens), "tokens": tokens})
        return made


def _check_context(artifact: Artifact, protocol: Protocol) -> None:
    longest, most = artifact.config.get("max_position_embeddings"), max(protocol.prompt_tokens)
    total = most + max(protocol.new_tokens)
    if isinstance(longest, int) and total > longest:
        raise RecipeError(
            f"{most} + {max(protocol.new_tokens)} tokens are more than the model's {longest} positions",
            "lower --prompt-tokens or --new-tokens",
        )


def _baseline(artifact: Artifact, wanted: str | Path | None) -> str | None:
    """The model to compare with: the one that is wanted, or what a record says; None where neither names one."""
    if wanted is not None:
        return None if str(wanted) == NONE else str(wanted)
    try:
        return source_of(artifact)
    except CheckpointError:
        return None
