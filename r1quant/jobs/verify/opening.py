"""Opens the two models that verify compares, and refuses what can be refused before anything is measured."""

from __future__ import annotations

from pathlib import Path

from r1quant.arch.tables import architecture_of, layer_count
from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.errors import CheckpointError
from r1quant.formats import table
from r1quant.jobs.artifacts import newest_output, open_artifact, same_model, source_of
from r1quant.jobs.identity import identity
from r1quant.jobs.runtimes import installed
from r1quant.jobs.verify.options import VerifyOptions
from r1quant.jobs.verify.pair import Pair
from r1quant.planning.problems import tensor_problems
from r1quant.progress import Progress
from r1quant.records.verification import ModelHashes
from r1quant.storage import provenance
from r1quant.storage.cache import cache_folder


def open_pair(out: str | Path | None, baseline: str | Path | None, options: VerifyOptions, progress: Progress) -> Pair:
    """The models by name; the newest output here if `out` is None, and what its record names if `baseline` is None."""
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


def check_pair(pair: Pair) -> None:
    """Raises now what would be raised after hours: a runtime, problems, a chat format or tasks that are missing."""
    options = pair.options
    for backend in pair.backends:
        installed(backend)
    if options.aime is not None:
        pair.problems  # noqa: B018  (says what is wrong with them)
    if options.aime is not None or options.health:
        pair.tokenizer.render([{"role": "user", "content": "?"}], add_generation_prompt=True)
    if options.tasks:
        from r1quant.jobs.verify import lmeval, tasks

        lmeval.find(tasks.choice_of(pair))


def hashes_of(pair: Pair) -> ModelHashes:
    """Of the files of both models, and of the tokenizer's."""
    tokenizer = provenance.sha256_of_files(pair.baseline.side_files)
    return ModelHashes(quantized=pair.hashes[1], baseline=pair.hashes[0], tokenizer=tokenizer)


def _float_model(source: str | Path) -> Artifact:
    """A baseline as `quantize` reads it; a quantized one as it is. Raises CheckpointError if it is not complete."""
    checkpoint = open_model(source)
    if checkpoint.config.get("quantization_config") is not None:
        return open_artifact(source)
    layer_count(checkpoint.config, len(checkpoint.tensors))
    for problem in tensor_problems(checkpoint, architecture_of(checkpoint.config)):
        raise problem.kind(f"{checkpoint.source}: {problem.message}", problem.hint)
    return table.artifact(checkpoint)
