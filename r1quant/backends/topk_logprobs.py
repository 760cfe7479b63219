"""What a model predicts of a text, held compactly, for a baseline whose runtime gives logits and nothing else.

Of each next-token distribution p the likeliest tokens are kept exactly, and of the rest, whose mass is known, a few
drawn ones. That is enough for the Kullback-Leibler divergence from p to any q:

    KL(p || q) = sum over all tokens of p (r - 1 - log r)                                         r = q / p
               = sum over the likeliest of p (r - 1 - log r) + mass of the rest * mean over the drawn of (r - 1 - log r)

because p and q both sum to 1. No term is negative, the estimate is unbiased, and its variance is known from the drawn
ones. (J. Schulman, Approximating KL Divergence, 2020.) A vocabulary of up to WHOLE tokens is kept whole, and exact.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from r1quant.errors import NumericError
from r1quant.metrics.divergence import TokenScores

TOP, DRAWN, WHOLE = 256, 128, 512
PIECE = 128  # tokens whose whole distributions exist at a time
KEPT = f"{TOP} likeliest and {DRAWN} drawn"

Pieces = Iterable[torch.Tensor]  # float32 [some tokens, vocabulary]: logits in the order of the text, without gaps


@dataclass(frozen=True, eq=False)
class TopKLogprobs:
    """One entry for each of n predicted tokens.

    nll   float64 [n]: negative log-probability of the token that came, in nats
    ids   int32 [n, k]: the likeliest tokens, the likeliest first, then those drawn from the rest
    logp  float32 [n, k]: their log-probabilities
    rest  float64 [n]: the mass of all but the likeliest
    top   int64 []: how many of the k are the likeliest
    """

    nll: npt.NDArray[np.float64]
    ids: npt.NDArray[np.int32]
    logp: npt.NDArray[np.float32]
    rest: npt.NDArray[np.float64]
    top: npt.NDArray[np.int64]


def sketch(logits: Pieces, coming: npt.NDArray[np.int64]) -> TopKLogprobs:
    """coming int64 [n]: the tokens that really followed. Raises NumericError for NaN or Inf."""
    random = torch.Generator().manual_seed(0)
    columns: list[tuple[torch.Tensor, ...]] = []
    top = 0
    for scores, wanted, lse in _walk(logits, coming, "baseline"):
        top = scores.shape[1] if scores.shape[1] <= WHOLE else TOP
        kept, rest = scores.topk(top, dim=1).indices, torch.zeros(len(scores), dtype=torch.float64)
        if top < scores.shape[1]:
            mass = (scores - lse[:, None]).exp_().scatter_(1, kept, 0).cumsum(1, dtype=torch.float64)
            rest = mass[:, -1].cpu()
            place = (torch.rand(len(scores), 1, generator=random, dtype=torch.float64) + torch.arange(DRAWN)) / DRAWN
            drawn = torch.searchsorted(mass, place.to(mass.device) * mass[:, -1:])
            kept = torch.cat([kept, drawn.clamp_max(scores.shape[1] - 1)], 1)
        surprise = (lse - scores.gather(1, wanted)[:, 0]).double()
        columns.append((surprise.cpu(), kept.int().cpu(), (scores.gather(1, kept) - lse[:, None]).cpu(), rest))
    joined = [torch.cat(column).numpy() for column in zip(*columns, strict=True)]
    return TopKLogprobs(joined[0], joined[1], joined[2], joined[3], np.array(top))


def against(baseline: TopKLogprobs, logits: Pieces, coming: npt.NDArray[np.int64]) -> TokenScores:
    """How another model's predictions of the same tokens differ. Raises NumericError for NaN or Inf."""
    columns: list[tuple[torch.Tensor, ...]] = []
    start, top = 0, int(baseline.top)
    for scores, wanted, lse in _walk(logits, coming, "quantized model"):
        part = slice(start, start := start + len(scores))
        ids = torch.from_numpy(baseline.ids[part]).to(scores.device, torch.int64)
        logp = torch.from_numpy(baseline.logp[part]).double()
        logr = (scores.gather(1, ids) - lse[:, None]).cpu().double() - logp
        terms = torch.expm1(logr) - logr  # r - 1 - log r
        total, drawn = (terms[:, :top] * logp[:, :top].exp()).sum(1), terms[:, top:]
        spread = torch.zeros_like(total)
        if drawn.shape[1]:
            rest = torch.from_numpy(baseline.rest[part])
            total, spread = total + drawn.mean(1) * rest, drawn.var(1) * rest.square() / drawn.shape[1]
        surprise = (lse - scores.gather(1, wanted)[:, 0]).double()
        columns.append((surprise.cpu(), total, (scores.argmax(1) == ids[:, 0]).cpu(), spread))
    nll, kl, same, variance = (torch.cat(column).numpy() for column in zip(*columns, strict=True))
    return TokenScores(baseline.nll, nll, kl, same, variance)


def _walk(
    logits: Pieces, coming: npt.NDArray[np.int64], name: str
) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Logits [t, vocabulary] piece by piece, the tokens that came [t, 1], and the log of the sum of exponents [t]."""
    ids, start = torch.from_numpy(coming), 0
    with torch.inference_mode():
        for given in logits:
            for scores in torch.split(given, PIECE):
                lse = scores.logsumexp(1)
                if not bool(torch.isfinite(lse + scores.amin(1)).all()):  # -Inf is in the smallest alone
                    raise NumericError(f"the {name} gives NaN or Inf on this text", "use --dtype float32")
                yield scores, ids[start : (start := start + len(scores))].to(scores.device)[:, None], lse
