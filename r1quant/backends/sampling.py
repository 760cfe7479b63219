"""Which token comes next: temperature and nucleus sampling, and the loop of a runtime that has one text at a time.

Every text has its own stream of uniform numbers, one a token, so what is drawn for it does not depend on its batch.
It does not know models: it sees logits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch

from r1quant.backends import Completion, Prompt, Sampling
from r1quant.errors import NumericError, RecipeError

CANDIDATES = (64, 1024)  # tokens looked at before all of them are sorted
GREEDY = Sampling(temperature=0.0)

Tokens = Sequence[int] | npt.NDArray[np.int64]
Begin = Callable[[Tokens], npt.NDArray[np.floating]]
Step = Callable[[int], npt.NDArray[np.floating]]


def choose(logits: torch.Tensor, sampling: Sampling, u: torch.Tensor) -> torch.Tensor:
    """logits [batch, vocabulary] and u float64 [batch] in [0, 1), on one device -> int64 [batch].

    Temperature 0 takes the likeliest token, of equals the first. Otherwise the likeliest tokens are kept, of equals
    the first, up to the one with which their probabilities sum to top_p (Holtzman et al. 2020, arXiv 1904.09751); and
    of these, in the order of their ids, the one is taken at which the sum exceeds the share u of the whole. In the
    order of their probabilities two tokens that are nearly equal would change places with the last bit of a logit.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1)
    wide = logits.float()
    probabilities = ((wide - wide.amax(-1, keepdim=True)) / sampling.temperature).softmax(-1)
    if sampling.top_p >= 1:
        return _at_share(probabilities, u)
    chosen = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    rows, vocabulary = torch.arange(len(logits), device=logits.device), logits.shape[1]
    for count in (*(count for count in CANDIDATES if count < vocabulary), vocabulary):
        found, enough = _among(probabilities, count, sampling.top_p, u)
        chosen[rows] = found
        if count == vocabulary or bool(enough.all()):
            break
        rows, probabilities, u = rows[~enough], probabilities[~enough], u[~enough]
    return chosen


def _among(probabilities: torch.Tensor, count: int, top_p: float, u: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The choice among the `count` likeliest, and whether it is the choice among all.

    The last of them may have equals that were left out, so only those that are likelier count.
    """
    likeliest, ids = probabilities.topk(count)
    total = likeliest.double().cumsum(-1)
    kept = (total - likeliest < top_p).sum(-1, keepdim=True).clamp(1, count)
    enough = torch.where(likeliest > likeliest[:, -1:], total, 0).amax(-1) >= top_p
    border = likeliest.gather(-1, kept - 1)
    ids, order = ids.sort(-1)
    likeliest = likeliest.gather(-1, order)
    above, equal = likeliest > border, likeliest == border
    inside = above | (equal & (equal.cumsum(-1) <= kept - above.sum(-1, keepdim=True)))
    index = _at_share(torch.where(inside, likeliest, 0), u)
    return ids.gather(-1, index[:, None])[:, 0], enough


def _at_share(weights: torch.Tensor, u: torch.Tensor) -> torch.Tensor:
    """weights [batch, n] -> int64 [batch]: where their sum first exceeds the share u of the whole."""
    total = weights.double().cumsum(-1)
    whole = total[:, -1:]
    share = torch.minimum(whole * u[:, None], whole.nextafter(torch.zeros_like(whole)))
    return (total <= share).sum(-1)


def follow(
    begin: Begin,
    step: Step,
    tokens: Tokens,
    sampling: Sampling = GREEDY,
    seed: int = 0,
) -> Iterator[int]:
    """The tokens that follow a text, without end; a token is computed when it is asked for.

    begin  takes the text and gives the logits [vocabulary] of what follows it
    step   goes on with one token; the logits given before need not outlive it

    Raises NumericError if a logit is NaN or Inf.
    """
    draws = np.random.default_rng(seed)
    logits = begin(tokens)
    while True:
        scores = torch.from_numpy(logits)[None]
        check_finite(scores)
        token = int(choose(scores, sampling, torch.from_numpy(draws.random(1))))
        yield token
        logits = step(token)


def complete(
    begin: Begin,
    step: Step,
    prompt: Prompt,
    sampling: Sampling,
    stop: frozenset[int],
    most: int,
) -> Completion:
    """What follows a prompt, up to a token in `stop` or `most` tokens. begin, step and errors as in `follow`."""
    ids: list[int] = []
    moments: list[float] = []
    begun = time.perf_counter()
    if most > 0:
        for token in islice(follow(begin, step, prompt.tokens, sampling, prompt.seed), most):
            ids.append(token)
            moments.append(time.perf_counter() - begun)
            if token in stop:
                break
    return completion(prompt, ids, moments, stop)


def completion(prompt: Prompt, ids: Sequence[int], moments: Sequence[float], stop: frozenset[int]) -> Completion:
    """A completion of tokens; it ended by itself if the last is in `stop`."""
    return Completion(prompt.key, tuple(ids), "", len(ids), bool(ids) and ids[-1] in stop, tuple(moments))


def room(prompt: Prompt, sampling: Sampling, context: int, vocabulary: int) -> int:
    """The most new tokens that a prompt may get: the last one needs no place in the context. 0 if it does not fit.

    Raises RecipeError if the prompt has no tokens, or one that is not in the vocabulary.
    """
    if not prompt.tokens:
        raise RecipeError(f"prompt {prompt.key!r} has no tokens", "give it in the model's own chat format")
    if not 0 <= min(prompt.tokens) <= max(prompt.tokens) < vocabulary:
        raise RecipeError(
            f"prompt {prompt.key!r} has tokens from {min(prompt.tokens)} to {max(prompt.tokens)}",
            f"use the model's own tokenizer: it knows {vocabulary}",
        )
    return max(0, min(sampling.max_tokens, context - len(prompt.tokens) + 1))


def check_finite(logits: torch.Tensor) -> None:
    """Raises NumericError if one is NaN or Inf."""
    if not bool(torch.isfinite(logits).all()):
        raise NumericError("the model gives NaN or Inf on this text", "run it in float32")
