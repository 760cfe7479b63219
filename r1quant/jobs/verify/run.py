"""verify: how far a quantized model is from the one it was made from: on text, on problems, on tasks, in a runtime."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

from r1quant.backends.openai_client import redact_url
from r1quant.checkpoint.safetensors import short_name
from r1quant.errors import CheckpointError, RecipeError, RecordError
from r1quant.extras import EXTRAS
from r1quant.jobs.verify.opening import check_pair, hashes_of, open_pair
from r1quant.jobs.verify.options import VerifyOptions
from r1quant.jobs.verify.pair import Pair
from r1quant.jobs.verify.parts import gates_of
from r1quant.metrics.gates import judge
from r1quant.progress import Progress, Silent
from r1quant.records.verification import Verification
from r1quant.storage import provenance

PACKAGES = (*(extra.package for extra in EXTRAS.values()), "math-verify")  # that a result may depend on


def verify(
    out: str | Path | None = None,
    baseline: str | Path | None = None,
    options: VerifyOptions | None = None,
    progress: Progress | None = None,
) -> Verification:
    """Measures what the options say of both models, each after the other.

    out       a quantized model in any format that is read; the newest one in the current folder if it is None
    baseline  the model it was made from; looked up in the checkpoint's record if it is None
    """
    options = options or VerifyOptions()
    return _verify(lambda progress: open_pair(out, baseline, options, progress), options, progress or Silent())


def repeat(content: object, progress: Progress | None = None) -> Verification:
    """Verifies again as a record says, given as parsed JSON.

    Raises CheckpointError if a model has changed since, which is said before anything is measured, or the text or the
    problems; RecipeError if it is no record of verify.
    """
    record = _repeatable(content)
    options = VerifyOptions.restored(record.options)

    def unchanged(progress: Progress) -> Pair:
        pair = open_pair(record.out, record.baseline, options, progress)
        _refuse_changes(vars(record.hashes), vars(hashes_of(pair)))
        return pair

    again = _verify(unchanged, options, progress or Silent())
    _refuse_changes(_sources(record), _sources(again))
    return again


def _verify(opened: Callable[[Progress], Pair], options: VerifyOptions, progress: Progress) -> Verification:
    begun = time.monotonic()
    gates = gates_of(options)
    pair = opened(progress)
    check_pair(pair)
    measured = _measured(pair, progress)
    return replace(
        measured,
        model=short_name(pair.baseline.source, pair.baseline.folder),
        out=pair.quantized.source,
        baseline=pair.baseline.source,
        gates=judge(gates, measured.numbers()),
        backend=pair.backends[1],
        baseline_backend=pair.backends[0],
        dtype=options.dtype,
        hashes=hashes_of(pair),
        options=asdict(_without_secrets(options)),
        environment=provenance.environment() | provenance.versions(PACKAGES),
        seconds=time.monotonic() - begun,
        peak_rss_bytes=provenance.peak_rss_bytes(),
    )


def _measured(pair: Pair, progress: Progress) -> Verification:
    """A record with the parts that the options ask for, and nothing else yet."""
    options, record = pair.options, Verification()
    if options.windows:
        from r1quant.jobs.verify.scoring import measure

        record = replace(record, scores=measure(pair, progress))
    if options.aime or options.health:
        from r1quant.jobs.verify.asking import ask

        problems, health = ask(pair, progress)
        record = replace(record, aime=problems, health=health)
    if options.tasks:
        from r1quant.jobs.verify.tasks import compare

        record = replace(record, tasks=compare(pair, progress))
    return record


def _without_secrets(options: VerifyOptions) -> VerifyOptions:
    """The options without the names and passwords that addresses of servers may hold."""
    return replace(
        options,
        base_url=tuple(map(redact_url, options.base_url)),
        baseline_url=tuple(map(redact_url, options.baseline_url)),
    )


def _repeatable(content: object) -> Verification:
    try:
        record = Verification.from_json(content)
    except RecordError as error:
        reason = error.message
    else:
        if record.out and record.baseline and record.options and record.hashes.quantized:
            return record
        reason = "it does not say what was measured, and how"
    raise RecipeError(f"this is no record of verify: {reason}", "give a file written by r1quant verify --record")


def _sources(record: Verification) -> dict[str, str]:
    """The hashes of the text and of the problems."""
    text = record.scores.text if record.scores is not None else None
    named = {"text": text, "aime": None if record.aime is None else record.aime.asked}
    return {name: source.sha256 for name, source in named.items() if source is not None}


def _refuse_changes(before: Mapping[str, str], now: Mapping[str, str]) -> None:
    for name, digest in now.items():
        if before.get(name) != digest:
            raise CheckpointError(
                f"the {name} is not the one that was measured ({before.get(name, '')[:12] or 'none'} then)",
                "restore it, or verify it anew",
            )
