"""Scores one text with the baseline, or takes what it said before, then with the quantized model: never both at once.

A baseline that torch runs is kept as the final hidden states that its head reads, 2 to 4 bytes a channel and token,
from which every distribution comes back exactly. Of another runtime's baseline a sketch is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from r1quant import provenance
from r1quant.backends import Runtime
from r1quant.backends.distance import Given, Projected, distance, likelihood
from r1quant.backends.openai import OpenAI
from r1quant.backends.sketch import KEPT, Sketch, against, sketch
from r1quant.backends.torch import TorchModel
from r1quant.jobs.baselines import Arrays, kept
from r1quant.metrics.divergence import TokenScores
from r1quant.progress import Progress

Tokens = npt.NDArray[np.int64]
Coming = npt.NDArray[np.int64]
Said = Projected | Sketch | npt.NDArray[np.float64]  # of a baseline; the last is negative log-probabilities alone


@dataclass(frozen=True, eq=False)
class Scored:
    """scores, how exact the divergence is, and whether the baseline was at hand."""

    scores: TokenScores
    estimator: str
    cached: bool


def score(
    baseline: Runtime, quantized: Runtime, identity: dict[str, str], tokens: Tokens, cache: Path, progress: Progress
) -> Scored:
    """Two models on tokens int64 [windows, seq_len], window by window or layer by layer.

    identity  what decides what the baseline says, but for what is known here
    """
    coming, steps = tokens[:, 1:].reshape(-1), _Steps(progress, len(tokens))
    environment = provenance.environment()
    identity = identity | {"backend": baseline.name, "kept": KEPT, **{f"environment.{k}": environment[k] for k in WITH}}
    steps.begin("the baseline", baseline)
    arrays, cached = kept(cache, identity, lambda: _listen(baseline, tokens, coming, steps))
    said = _restored(baseline, arrays)
    steps.begin("the quantized model", quantized)
    if isinstance(quantized, OpenAI) or isinstance(said, np.ndarray):
        nll = _surprise(said, coming)
        theirs = _listen(quantized, tokens, coming, steps, alone=True)["nll"]
        known = ~np.isnan((nll + theirs).reshape(len(tokens), -1)).any(0)  # some servers leave out the first token
        mine, theirs = (part.reshape(len(tokens), -1)[:, known].reshape(-1) for part in (nll, theirs))
        return Scored(TokenScores(mine, theirs, None, None), "none: a server gives no distributions", cached)
    if isinstance(said, Sketch):
        exact = "exact" if int(said.top) == said.ids.shape[1] else f"{KEPT} of each distribution"
        return Scored(against(said, _pieces(quantized, tokens, steps), coming), exact, cached)
    if isinstance(quantized, TorchModel):
        found = distance(said, quantized.projected(_predicting(quantized, tokens, steps)), coming)
    else:
        found = _joined(_by_window(said, quantized, tokens, coming, steps))
    return Scored(found, "exact", cached)


WITH = ("torch", "transformers", "cpu", "threads")  # what may change the last bits of what a model says


class _Steps:
    """Progress in layers or windows, whichever a runtime goes through."""

    def __init__(self, progress: Progress, windows: int) -> None:
        self._progress, self._windows, self._what = progress, windows, ""

    def begin(self, what: str, runtime: Runtime) -> None:
        self._what = f"scoring with {what}"
        if not isinstance(runtime, TorchModel):
            self._progress.begin(self._what, self._windows)
        else:
            self._progress.begin(self._what, runtime.layers)

    def __call__(self) -> None:
        self._progress.advance(1)


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
        return {"states": states.view(bits).numpy(), "dtype": np.array(str(states.dtype).removeprefix("torch."))}
    made = sketch(_pieces(runtime, tokens, step), coming)
    return {"nll": made.nll} if alone else {field.name: getattr(made, field.name) for field in fields(made)}


def _surprise(said: Said, coming: Coming) -> npt.NDArray[np.float64]:
    if isinstance(said, Projected):
        return likelihood(said, coming)
    return said.nll if isinstance(said, Sketch) else said


def _restored(runtime: Runtime, arrays: Arrays) -> Said:
    if "states" in arrays:
        assert isinstance(runtime, TorchModel)
        dtype = getattr(torch, str(arrays["dtype"]))
        return runtime.projected(torch.from_numpy(arrays["states"]).view(dtype))
    if "ids" in arrays:
        return Sketch(**arrays)  # type: ignore[arg-type]
    return arrays["nll"].astype(np.float64)


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
