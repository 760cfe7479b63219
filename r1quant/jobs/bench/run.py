"""bench: how fast a model and the one it was made from run on this machine, and how much memory they take.

The same protocol whatever runs them: prompts of an exact number of tokens out of the bundled text, never the same
prompt twice (servers keep what they have read), the likeliest token each time, and no token that ends an answer. Each
model has a process of its own for every load. The two take turns, A B A B, so that what else the machine was doing
falls on both alike; but if memory does not hold both, one is measured after the other.

It measures nothing on hardware that is not there: what a card of 40 GB would do is modelled, and says so.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from r1quant.backends.openai_client import complete, redact_url
from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import windows
from r1quant.errors import CheckpointError, RecipeError
from r1quant.hardware.detect import host
from r1quant.jobs.artifacts import newest_output, open_artifact, source_of
from r1quant.jobs.bench.options import BenchOptions, Load
from r1quant.jobs.bench.process import BenchLoad, BenchProcess, BenchPrompt, PeakMemory, ProcessSettings
from r1quant.jobs.bench.record import headline, order, reference, stated_sizes
from r1quant.jobs.identity import identity
from r1quant.jobs.runtimes import backend_of
from r1quant.jobs.setup import SERVER, Setup
from r1quant.metrics.speed import Speed, latencies, ratios, speed, speeds
from r1quant.progress import Progress, Silent
from r1quant.records.bench import Bench, BenchMachine, BenchProtocol, BenchRow, BenchText, Timing
from r1quant.records.fields import Settings
from r1quant.storage import provenance
from r1quant.storage.cache import cache_folder

NONE = "none"


@dataclass
class _Side:
    """One of the two models at one load: its process, and what came of each repeat."""

    process: BenchProcess
    batches: list[BenchLoad] = field(default_factory=list)

    @property
    def speeds(self) -> list[Speed]:
        """Of each repeat."""
        return [speed(batch.texts) for batch in self.batches]

    def timing(self) -> Timing:
        opened, last = self.process.opened, self.batches[-1]
        memory = PeakMemory() if opened.elsewhere else last.memory
        kinds = {"torch": memory.torch, "nvml": memory.nvml, "rss": memory.rss}
        kind = next((name for name, count in kinds.items() if count is not None), None)
        return Timing(
            speeds=speeds(self.speeds),
            latencies=latencies(self.speeds),
            peak_memory_bytes=None if kind is None else kinds[kind],
            memory=kind,
            peak_rss_bytes=memory.rss,
            empty_rss_bytes=opened.empty_rss_bytes,
            peak_torch_bytes=memory.torch,
            nvml_bytes=memory.nvml,
            new_tokens_made=sum(text.count for batch in self.batches for text in batch.texts),
            backend=opened.backend,
            device=opened.device,
            dtype=opened.dtype,
            card=opened.card,
            resident=opened.resident,
            slots=last.at_once,
        )


def bench(
    out: str | Path | None = None,
    baseline: str | Path | None = None,
    setup: Setup | None = None,
    protocol: BenchOptions | None = None,
    progress: Progress | None = None,
    debug: bool = False,
) -> Bench:
    """Tokens per second and memory of a model, at every load of the protocol.

    out       a model in any format that is read; the newest one in the current folder if it is left out
    baseline  the model it was made from, or none; looked up in the record of `out` if it is left out. It runs in the
              backend of its own format
    setup     how `out` is run: auto takes the backend that its format is made for; with openai a server does, `out`
              gives the tokenizer, and there is no baseline unless one is named
    debug     whether the processes of the models show the traceback of an error

    Raises RecipeError, CheckpointError, MissingDependency, and R1QuantError if a model's process was ended.
    """
    begun, progress = time.monotonic(), progress or Silent()
    setup, protocol = setup or Setup(), protocol or BenchOptions()
    options = _options(setup)
    case = _opened(out, baseline, setup, protocol)
    rows, environment = _measured(case, protocol, progress, debug)
    first = headline(rows[0].quantized)
    return Bench(
        out=case.artifact.source,
        format=case.artifact.format,
        model=case.models.get("baseline"),
        hashes={"quantized": identity(case.artifact, cache_folder(), progress)},
        prefill_tokens_per_second=first.prefill_tokens_per_second,
        decode_tokens_per_second=first.decode_tokens_per_second,
        ttft_seconds=first.ttft_seconds,
        peak_memory_bytes=first.peak_memory_bytes,
        rows=tuple(rows),
        reference=reference(case.artifact, rows),
        sizes={side: stated_sizes(open_artifact(model)) for side, model in case.models.items()},
        machine=BenchMachine(**vars(host())),
        protocol=BenchProtocol(
            protocol.repeats, protocol.warm_up, order(rows), text=BenchText(case.text.source, case.text.sha256)
        ),
        options=options,
        environment=environment,
        seconds=time.monotonic() - begun,
    )


@dataclass(frozen=True, eq=False)
class _Case:
    """What is timed: the models by name and how each is run, both by side; and the text that they are given."""

    artifact: Artifact
    models: Mapping[str, str]
    setups: Mapping[str, Setup]
    tokenizer: Tokenizer
    text: windows.Calibration


def _options(setup: Setup) -> Settings:
    """The setup without the names and passwords that addresses of servers may hold."""
    urls = tuple(redact_url(complete(url)) for url in setup.base_urls)
    own: Settings = {name: getattr(setup, name) for name in ("backend", "device", "dtype")}
    return {**own, "base_urls": urls, "served": setup.served}


def _opened(out: str | Path | None, baseline: str | Path | None, setup: Setup, protocol: BenchOptions) -> _Case:
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
    case: _Case, protocol: BenchOptions, progress: Progress, debug: bool
) -> tuple[list[BenchRow], dict[str, str]]:
    """A row for every load, and the environment of the processes."""
    prompts = _Prompts(case.text.tokens.reshape(-1), case.tokenizer)
    loads = protocol.loads
    progress.begin("timing", len(loads) * (protocol.repeats + protocol.warm_up) * len(case.models))
    rows, environment = list[BenchRow](), provenance.environment()
    for load in loads:
        context = load.prompt_tokens + load.new_tokens + 16  # tokens that a chat format may put around a prompt
        settings = {
            name: ProcessSettings(model, case.setups[name], context, load.batch, debug)
            for name, model in case.models.items()
        }
        given = [prompts.take(load) for _ in range(protocol.warm_up + protocol.repeats)]
        sides, together = _sides(load, settings, given, protocol.warm_up, progress)
        rows.append(_row(load, sides, together))
        for name, side in sides.items():
            _note_memory(name, load, side.timing(), progress)
        for side in reversed(sides.values()):
            environment |= side.process.opened.environment
    return rows, environment


def _sides(
    load: Load,
    settings: Mapping[str, ProcessSettings],
    given: Sequence[Sequence[BenchPrompt]],
    warm_up: int,
    progress: Progress,
) -> tuple[dict[str, _Side], bool]:
    """The models at one load, and whether they took turns: they do if memory holds both. given: the prompts of each
    turn, of which the first `warm_up` are not measured."""

    def measure(sides: Mapping[str, _Side]) -> None:
        for turn, batch in enumerate(given):
            for name, side in sides.items():
                done = side.process.run(batch, load.new_tokens)
                if turn >= warm_up:
                    side.batches.append(done)
                progress.advance(1, f"{name}: {load.prompt_tokens} + {load.new_tokens} tokens, batch {load.batch}")

    with ExitStack() as stack:
        sides = {name: _Side(stack.enter_context(BenchProcess(one))) for name, one in settings.items()}
        together = len(sides) == 1 or not any(side.process.crowded for side in sides.values())
        if together:
            measure(sides)
    if not together:
        for name, one in settings.items():
            with BenchProcess(one) as process:
                sides[name] = _Side(process)
                measure({name: sides[name]})
    return sides, together


def _row(load: Load, sides: Mapping[str, _Side], together: bool) -> BenchRow:
    quantized, baseline = sides["quantized"], sides.get("baseline")
    return BenchRow(
        load.prompt_tokens,
        load.new_tokens,
        load.batch,
        quantized.timing(),
        None if baseline is None else baseline.timing(),
        None if baseline is None else ratios(quantized.speeds, baseline.speeds),
        None if baseline is None else together,
    )


def _note_memory(name: str, load: Load, timing: Timing, progress: Progress) -> None:
    """Says how a lack of memory has changed what was measured."""
    if timing.resident is False:
        progress.note(f"{name}: the weights do not fit in memory and were read again for every token")
    if timing.slots is not None and timing.slots < load.batch:
        progress.note(f"{name}: memory held only {timing.slots} of {load.batch} texts at the same time")


class _Prompts:
    """Prompts out of one long text, each beginning where none has begun before, as long as the text allows."""

    def __init__(self, text: npt.NDArray[np.int64], tokenizer: Tokenizer) -> None:
        self._text, self._tokenizer = text, tokenizer
        self._numbers: Iterator[int] = itertools.count()

    def take(self, load: Load) -> list[BenchPrompt]:
        prompts = []
        for number in itertools.islice(self._numbers, load.batch):
            start = number * 7919 % len(self._text)  # a prime, so that no place comes again soon
            tokens = self._text[(start + np.arange(load.prompt_tokens)) % len(self._text)].tolist()
            prompts.append(BenchPrompt(str(number), self._tokenizer.decode(tokens), tuple(tokens)))
        return prompts


def _check_context(artifact: Artifact, protocol: BenchOptions) -> None:
    longest, most = artifact.config.get("max_position_embeddings"), max(protocol.prompt_tokens)
    total = most + max(protocol.new_tokens)
    if isinstance(longest, int) and total > longest:
        raise RecipeError(
            f"{most} + {max(protocol.new_tokens)} tokens are more than the model's {longest} positions",
            "lower --prompt-tokens or --new-tokens",
        )


def _baseline(artifact: Artifact, named: str | Path | None) -> str | None:
    """The model to compare with: the one that is named, or what a record says; None if there is none."""
    if named is not None:
        return None if str(named) == NONE else str(named)
    try:
        return source_of(artifact)
    except CheckpointError:
        return None
