"""bench: how fast a model and the one it was made from run on this machine, and how much memory they take.

The same protocol whatever runs them: prompts of an exact number of tokens out of the bundled text, never the same
prompt twice (servers keep what they have read), the likeliest token each time, and no token that ends an answer. Each
model has a process of its own for every load. The two take turns, A B A B, so that what else the machine was doing
falls on both alike; but where memory does not hold both, one is measured after the other.

It measures nothing on hardware that is not there: what a card of 40 GB would do is modelled, and says so.
"""

from __future__ import annotations

import glob
import itertools
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from r1quant import calibration, provenance
from r1quant.archs import architecture_of
from r1quant.artifact import Artifact
from r1quant.backends.wire import complete, shown
from r1quant.errors import CheckpointError, RecipeError
from r1quant.hardware import roofline
from r1quant.hardware.cards import card
from r1quant.jobs.artifacts import newest_output, open_artifact, source_of
from r1quant.jobs.bench_process import Batch, BenchProcess, Settings
from r1quant.jobs.runtimes import backend_of, file_of
from r1quant.metrics.speed import over_repeats, ratios, speed
from r1quant.progress import Progress, Silent
from r1quant.tokenizer import Tokenizer

SERVER = "openai"
SCHEMA = "r1quant.bench/1"
REFERENCE = "A100 40GB"
FORTY = (38e9, 44e9)  # bytes of a card that counts as one of 40 GB
NONE = "none"
PARTS = re.compile(r"-\d{5}-of-")  # in the name of a GGUF file that is in several
WINDOW, ENOUGH = 64, 1 << 14  # the text is read in so many windows of so many tokens, or all there is
STRIDE = 7919  # tokens from the begin of one prompt to that of the next; a prime, so that none comes again soon
MARGIN = 16  # tokens that a chat format may put around a prompt


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
    batches: list[Batch] = field(default_factory=list)

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
    backend: str = "auto",
    protocol: Protocol | None = None,
    device: str = "auto",
    dtype: str = "auto",
    base_urls: Sequence[str] = (),
    served: str | None = None,
    progress: Progress | None = None,
    debug: bool = False,
) -> Benched:
    """Tokens a second and memory of a model, at every load of the protocol.

    out       a model in any format that is read; the newest one in the current folder where it is left out
    baseline  the model it was made from, or none; looked up in the record of `out` where it is left out. It runs in
              the backend of its own format
    backend   what runs `out`: auto takes the one that its format is made for; with openai a server does, `out` gives
              the tokenizer, and there is no baseline unless one is named
    base_urls, served  the addresses of the servers, which belong to openai, and what they call the model
    dtype     of models in torch; auto is bfloat16 where the processor multiplies in it, else float32

    Raises RecipeError, CheckpointError, MissingDependency, and R1QuantError where a model's process was ended.
    """
    begun, protocol, progress = time.monotonic(), protocol or Protocol(), progress or Silent()
    if bool(base_urls) != (backend == SERVER):
        raise RecipeError("--base-url and the backend openai belong together", "give both, or leave out --base-url")
    servers = [shown(complete(url)) for url in base_urls]
    named = str(out if out is not None else newest_output(Path()))
    artifact = open_artifact(named)
    _check_context(artifact, protocol)
    models = {"quantized": (named, backend if backend == SERVER else backend_of(artifact, backend))}
    base = _baseline(artifact, NONE if backend == SERVER and baseline is None else baseline)
    if base is not None:
        models["baseline"] = (base, backend_of(open_artifact(base), "auto"))
    tokenizer = Tokenizer.from_files(artifact.carried, artifact.source)
    text = calibration.evaluation_text(None, tokenizer, ENOUGH, WINDOW, vocabulary=int(artifact.config["vocab_size"]))
    prompts = _Prompts(text.tokens.reshape(-1), tokenizer)
    loads = protocol.loads
    progress.begin("timing", len(loads) * (protocol.repeats + protocol.warm_up) * len(models))
    rows, environment = [], provenance.environment()
    for load in loads:
        made = {
            side: Settings(
                model=model,
                backend=ran,
                device=device,
                dtype=dtype,
                context=load.prompt_tokens + load.new_tokens + MARGIN,
                slots=load.batch,
                base_urls=tuple(base_urls),
                served=served,
                debug=debug,
            )
            for side, (model, ran) in models.items()
        }
        row, found = _row(load, made, prompts, protocol, progress)
        rows.append(row)
        environment |= found
    first = rows[0]["quantized"]
    return Benched(
        {
            "schema": SCHEMA,
            "out": artifact.source,
            "format": artifact.format,
            "model": base,
            **{key: _median(first[key]) for key in TOP},
            "peak_memory_bytes": first["peak_memory_bytes"],
            "rows": rows,
            "reference": _reference(artifact, rows),
            "protocol": {
                "repeats": protocol.repeats,
                "warm_up": protocol.warm_up,
                "order": _order(rows),
                "temperature": 0,
                "text": {"source": text.source, "sha256": text.sha256},
            },
            "options": {
                "backend": backend,
                "device": device,
                "dtype": dtype,
                "base_urls": servers,
                "served": served,
            },
            "environment": environment,
            "seconds": time.monotonic() - begun,
        }
    )


TOP = ("prefill_tokens_per_second", "decode_tokens_per_second", "ttft_seconds")


def _row(
    load: Load, made: Mapping[str, Settings], prompts: _Prompts, protocol: Protocol, progress: Progress
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


def _order(rows: Sequence[Mapping[str, Any]]) -> str:
    turns = {row["turns"] for row in rows}
    if turns == {None}:
        return "alone"
    return "in turn" if turns == {True} else "in turn where memory holds both"


class _Prompts:
    """Prompts out of one long text, each beginning where none has begun before, as long as the text allows."""

    def __init__(self, text: npt.NDArray[np.int64], tokenizer: Tokenizer) -> None:
        self._text, self._tokenizer = text, tokenizer
        self._numbers: Iterator[int] = itertools.count()

    def take(self, load: Load) -> list[dict[str, Any]]:
        made = []
        for number in itertools.islice(self._numbers, load.batch):
            start = number * STRIDE % len(self._text)
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


def _reference(artifact: Artifact, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The 16-bit model on a card of 40 GB at every load: measured where that is what was measured, else modelled."""
    if all(_on_forty(row["baseline"]) for row in rows):
        shown = [
            {
                **{key: row[key] for key in ("prompt_tokens", "new_tokens", "batch")},
                "baseline": {
                    "source": "measured",
                    **{key: _median(row["baseline"][key]) for key in TOP},
                    "total_bytes": row["baseline"]["peak_memory_bytes"],
                },
                "quantized": {
                    "source": "measured",
                    **{key: _median(row["quantized"][key]) for key in TOP},
                    "total_bytes": row["quantized"]["peak_memory_bytes"],
                },
            }
            for row in rows
        ]
        first = rows[0]["baseline"]
        return {"card": first["card"]["name"], "source": "measured", "dtype": first["dtype"], "rows": shown}
    known, arch = card(REFERENCE), architecture_of(artifact.config)
    floats, quantized = roofline.sizes(artifact.config, arch), _stored_sizes(artifact)
    shown = []
    for row in rows:
        load = Load(row["prompt_tokens"], row["new_tokens"], row["batch"])
        found = {
            name: roofline.model(of, known, load.prompt_tokens, load.new_tokens, load.batch).as_dict()
            for name, of in (("baseline", floats), ("quantized", quantized))
        }
        shown.append({**vars(load), **found})
    return {
        "card": known.name,
        "source": roofline.SOURCE,
        "dtype": "float16",
        "assumptions": roofline.assumptions(),
        "rows": shown,
    }


def _stored_sizes(artifact: Artifact) -> roofline.Sizes:
    """As the model is stored. A GGUF file whose blocks are no QLinears is taken at its own size, evenly spread."""
    made = roofline.sizes(artifact.config, architecture_of(artifact.config), artifact.forms)
    if artifact.format != "gguf" or artifact.forms:
        return made
    path = file_of(artifact)
    parts = path.parent.glob(PARTS.sub("-?????-of-", glob.escape(path.name)))
    stored = sum(part.stat().st_size for part in parts)
    return replace(made, weights_bytes=stored, streamed_bytes=round(made.streamed_bytes * stored / made.weights_bytes))


def _on_forty(side: Mapping[str, Any] | None) -> bool:
    """Whether this was a 16-bit model on a card of 40 GB."""
    if side is None or side["card"] is None:
        return False
    return side["dtype"] in roofline.DTYPES and FORTY[0] <= side["card"]["memory_bytes"] <= FORTY[1]


def _median(found: Mapping[str, float] | None) -> float | None:
    return None if found is None else found["median"]
