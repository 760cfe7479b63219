"""A model writes text to calibrate it on: its answers to prompts, with their reasoning, drawn as they would be in use.

Each answer is stored as it arrives, under the hash of all that decides it, so an interrupted run goes on.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from r1quant.backends import Prompt, Runtime
from r1quant.backends.openai_client import redact_url
from r1quant.checkpoint.artifact import Artifact, stop_tokens
from r1quant.checkpoint.resolve import is_embedded
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.core.thinking import CLOSING
from r1quant.data import prompts, selfcalib, windows
from r1quant.data.prompts import Messages
from r1quant.data.windows import Calibration
from r1quant.errors import CalibrationError
from r1quant.formats import table
from r1quant.jobs.generate.options import GenerateOptions
from r1quant.jobs.generate.samples import Sample, Samples, collect, prompt_for, token_prompt
from r1quant.jobs.identity import identity
from r1quant.jobs.runtimes import backend_of, installed, open_runtime
from r1quant.jobs.setup import Setup
from r1quant.progress import Progress
from r1quant.recipe import Recipe
from r1quant.storage.cache import cache_folder

TOKENS_GUESSED = 256  # of a text, as long as there is none to go by
Asked = tuple[str, Messages, int]  # a prompt's name, what it says, and for which time it is asked


@dataclass(frozen=True)
class GeneratedText:
    """A prompt and its answer.

    text      both, as the model saw and wrote them
    tokens    the same; empty if the runtime gives text only
    answer    the answer alone, new: its tokens
    finished  whether it ended by itself
    """

    key: str
    text: str
    tokens: tuple[int, ...]
    answer: str
    new: int
    finished: bool


class TextGenerator:
    """A model that is asked. It is opened only if answers are missing."""

    def __init__(self, model: Artifact, options: GenerateOptions, progress: Progress, endless: bool = False) -> None:
        """endless: it goes on where a text would end. Raises RecipeError for a backend that cannot run this model,
        MissingDependency if it is not installed."""
        self.model, self.options, self.progress = model, options, progress
        self.tokenizer = Tokenizer.from_files(model.side_files, model.source)
        self.stop = frozenset[int]() if endless else stop_tokens(model, self.tokenizer.eos_id)
        self.backend = backend_of(model, options.setup.backend)
        installed(self.backend)
        self._device, self._dtype = self._place()
        self.identity = self._identity()

    def write(self, asked: Iterable[Asked]) -> list[GeneratedText]:
        """The answers, in the order of the prompts; those that did not fit the context are left out.

        Raises CalibrationError if the model has no chat template, and what the runtime raises.
        """
        prompted = [prompt_for(self.tokenizer, *each, self.options.seed) for each in asked]
        found = zip(prompted, self.complete(prompted), strict=True)
        return [self._text(prompt, sample) for prompt, sample in found if sample.count or sample.text]

    def complete(self, prompted: Sequence[Prompt]) -> list[Sample]:
        """What follows each of the prompts, in their order."""
        have = Samples.peek(cache_folder(), self.identity)
        if any(prompt.key not in have for prompt in prompted):
            with Samples.open(cache_folder(), self.identity) as store:
                runtime, sampling, decode = self._runtime(prompted), self.options.sampling, self.tokenizer.decode
                collect(runtime, prompted, sampling, self.stop, store, decode, self.progress, keep_ids=True)
                have = store.have
            if changed := getattr(runtime, "retemplated", 0):
                self.progress.note(f"the server's chat template or tokenizer makes other tokens of {changed} prompts")
        return [have[prompt.key] for prompt in prompted]

    def _text(self, prompt: Prompt, sample: Sample) -> GeneratedText:
        if sample.ids:
            tokens = prompt.tokens + sample.ids
            whole = self.tokenizer.decode(tokens)
        else:
            answered = [*prompt.messages, {"role": "assistant", "content": sample.text}]
            tokens, whole = (), self.tokenizer.render_trace(answered, sample.finished)
        return GeneratedText(prompt.key, whole, tokens, sample.text, sample.count, sample.finished)

    def _place(self) -> tuple[str, str]:
        """Where and in what precision torch computes; empty for other runtimes."""
        if self.backend != "torch":
            return "", ""
        from r1quant.engine.forward import pick_device, pick_dtype

        device = pick_device(self.options.setup.device)
        return device.type, str(pick_dtype(self.options.setup.dtype, device)).removeprefix("torch.")

    def _identity(self) -> Mapping[str, str]:
        """All that decides an answer but for the prompt, which its key tells."""
        options, setup = self.options, self.options.setup
        return {
            "purpose": "calibration",
            "model": identity(self.model, cache_folder(), self.progress),
            "backend": setup.backend if self.backend == "mock" else self.backend,
            "server": " ".join(map(redact_url, setup.base_urls)),
            "served": setup.served or "",
            "device": self._device,
            "dtype": self._dtype,
            "sampling": json.dumps([options.temperature, options.top_p, options.max_tokens, options.seed]),
            "stop": json.dumps(sorted(self.stop)),
        }

    def _runtime(self, prompted: Sequence[Prompt]) -> Runtime:
        longest = max(len(prompt.tokens) for prompt in prompted) + self.options.max_tokens
        context = min(longest, int(self.model.config.get("max_position_embeddings", 1 << 20)))
        return open_runtime(self.model, context, self.options.setup, tokenizer=self.tokenizer, note=self.progress.note)


def summary(texts: Sequence[GeneratedText]) -> dict[str, int]:
    """What to say of texts: how many there are, ended by themselves, and closed their reasoning; and their tokens."""
    return {
        "texts": len(texts),
        "finished": sum(text.finished for text in texts),
        "closed_think": sum(CLOSING in text.answer for text in texts),
        "new_tokens": sum(text.new for text in texts),
    }


def summary_line(found: Mapping[str, int]) -> str:
    """A summary in one line."""
    cut = found["texts"] - found["finished"]
    return (
        f"{found['texts']} texts, {found['new_tokens']} new tokens, {found['closed_think']} close their reasoning, "
        + (f"{cut} were cut off at the most tokens and are kept" if cut else "all ended by themselves")
    )


def own_text(checkpoint: Checkpoint, recipe: Recipe, progress: Progress) -> Calibration:
    """What `--calib self` means: the model's answers to as many prompts as fill the windows, each prompt again with
    other luck if all have been asked.

    Raises CalibrationError if it writes nothing.
    """
    asked = prompts.load(embedded=is_embedded(checkpoint.source, checkpoint.folder))
    setup = Setup("torch", recipe.device, recipe.dtype)
    options = GenerateOptions(max_tokens=selfcalib.MAX_TOKENS, seed=recipe.seed, setup=setup)
    generator = TextGenerator(table.artifact(checkpoint), options, progress)
    endless = ((name, messages, n) for n in itertools.count() for name, messages in asked.prompts.items())
    need, texts, have = recipe.samples * recipe.seq_len, list[GeneratedText](), 0
    while have < need:
        mean = have / len(texts) if texts else TOKENS_GUESSED
        fresh = generator.write(itertools.islice(endless, min(math.ceil((need - have) / mean), len(asked.prompts))))
        if not fresh:
            raise CalibrationError(
                f"{checkpoint.source} wrote nothing: its context is too short for the prompts",
                "give a text with --calib FILE",
            )
        texts, have = texts + fresh, have + sum(len(text.tokens) for text in fresh)
    texts = texts[: _enough(texts, need)]
    progress.note(f"calibrating on {summary_line(summary(texts))}")
    label = f"the model's own answers to {asked.source}"
    vocabulary = int(checkpoint.config["vocab_size"])
    documents = [text.tokens for text in texts]
    return windows.of_documents(documents, label, generator.tokenizer, recipe.samples, recipe.seq_len, vocabulary)


def continued(checkpoint: Checkpoint, recipe: Recipe, text: Calibration, progress: Progress) -> Calibration:
    """The text, and after it windows in which the model writes on from the ends of the text's, in its own words: drawn
    from its whole distribution, whose divergence is what counts."""
    keep = selfcalib.kept(recipe.seq_len)
    setup = Setup("torch", recipe.device, recipe.dtype)
    options = GenerateOptions(
        max_tokens=recipe.seq_len - keep, temperature=1.0, top_p=1.0, seed=recipe.seed, setup=setup
    )
    generator = TextGenerator(table.artifact(checkpoint), options, progress, endless=True)
    prompted = []
    for count in range(math.ceil(recipe.continued * text.windows)):
        number, window = divmod(count, text.windows)
        prompted.append(token_prompt(f"window-{window}", text.tokens[window, -keep:].tolist(), number, recipe.seed))
    written = [[*p.tokens, *sample.ids] for p, sample in zip(prompted, generator.complete(prompted), strict=True)]
    label = f"{text.source}, and {len(written)} windows that the model wrote on"
    return text.followed_by(np.array(written, np.int64), label)


def _enough(texts: Sequence[GeneratedText], need: int) -> int:
    """How many of the texts, from the first, hold so many tokens."""
    totals = itertools.accumulate(len(text.tokens) for text in texts)
    return next(count for count, total in enumerate(totals, 1) if total >= need)
