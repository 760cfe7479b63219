"""What verify measures and how, as it is asked for. It opens no model."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypedDict

from r1quant.core.options import OneOf, Text, Within, check, option
from r1quant.errors import RecipeError, RecordError
from r1quant.jobs.setup import ADDRESS, BACKEND, DEVICE, DTYPES, RUNTIME, SERVER
from r1quant.records.fields import Settings
from r1quant.records.reading import read

TEXT, PROBLEMS, TASKS, GATES = "Text", "Problems", "Tasks", "Gates"
SETS = ("mini", "aime24", "aime25", "aime")


@dataclass(frozen=True)
class VerifyOptions:
    """What is measured of a quantized model and its baseline, and how both are run."""

    text: str | None = option(
        None,
        TEXT,
        "The text or JSONL file to measure on, or hub:NAME.",
        Text("name a text or JSONL file"),
        shown="the bundled held-out text",
    )
    windows: int = option(24, TEXT, "Windows of the text that are measured; 0 measures no text.", Within(0))
    seq_len: int = option(512, TEXT, "Tokens in each window of the text.", Within(1))
    backend: str = option(
        "torch",
        RUNTIME,
        "What runs OUT: torch computes from its weights, onnxruntime and llamacpp are made for a format each, auto "
        "takes what the format is made for, openai asks the servers of --base-url, and mock invents its answers.",
        BACKEND,
    )
    baseline_backend: str = option(
        "torch", RUNTIME, "What runs the baseline; the same choices as for --backend.", BACKEND
    )
    base_url: tuple[str, ...] = option(
        (),
        RUNTIME,
        "Address of an OpenAI-compatible server that runs OUT: http://localhost:8000/v1. Repeatable.",
        ADDRESS,
    )
    baseline_url: tuple[str, ...] = option(
        (), RUNTIME, "Address of a server that runs the baseline. Repeatable.", ADDRESS
    )
    served_model: str | None = option(
        None, RUNTIME, "Name of OUT on its server.", Text(), shown="the first that the server lists"
    )
    baseline_served: str | None = option(
        None, RUNTIME, "Name of the baseline on its server.", Text(), shown="the first that the server lists"
    )
    concurrency: int = option(8, RUNTIME, "Requests under way at a time, over all servers.", Within(1))
    patience: float = option(
        300.0, RUNTIME, "How long to wait while no server answers, in seconds.", Within(0, unit="seconds")
    )
    device: str = option("auto", DEVICE, "Where torch computes: cpu, cuda, cuda:1, ... or auto.", Text())
    dtype: str = option("float32", DEVICE, "Precision in which torch computes.", OneOf(DTYPES))
    aime: str | None = option(
        None,
        PROBLEMS,
        "Mathematical problems to ask both models: mini (bundled), aime24, aime25, aime, hub:NAME, or a JSONL file.",
        Text(
            "name a set of problems: mini, aime24, aime25, aime, hub:NAME, or a JSONL file",
            suggestions=("mini", "aime24", "aime25", "aime"),
        ),
    )
    limit: int | None = option(None, PROBLEMS, "Ask only the first so many problems.", Within(1))
    samples: int = option(1, PROBLEMS, "Answers to each problem, all drawn anew.", Within(1))
    temperature: float = option(0.6, PROBLEMS, "Temperature at which answers are drawn; 0 is greedy.", Within(0))
    top_p: float = option(
        0.95, PROBLEMS, "Draw from the likeliest tokens that make up this much probability.", Within(0, 1, above=True)
    )
    max_tokens: int = option(
        65536,
        PROBLEMS,
        "Length at which an answer is cut off, in tokens; less if the model's context is shorter.",
        Within(1),
    )
    seed: int = option(0, PROBLEMS, "Sampling seed, the same for both models.", Within(0))
    health: bool = option(
        False, PROBLEMS, "Also ask for JSON and for function calls, a small bundled set, and count the valid ones."
    )
    tasks: tuple[str, ...] = option(
        (),
        TASKS,
        "Tasks of lm-eval to run on both models, with commas between: gsm8k,mmlu.",
        Text("name tasks of lm-eval, such as gsm8k,mmlu", commas=True),
    )
    task_folder: str | None = option(None, TASKS, "Folder with lm-eval tasks of your own.", Text("name a folder"))
    task_limit: int | None = option(None, TASKS, "Ask only the first so many questions of each task.", Within(1))
    task_chat: bool = option(False, TASKS, "Put the questions of tasks into the model's chat format.")
    task_tokens: int | None = option(
        None, TASKS, "Length at which an answer to a task is cut off, in tokens.", Within(1), shown="what the task says"
    )
    gate: tuple[str, ...] = option(
        (),
        GATES,
        "Exit with 1 unless this holds of the record: kl.mean<0.05, aime.delta.low>-0.02. Repeatable.",
        Text('give a condition such as "kl.mean<0.05"'),
    )

    def __post_init__(self) -> None:
        """Raises RecipeError naming the first value that is not possible."""
        check(self)
        if self.windows and self.seq_len < 2:
            raise RecipeError("a window of text needs at least two tokens", "give --seq-len 2 or more, such as 512")
        if not (self.windows or self.aime or self.health or self.tasks):
            raise RecipeError("nothing is to be measured", "leave out --windows 0, or give --aime, --health or --tasks")
        for backend, urls, flag in (
            (self.backend, self.base_url, "base-url"),
            (self.baseline_backend, self.baseline_url, "baseline-url"),
        ):
            if bool(urls) != (backend == SERVER):
                raise RecipeError(
                    f"--{flag} and the backend openai belong together", f"give both, or leave out --{flag}"
                )

    @staticmethod
    def restored(values: Settings) -> VerifyOptions:
        """From a record. Raises RecipeError for options that are not known, and for values that are not possible."""
        if unknown := set(values) - {field.name for field in fields(VerifyOptions)}:
            raise RecipeError(
                f"the record has the unknown option {min(unknown)!r}", "use the version of r1quant that wrote it"
            )
        try:
            return read(VerifyOptions, values)
        except RecordError as error:
            raise RecipeError(f"the options of the record are not possible: {error.message}", error.hint) from None


class VerifyArguments(TypedDict, total=False):
    """The fields of VerifyOptions, beside text, as named arguments."""

    windows: int
    seq_len: int
    backend: str
    baseline_backend: str
    base_url: tuple[str, ...]
    baseline_url: tuple[str, ...]
    served_model: str | None
    baseline_served: str | None
    concurrency: int
    patience: float
    device: str
    dtype: str
    aime: str | None
    limit: int | None
    samples: int
    temperature: float
    top_p: float
    max_tokens: int
    seed: int
    health: bool
    tasks: tuple[str, ...]
    task_folder: str | None
    task_limit: int | None
    task_chat: bool
    task_tokens: int | None
    gate: tuple[str, ...]
