"""Scores one text with the baseline, or takes what it said before, then with the quantized model: never both at once.

A baseline that torch runs is kept as the final hidden states that its head reads, from which every distribution comes
back exactly, and as what a divergence needs of it where both have one head: 6 to 8 bytes a channel and token. Of any
other baseline a sketch is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from r1quant.backends import Runtime
from r1quant.backends.distance import BaselineSummary, Given, Projected, distance, expected, likelihood, under_one_head
from r1quant.backends.openai import OpenAI
from r1quant.backends.topk_logprobs import KEPT, TopKLogprobs, against, sketch
from r1quant.backends.torch import TorchModel
from r1quant.engine.forward import pick_device
from r1quant.extras import EXTRAS
from r1quant.jobs.runtimes import LOCAL
from r1quant.jobs.verify.baselines import Arrays, kept
from r1quant.jobs.verify.pair import Pair
from r1quant.metrics.divergence import TokenScores
from r1quant.progress import Progress
from r1quant.storage import provenance

Tokens = npt.NDArray[np.int64]
Coming = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Known:
    """What is kept of a baseline that torch ran."""

    projected: Projected
    expected: BaselineSummary


Said = Known | TopKLogprobs | npt.NDArray[np.float64]  # of a baseline; the last is negative log-probabilities alone


@dataclass(frozen=True, eq=False)
class Scored:
    """scores, how exact the divergence is, whether the baseline was at hand, and which of the predicted tokens
    (bool [n]) the scores are of: some servers leave out the first of a window."""

    scores: TokenScores
    estimator: str
    cached: bool
    known: npt.NDArray[np.bool_]


def score(pair: Pair, tokens: Tokens, text: str, cache: Path, progress: Progress) -> Scored:
    """Two models on tokens int64 [windows, seq_len] with the hash `text`, window by window or layer by layer."""
    coming, step = tokens[:, 1:].reshape(-1), partial(progress.advance, 1)

    def opened(which: int) -> Runtime:
        runtime = pair.opened(which, tokens.shape[1], note=progress.note)
        steps = runtime.layers if isinstance(runtime, TorchModel) else len(tokens)
        progress.begin(f"scoring with {('the baseline', 'the quantized model')[which]}", steps)
        return runtime

    identity = pair.identity(0) | _surroundings(pair) | {"tokens": text, "kept": f"states, expected outputs 2; {KEPT}"}
    arrays, cached = kept(cache, identity, lambda: _listen(opened(0), tokens, coming, step))
    said = _restored(arrays, lambda: pair.opened(0, 1))
    quantized = opened(1)
    whole = np.ones(len(coming), np.bool_)
    if isinstance(quantized, OpenAI) or isinstance(said, np.ndarray):
        mine = _surprise(said)
        theirs = _listen(quantized, tokens, coming, step, alone=True)["nll"]
        by_window = ~np.isnan((mine + theirs).reshape(len(tokens), -1)).any(0)
        known = np.tile(by_window, len(tokens))
        scores = TokenScores(mine[known], theirs[known], None, None)
        return Scored(scores, "none: a server gives no distributions", cached, known)
    if isinstance(said, TopKLogprobs):
        exact = "exact" if int(said.top) == said.ids.shape[1] else f"{KEPT} of each distribution"
        return Scored(against(said, _pieces(quantized, tokens, step), coming), exact, cached, whole)
    if isinstance(quantized, TorchModel):
        found = _apart(said, quantized.projected(_predicting(quantized, tokens, step)), coming)
    else:
        found = _joined(_by_window(said.projected, quantized, tokens, coming, step))
    return Scored(found, "exact", cached, whole)


def _surroundings(pair: Pair) -> dict[str, str]:
    """What may change the last bits of what a baseline says."""
    backend = pair.backends[0]
    if backend == "torch":
        environment = provenance.environment()
        device = {"device": str(pick_device(pair.options.device))}
        return device | {f"environment.{key}": environment[key] for key in WITH}
    return {"version": provenance.version(EXTRAS[backend].package)} if backend in LOCAL else {}


WITH = ("torch", "transformers", "cpu", "threads")


def _predicting(model: TorchModel, tokens: Tokens, step: Callable[[], None]) -> torch.Tensor:
    """The final states [n, hidden] of all tokens that have a next one in their window."""
    states = model.final_states(tokens, step)[:, :-1]
    return states.reshape(-1, states.shape[-1])


def _listen(
    runtime: Runtime, tokens: Tokens, coming: Coming, step: Callable[[], None], alone: bool = False
) -> dict[str, Any]:
    """What a runtime says of the text, as arrays; alone: the probabilities of the tokens that came are enough."""
    if isinstance(runtime, OpenAI):
        return {"nll": runtime.nll(tokens).reshape(-1)}
    if isinstance(runtime, TorchModel):
        states = _predicting(runtime, tokens, step)
        if alone:
            return {"nll": likelihood(runtime.projected(states), coming)}
        bits = torch.int32 if states.dtype == torch.float32 else torch.int16
        kept_states = {"states": states.view(bits).numpy(), "dtype": np.array(str(states.dtype).removeprefix("torch."))}
        return kept_states | vars(expected(runtime.projected(states), coming))
    made = sketch(_pieces(runtime, tokens, step), coming)
    return {"nll": made.nll} if alone else {field.name: getattr(made, field.name) for field in fields(made)}


def _surprise(said: Said) -> npt.NDArray[np.float64]:
    if isinstance(said, Known):
        return said.expected.nll
    return said.nll if isinstance(said, TopKLogprobs) else said


def _restored(arrays: Arrays, opened: Callable[[], Runtime]) -> Said:
    """The baseline is opened only where its head is needed; torch reads nothing until then."""
    if "states" in arrays:
        runtime = opened()
        assert isinstance(runtime, TorchModel)
        dtype = getattr(torch, str(arrays["dtype"]))
        projected = runtime.projected(torch.from_numpy(arrays["states"]).view(dtype))
        stored: dict[str, Any] = {field.name: arrays[field.name] for field in fields(BaselineSummary)}
        return Known(projected, BaselineSummary(**stored))
    if "ids" in arrays:
        return TopKLogprobs(**arrays)  # type: ignore[arg-type]
    return arrays["nll"].astype(np.float64)


def _apart(said: Known, quantized: Projected, coming: Coming) -> TokenScores:
    mine = said.projected
    if torch.equal(mine.head, quantized.head):
        return under_one_head(said.expected, mine.hidden, quantized, coming)
    return distance(mine, quantized, coming)


def _pieces(runtime: Runtime, tokens: Tokens, step: Callable[[], None]) -> Iterable[torch.Tensor]:
    """Logits of the predicted tokens, a part of the text at a time."""
    if isinstance(runtime, TorchModel):
        yield from runtime.projected(_predicting(runtime, tokens, step)).pieces()
        return
    for window in tokens:
        yield torch.from_numpy(runtime.logits(window)[:-1])
        step()


def _by_window(
    said: Projected, runtime: Runtime, tokens: Tokens, coming: Coming, step: Callable[[], None]
) -> Iterator[TokenScores]:
    width = tokens.shape[1] - 1
    for index, logits in enumerate(_pieces(runtime, tokens, step)):
        part = slice(index * width, (index + 1) * width)
        yield distance(said.part(part), Given(logits, said.device), coming[part])


def _joined(parts: Iterable[TokenScores]) -> TokenScores:
    columns = [(part.nll_baseline, part.nll_quantized, part.kl, part.same_top1) for part in parts]
    return TokenScores(*(np.concatenate(column) for column in zip(*columns, strict=True)))
