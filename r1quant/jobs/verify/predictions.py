"""What a baseline predicts of a text, as arrays that can be stored and taken up again.

A baseline that torch runs is stored as the final hidden states that its head reads, from which every distribution comes
back exactly, and as what a divergence needs if both models have one head: 6 to 8 bytes a channel and token. Of any
other baseline the likeliest and some drawn tokens of each distribution are stored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt
import torch

from r1quant.backends import Runtime
from r1quant.backends.distance import BaselineSummary, Projected, expected, likelihood
from r1quant.backends.openai import OpenAI
from r1quant.backends.topk_logprobs import TopKLogprobs, sketch
from r1quant.backends.torch import TorchModel
from r1quant.engine.forward import pick_device
from r1quant.extras import EXTRAS
from r1quant.jobs.setup import LOCAL
from r1quant.jobs.verify.baselines import Arrays
from r1quant.jobs.verify.pair import Pair
from r1quant.storage import provenance

Values = npt.NDArray[np.float64]
ENVIRONMENT = ("torch", "transformers", "cpu", "threads")  # what may change the last bits of torch's results
Step = Callable[[], None]


@dataclass(frozen=True, eq=False)
class Text:
    """tokens int64 [windows, seq_len]; targets int64 [n]: those that are predicted, window after window."""

    tokens: npt.NDArray[np.int64]

    @property
    def targets(self) -> npt.NDArray[np.int64]:
        return self.tokens[:, 1:].reshape(-1)

    @property
    def width(self) -> int:
        """Predicted tokens in a window."""
        return int(self.tokens.shape[1]) - 1


@dataclass(frozen=True, eq=False)
class StoredStates:
    """A baseline that torch ran: its states under its head, and what a divergence under the same head needs."""

    projected: Projected
    expected: BaselineSummary


Baseline = StoredStates | TopKLogprobs | Values  # the last one: negative log-probabilities of the targets alone


def environment_of(pair: Pair) -> dict[str, str]:
    """What may change the last bits of a baseline's predictions, besides the model and the text."""
    backend = pair.backends[0]
    if backend == "torch":
        environment = provenance.environment()
        device = {"device": str(pick_device(pair.options.device))}
        return device | {f"environment.{key}": environment[key] for key in ENVIRONMENT}
    return {"version": provenance.version(EXTRAS[backend].package)} if backend in LOCAL else {}


def predict(runtime: Runtime, text: Text, step: Step) -> Arrays:
    """All that is stored of a baseline. step is called after each window or layer."""
    if isinstance(runtime, OpenAI):
        return {"nll": runtime.nll(text.tokens).reshape(-1)}
    if isinstance(runtime, TorchModel):
        states = predicting_states(runtime, text, step)
        bits = torch.int32 if states.dtype == torch.float32 else torch.int16
        stored = {"states": states.view(bits).numpy(), "dtype": np.array(str(states.dtype).removeprefix("torch."))}
        return stored | vars(expected(runtime.projected(states), text.targets))
    logprobs = sketch(logit_pieces(runtime, text, step), text.targets)
    return {field.name: getattr(logprobs, field.name) for field in fields(logprobs)}


def nll(runtime: Runtime, text: Text, step: Step) -> Values:
    """The negative log-probabilities of the targets alone, in nats: float64 [n]; NaN if a server gives none."""
    if isinstance(runtime, OpenAI):
        return runtime.nll(text.tokens).reshape(-1)
    if isinstance(runtime, TorchModel):
        return likelihood(runtime.projected(predicting_states(runtime, text, step)), text.targets)
    return sketch(logit_pieces(runtime, text, step), text.targets).nll


def restored(arrays: Arrays, opened: Callable[[], Runtime]) -> Baseline:
    """From what `predict` gave. The baseline is opened only if its head is needed; torch reads nothing until then."""
    if "states" in arrays:
        runtime = opened()
        assert isinstance(runtime, TorchModel)
        dtype = getattr(torch, str(arrays["dtype"]))
        projected = runtime.projected(torch.from_numpy(arrays["states"]).view(dtype))
        stored = {field.name: arrays[field.name] for field in fields(BaselineSummary)}
        return StoredStates(projected, BaselineSummary(**stored))  # type: ignore[arg-type]
    if "ids" in arrays:
        return TopKLogprobs(**arrays)  # type: ignore[arg-type]
    return arrays["nll"].astype(np.float64)


def nll_of(baseline: Baseline) -> Values:
    """The negative log-probabilities of the targets, which every stored baseline has."""
    if isinstance(baseline, StoredStates):
        return baseline.expected.nll
    return baseline.nll if isinstance(baseline, TopKLogprobs) else baseline


def predicting_states(model: TorchModel, text: Text, step: Step) -> torch.Tensor:
    """The final states [n, hidden] of all tokens that have a next one in their window."""
    states = model.final_states(text.tokens, step)[:, :-1]
    return states.reshape(-1, states.shape[-1])


def logit_pieces(runtime: Runtime, text: Text, step: Step) -> Iterable[torch.Tensor]:
    """Logits of the targets, a part of the text at a time."""
    if isinstance(runtime, TorchModel):
        yield from runtime.projected(predicting_states(runtime, text, step)).pieces()
        return
    for window in text.tokens:
        yield torch.from_numpy(runtime.logits(window)[:-1])
        step()
