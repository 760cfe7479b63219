"""verify: how far a quantized model is from the one it was made from: on text, on problems, on tasks, in a runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from r1quant.arch.tables import architecture_of, layer_count
from r1quant.backends.openai_client import redact_url
from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import short_name
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import windows
from r1quant.errors import CheckpointError, RecipeError
from r1quant.extras import EXTRAS
from r1quant.formats import table
from r1quant.jobs.artifacts import newest_output, open_artifact, predicted_kl, same_model, source_of
from r1quant.jobs.identity import identity
from r1quant.jobs.quantize.calibration import default_text
from r1quant.jobs.runtimes import installed
from r1quant.jobs.verify.options import VerifyOptions
from r1quant.jobs.verify.pair import Pair
from r1quant.metrics import tokenclass
from r1quant.metrics.divergence import TokenScores, summary
from r1quant.metrics.gates import applicable, judge, parse, refuse_unknown
from r1quant.planning.problems import tensor_problems
from r1quant.progress import Progress, Silent
from r1quant.storage import provenance
from r1quant.storage.cache import cache_folder

SCHEMA = "r1quant.verification/2"
PACKAGES = (*(extra.package for extra in EXTRAS.values()), "math-verify")  # that a result may depend on
NOTHING = TokenScores(np.zeros(8), np.zeros(8), np.zeros(8), np.zeros(8, np.bool_))  # shows what a record has


@dataclass(frozen=True)
class Verified:
    """The measurement as a record: metrics, and everything needed to repeat it."""

    record: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether every gate holds."""
        return all(verdict["passed"] for verdict in self.record["gates"])

    def as_dict(self) -> dict[str, Any]:
        return dict(self.record)


def applicable_gates(gates: Sequence[str], options: VerifyOptions) -> tuple[str, ...]:
    """Those of the gates that say something of what these options measure."""
    kept = applicable([parse(gate) for gate in gates], _shape(options), ("tasks.",) if options.tasks else ())
    return tuple(map(str, kept))


def verify(
    out: str | Path | None = None,
    baseline: str | Path | None = None,
    options: VerifyOptions | None = None,
    progress: Progress | None = None,
) -> Verified:
    """Measures what the options say of both models, each after the other.

    out       a quantized model in any format that is read; the newest one in the current folder where it is left out
    baseline  the model it was made from; looked up in the checkpoint's record where it is left out
    """
    options = options or VerifyOptions()
    return _verified(lambda progress: _opened(out, baseline, options, progress), options, progress or Silent())


def _verified(opened: Callable[[Progress], Pair], options: VerifyOptions, progress: Progress) -> Verified:
    begun = time.monotonic()
    gates = [parse(text) for text in options.gate]
    refuse_unknown(gates, _shape(options), free=("tasks.",) if options.tasks else ())
    pair = opened(progress)
    _check(pair)
    measured: dict[str, Any] = {}
    for wanted, measure in (
        (options.windows, _text),
        (options.aime or options.health, _reasoning),
        (options.tasks, _tasks),
    ):
        if wanted:
            measured |= measure(pair, progress)
    record = {
        "schema": SCHEMA,
        "model": short_name(pair.baseline.source, pair.baseline.folder),
        "out": pair.quantized.source,
        "baseline": pair.baseline.source,
        **measured,
        "gates": judge(gates, measured),
        "backend": pair.backends[1],
        "baseline_backend": pair.backends[0],
        "dtype": options.dtype,
        "hashes": _hashes(pair),
        "options": _told(options),
        "environment": provenance.environment() | provenance.versions(PACKAGES),
        "seconds": time.monotonic() - begun,
        "peak_rss_bytes": provenance.peak_rss_bytes(),
    }
    return Verified(record)


def _told(options: VerifyOptions) -> dict[str, Any]:
    """The options without the names and passwords that addresses of servers may hold."""
    urls = {name: list(map(redact_url, getattr(options, name))) for name in ("base_url", "baseline_url")}
    return asdict(options) | urls


def repeat(record: Mapping[str, Any], progress: Progress | None = None) -> Verified:
    """Runs again what a record tells of. Raises CheckpointError where a model has changed since, which is said before
    anything is measured, or the text or the problems; RecipeError where it is no record of this kind."""
    parts = ("options", Mapping), ("hashes", Mapping), ("out", str), ("baseline", str)
    known = isinstance(record, Mapping) and record.get("schema") == SCHEMA
    if not known or not all(isinstance(record.get(name), kind) for name, kind in parts):
        raise RecipeError(f"this is no record of verify ({SCHEMA})", "give a file written by r1quant verify --record")
    options = VerifyOptions.restored(record["options"])

    def unchanged(progress: Progress) -> Pair:
        pair = _opened(record["out"], record["baseline"], options, progress)
        _unchanged(record["hashes"], _hashes(pair))
        return pair

    done = _verified(unchanged, options, progress or Silent())
    for name in ("text", "aime"):
        if name in record:
            _unchanged({name: record[name].get("sha256")}, {name: done.record[name]["sha256"]})
    return done


def _unchanged(before: Mapping[str, Any], now: Mapping[str, str]) -> None:
    for name, digest in now.items():
        if before.get(name) != digest:
            raise CheckpointError(
                f"the {name} is not the one that was measured ({str(before.get(name))[:12]} then)",
                "restore it, or verify it anew",
            )


def _hashes(pair: Pair) -> dict[str, str]:
    tokenizer = provenance.sha256_of_files(pair.baseline.side_files)
    return {"baseline": pair.hashes[0], "quantized": pair.hashes[1], "tokenizer": tokenizer}


def _opened(out: str | Path | None, baseline: str | Path | None, options: VerifyOptions, progress: Progress) -> Pair:
    quantized = open_artifact(out if out is not None else newest_output(Path()))
    named = baseline if baseline is not None else source_of(quantized)
    base = _float_model(named) if options.baseline_backend == "torch" else open_artifact(named)
    if base.linear_specs:
        progress.note(f"the baseline {base.source} is quantized itself: the numbers compare two forms of it")
    arch = same_model(base, quantized)
    tokenizer = Tokenizer.from_files(base.side_files, base.source)
    cache = cache_folder()
    hashes = identity(base, cache, progress), identity(quantized, cache, progress)
    if hashes[0] == hashes[1] and options.backend == options.baseline_backend == "torch":
        raise CheckpointError(f"{quantized.source} is its own baseline", "name the model it was made from")
    return Pair(base, quantized, arch, tokenizer, options, hashes)


def _float_model(source: str | Path) -> Artifact:
    """A baseline as `quantize` reads it; a quantized one as it is. Raises CheckpointError where it is not complete."""
    checkpoint = open_model(source)
    if checkpoint.config.get("quantization_config") is not None:
        return open_artifact(source)
    layer_count(checkpoint.config, len(checkpoint.tensors))
    for problem in tensor_problems(checkpoint, architecture_of(checkpoint.config)):
        raise problem.kind(f"{checkpoint.source}: {problem.message}", problem.hint)
    return table.artifact(checkpoint)


def _check(pair: Pair) -> None:
    """What can be refused before anything is measured."""
    options = pair.options
    for backend in pair.backends:
        installed(backend)
    if options.aime is not None:
        pair.problems  # noqa: B018  (says what is wrong with them)
    if options.aime is not None or options.health:
        pair.tokenizer.render([{"role": "user", "content": "?"}], add_generation_prompt=True)
    if options.tasks:
        from r1quant.jobs.verify.tasks import choice_of, find

        find(choice_of(pair))


def _text(pair: Pair, progress: Progress) -> dict[str, Any]:
    from r1quant.jobs.verify.textscore import score

    options, tokenizer = pair.options, pair.tokenizer
    vocabulary = int(pair.baseline.config["vocab_size"])
    text = windows.evaluation_text(
        options.text or default_text(pair.baseline), tokenizer, options.windows, options.seq_len, vocabulary=vocabulary
    )
    found = score(pair, text.tokens, text.sha256, cache_folder(), progress)
    opening, closing = tokenizer.thinking_marks
    kinds = tokenclass.classes(text.tokens, opening, closing, pair.stop)
    measured = summary(found.scores, text.windows, {name: kind[found.known] for name, kind in kinds.items()})
    if measured["kl"] is not None:
        measured["kl"]["predicted"] = predicted_kl(pair.quantized)
    return {
        **measured,
        "kl_estimator": found.estimator,
        "text": {
            "source": text.source,
            "sha256": text.sha256,
            "windows": text.windows,
            "seq_len": options.seq_len,
            "baseline_cached": found.cached,
        },
    }


def _reasoning(pair: Pair, progress: Progress) -> dict[str, Any]:
    from r1quant.jobs.verify.reasoning import measure

    return measure(pair, progress)


def _tasks(pair: Pair, progress: Progress) -> dict[str, Any]:
    from r1quant.jobs.verify.tasks import compare

    return {"tasks": compare(pair, progress)}


def _shape(options: VerifyOptions) -> dict[str, Any]:
    """A record's numbers as they will be called, all of them made up."""
    found: dict[str, Any] = {}
    if options.windows:
        found |= summary(NOTHING, 2, {name: np.ones(8, np.bool_) for name in ("other", "thinking", "answer")})
    if options.aime or options.health:
        from r1quant.jobs.verify.reasoning import shape

        found |= shape(options)
    return found
