"""What verify compares: two models and how each is run; and the options that say what is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from r1quant.arch.tables import Architecture
from r1quant.backends import Runtime
from r1quant.backends.openai_client import redact_url
from r1quant.checkpoint.artifact import Artifact, stop_tokens
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import problemsets
from r1quant.data.problemsets import ProblemSet
from r1quant.errors import RecipeError
from r1quant.jobs.runtimes import DTYPES, Setup, backend_of, open_runtime


@dataclass(frozen=True)
class VerifyOptions:
    """What is measured, and how.

    text, windows, seq_len   a text or JSONL file, or None for the bundled held-out text; 0 windows measure no text
    backend                  runs the quantized model: torch, from its weights; onnxruntime or llamacpp, which a format
                             is made for; auto, which takes that one; openai, a server; mock, which invents its answers
    baseline_backend         runs the baseline, the same ones
    base_url, baseline_url   the servers; served_model, baseline_served: what the model is called there
    concurrency, patience    requests at a time, and seconds to wait for servers of which none answers
    device, dtype            where and in what precision torch computes
    aime                     problems to ask: mini, aime24, aime25, aime, hub:NAME or a JSONL file; limit: only so many
    samples                  answers to each problem, with the seeds that follow from `seed`
    temperature, top_p, max_tokens   how they are drawn
    health                   also ask for JSON and for function calls, a small bundled set
    tasks, task_folder       tasks of lm-eval, and a folder with more of them; task_limit: questions of each; task_chat:
                             whether they are put in the chat format; task_tokens: of an answer, over what they say
    gate                     conditions on the record, such as "kl.mean<0.05" or "aime.delta.low>-0.02"
    """

    text: str | None = None
    windows: int = 24
    seq_len: int = 512
    backend: str = "torch"
    baseline_backend: str = "torch"
    base_url: tuple[str, ...] = ()
    baseline_url: tuple[str, ...] = ()
    served_model: str | None = None
    baseline_served: str | None = None
    concurrency: int = 8
    patience: float = 300.0
    device: str = "auto"
    dtype: str = "float32"
    aime: str | None = None
    limit: int | None = None
    samples: int = 1
    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 65536
    seed: int = 0
    health: bool = False
    tasks: tuple[str, ...] = ()
    task_folder: str | None = None
    task_limit: int | None = None
    task_chat: bool = False
    task_tokens: int | None = None
    gate: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Raises RecipeError naming the first value that is not possible."""
        if self.windows and (self.windows < 1 or self.seq_len < 2):
            raise RecipeError(f"windows {self.windows} x seq-len {self.seq_len} is no text", "use at least 1 x 2")
        for name in ("limit", "samples", "max_tokens", "concurrency", "task_limit", "task_tokens"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise RecipeError(f"{name.replace('_', '-')} is {value}", "give a whole number of at least 1")
        if not (0 <= self.temperature < float("inf") and 0 < self.top_p <= 1 and self.seed >= 0):
            raise RecipeError(
                f"temperature {self.temperature}, top-p {self.top_p}, seed {self.seed} cannot be drawn with",
                "give a temperature from 0 up, a top-p above 0 and up to 1, and a seed from 0 up",
            )
        if not 0 <= self.patience < float("inf"):
            raise RecipeError(f"patience is {self.patience}", "give seconds from 0 up")
        for name, given in (("text", self.text), ("aime", self.aime), *(("tasks", task) for task in self.tasks)):
            if given is not None and not given.strip():
                raise RecipeError(f"{name} has an empty name", f"leave out --{name}, or say which")
        if self.dtype not in DTYPES:
            raise RecipeError(f"dtype {self.dtype!r} is not supported", f"choose from {', '.join(DTYPES)}")
        if not (self.windows or self.aime or self.health or self.tasks):
            raise RecipeError("nothing is to be measured", "leave out --windows 0, or give --aime, --health or --tasks")
        for backend, urls, flag in (
            (self.backend, self.base_url, "base-url"),
            (self.baseline_backend, self.baseline_url, "baseline-url"),
        ):
            if bool(urls) != (backend == "openai"):
                raise RecipeError(
                    f"--{flag} and the backend openai belong together", f"give both, or leave out --{flag}"
                )

    @staticmethod
    def restored(values: Mapping[str, Any]) -> VerifyOptions:
        """From a record. Raises RecipeError where it has options that are not known."""
        known = {field.name for field in fields(VerifyOptions)}
        if unknown := set(values) - known:
            raise RecipeError(
                f"the record has the unknown option {min(unknown)!r}", "use the version of r1quant that wrote it"
            )
        given: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        return VerifyOptions(**given)


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
        """By name. Raises RecipeError where one cannot run its model."""
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
        return asked.rstrip().endswith("<think>")

    @cached_property
    def stop(self) -> frozenset[int]:
        """The tokens that end an answer, as the baseline's files name them."""
        return stop_tokens(self.baseline, self.tokenizer.eos_id)
