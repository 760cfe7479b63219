"""What verify compares: two models and how each is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

from r1quant.arch.tables import Architecture
from r1quant.backends import Runtime
from r1quant.backends.openai_client import redact_url
from r1quant.checkpoint.artifact import Artifact, stop_tokens
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.core.thinking import OPENING
from r1quant.data import problemsets
from r1quant.data.problemsets import ProblemSet
from r1quant.jobs.runtimes import backend_of, open_runtime
from r1quant.jobs.setup import Setup
from r1quant.jobs.verify.options import VerifyOptions


@dataclass(frozen=True, eq=False)
class Pair:
    """The baseline, the model that was made from it, and how each is run; `hashes` of their files."""

    baseline: Artifact
    quantized: Artifact
    arch: Architecture
    tokenizer: Tokenizer
    options: VerifyOptions
    hashes: tuple[str, str]

    @property
    def models(self) -> tuple[Artifact, Artifact]:
        return self.baseline, self.quantized

    @cached_property
    def backends(self) -> tuple[str, str]:
        """By name. Raises RecipeError if one cannot run its model."""
        options = self.options
        return backend_of(self.baseline, options.baseline_backend), backend_of(self.quantized, options.backend)

    def identity(self, which: int) -> dict[str, str]:
        """All that decides what a model says, as far as it can be known: of a server's, its address and name."""
        options, backend = self.options, self.backends[which]
        urls = (options.baseline_url, options.base_url)[which]
        return {
            "model": self.hashes[which],
            "backend": (options.baseline_backend, options.backend)[which] if backend == "mock" else backend,
            "server": " ".join(map(redact_url, urls)),
            "served": (options.baseline_served, options.served_model)[which] or "",
            "dtype": options.dtype if backend == "torch" else "",
        }

    def opened(
        self,
        which: int,
        context: int,
        answers: Mapping[str, str] | None = None,
        note: Callable[[str], None] = lambda line: None,
    ) -> Runtime:
        """The baseline (0) or the quantized model (1) in its runtime."""
        options = self.options
        urls = (options.baseline_url, options.base_url)[which]
        served = (options.baseline_served, options.served_model)[which]
        setup = Setup(
            (options.baseline_backend, options.backend)[which],
            options.device,
            options.dtype,
            base_urls=urls,
            served=served,
            concurrency=options.concurrency,
            patience=options.patience,
        )
        return open_runtime(self.models[which], context, setup, answers, self.tokenizer, note)

    @cached_property
    def problems(self) -> ProblemSet:
        """What `aime` names. Raises as problemsets.load."""
        assert self.options.aime is not None
        return problemsets.load(self.options.aime, self.options.limit)

    @cached_property
    def thinking(self) -> bool:
        """Whether the chat format itself opens `<think>`, so that an answer begins inside it."""
        asked = self.tokenizer.render([{"role": "user", "content": "?"}], add_generation_prompt=True)
        return asked.rstrip().endswith(OPENING)

    @cached_property
    def stop(self) -> frozenset[int]:
        """The tokens that end an answer, as the baseline's files name them."""
        return stop_tokens(self.baseline, self.tokenizer.eos_id)
