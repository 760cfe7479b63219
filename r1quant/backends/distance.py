"""How two models' next-token distributions differ on the same text, exactly, one tile of the vocabulary at a time.

Logits exist only for some tokens and some columns of the vocabulary, small enough for a processor's cache; what is
carried from tile to tile is the running maximum, the sum of exponents and the sum that becomes the divergence:

    KL(p || q) = sum of p (a - b) - log sum e^a + log sum e^b           for logits a of p and b of q

So a head of any size is read and widened once, and no distribution is ever held. It does not know how logits are made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from r1quant.errors import NumericError
from r1quant.metrics.divergence import TokenScores

ROWS, COLUMNS = 512, 2048  # of a tile on a processor: 4 MiB of float32
WIDER = 8  # times that in both directions on an accelerator
HEAD_ROWS = 16384  # of a head that are widened to float32 at a time


class Logits(Protocol):
    """The logits [n, vocabulary] that follow each of n tokens, made as they are asked for."""

    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def device(self) -> torch.device: ...
    def turn(self, columns: slice) -> None:
        """Makes ready for tiles of these columns."""

    def tile(self, rows: slice) -> torch.Tensor:
        """float32 [rows, columns turned to]; whoever asked may write into it."""

    def of(self, ids: torch.Tensor) -> torch.Tensor:
        """ids int64 [n] -> float32 [n]: one column in each row."""


class Projected:
    """Logits of final hidden states [n, hidden] under a head [vocabulary, hidden], both in any float dtype."""

    def __init__(self, hidden: torch.Tensor, head: torch.Tensor, device: torch.device) -> None:
        self.hidden, self.head, self.device = hidden, head, device
        self.shape = len(hidden), len(head)
        self.columns = torch.empty(0)

    def part(self, rows: slice) -> Projected:
        """Those of some of the states."""
        return Projected(self.hidden[rows], self.head, self.device)

    def turn(self, columns: slice) -> None:
        self.columns = self.head[columns].to(self.device, torch.float32).T

    def tile(self, rows: slice) -> torch.Tensor:
        return self._rows(rows) @ self.columns

    def of(self, ids: torch.Tensor) -> torch.Tensor:
        parts = [self._rows(rows) * self.head[ids[rows]].to(self.device, torch.float32) for rows in self._blocks()]
        return torch.cat([part.sum(1) for part in parts]).cpu()

    def pieces(self) -> Iterator[torch.Tensor]:
        """All of them, float32 [some, vocabulary] at a time."""
        with torch.inference_mode():
            for rows in self._blocks():
                parts = []
                for columns in spans(self.shape[1], HEAD_ROWS):
                    self.turn(columns)
                    parts.append(self.tile(rows))
                yield torch.cat(parts, 1)

    def _rows(self, rows: slice) -> torch.Tensor:
        return self.hidden[rows].to(self.device, torch.float32)

    def _blocks(self) -> Iterator[slice]:
        return spans(self.shape[0], ROWS)


class Given:
    """Logits that are there: float32 [n, vocabulary]."""

    def __init__(self, logits: torch.Tensor, device: torch.device) -> None:
        self._logits, self.device = logits, device
        self.shape = logits.shape[0], logits.shape[1]
        self._columns = slice(0)

    def turn(self, columns: slice) -> None:
        self._columns = columns

    def tile(self, rows: slice) -> torch.Tensor:
        return self._logits[rows, self._columns].to(self.device, copy=True)

    def of(self, ids: torch.Tensor) -> torch.Tensor:
        return self._logits.gather(1, ids[:, None])[:, 0]


@dataclass(frozen=True, eq=False)
class BaselineSummary:
    """All that a divergence needs of p if q is projected by the same head W.

    With logits W h, the sum of p b is (W' p) . h for the states h of q, so W' p, once known, stands for all of p:

        KL(p || q) = (W' p) . (h of p - h of q) - log sum e^a + log sum e^b

    output     float32 [n, hidden]: W' p, the mean of the head's rows under p
    log_total  float64 [n]: log sum e^a
    best       int64 [n]: the likeliest token
    nll        float64 [n]: negative log-probability of the token that came, in nats
    """

    output: npt.NDArray[np.float32]
    log_total: npt.NDArray[np.float64]
    best: npt.NDArray[np.int64]
    nll: npt.NDArray[np.float64]


def expected(p: Projected, coming: npt.NDArray[np.int64]) -> BaselineSummary:
    """Of a model on n tokens; coming int64 [n]. Raises NumericError if it gives NaN or Inf."""
    seen = OnlineSoftmax.start(p.shape[0], p.device)
    output = torch.zeros(p.hidden.shape, device=p.device)
    with torch.inference_mode():
        for columns, blocks in _tiles(p):
            p.turn(columns)
            for rows in blocks:
                shrink, weights = seen.add(rows, p.tile(rows), columns.start)
                output[rows] = output[rows] * shrink[:, None].float() + weights @ p.columns.T
        output /= seen.total[:, None].float()
        nll = _nll("baseline", seen, p, coming)
        log_total = _mended(seen, p)
    return BaselineSummary(output.cpu().numpy(), log_total.numpy(), seen.best.cpu().numpy(), nll)


def under_one_head(
    p: BaselineSummary, states: torch.Tensor, q: Projected, coming: npt.NDArray[np.int64]
) -> TokenScores:
    """As `distance`, for p with the final states [n, hidden] and q under the same head, of which p's logits are not
    made again. What rounding leaves has either sign."""
    seen = _gone_through(q)
    with torch.inference_mode():
        moved = torch.cat(
            [
                (torch.from_numpy(p.output[rows]).double() * (states[rows].double() - q.hidden[rows].double())).sum(1)
                for rows in spans(q.shape[0], ROWS)
            ]
        )
        kl = moved.numpy() - p.log_total + _mended(seen, q).numpy()
        nll = _nll("quantized model", seen, q, coming)
    return TokenScores(p.nll, nll, kl, p.best == seen.best.cpu().numpy())


def likelihood(p: Logits, coming: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """The negative log-probability of each of the tokens that came, int64 [n] -> float64 [n], in nats."""
    with torch.inference_mode():
        return _nll("baseline", _gone_through(p), p, coming)


def distance(p: Logits, q: Logits, coming: npt.NDArray[np.int64]) -> TokenScores:
    """Both models on the same n tokens; coming int64 [n]: the tokens that really followed.

    Raises NumericError if a model gives NaN or Inf.
    """
    first, second = (OnlineSoftmax.start(p.shape[0], p.device) for _ in "pq")
    product = torch.zeros(p.shape[0], dtype=torch.float64, device=p.device)
    with torch.inference_mode():
        for columns, blocks in _tiles(p):
            p.turn(columns)
            q.turn(columns)
            for rows in blocks:
                a, b = p.tile(rows), q.tile(rows)
                shrink, weights = first.add(rows, a, columns.start)
                second.add(rows, b, columns.start)
                product[rows] = product[rows] * shrink + torch.linalg.vecdot(weights, a.sub_(b)).double()
        kl = (product / first.total - first.log_total + second.log_total).clamp_min(0)
        nll = _nll("baseline", first, p, coming), _nll("quantized model", second, q, coming)
    if not bool(torch.isfinite(kl).all()):  # -Inf where no token that came is: in the first NaN, in the second Inf
        raise _no_number("baseline" if bool(kl.isnan().any()) else "quantized model")
    return TokenScores(*nll, kl.cpu().numpy(), (first.best == second.best).cpu().numpy())


@torch.inference_mode()
def _gone_through(logits: Logits) -> OnlineSoftmax:
    seen = OnlineSoftmax.start(logits.shape[0], logits.device)
    for columns, blocks in _tiles(logits):
        logits.turn(columns)
        for rows in blocks:
            seen.add(rows, logits.tile(rows), columns.start)
    return seen


def _tiles(logits: Logits) -> Iterator[tuple[slice, Iterator[slice]]]:
    """Runs of columns, and for each the runs of rows."""
    (n, vocabulary), wider = logits.shape, 1 if logits.device.type == "cpu" else WIDER
    for columns in spans(vocabulary, COLUMNS * wider):
        yield columns, spans(n, ROWS * wider)


def _nll(name: str, seen: OnlineSoftmax, logits: Logits, coming: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    of_coming = logits.of(torch.from_numpy(coming)).cpu().double()
    nll: npt.NDArray[np.float64] = (seen.log_total.cpu() - of_coming).numpy()
    if not np.isfinite(nll).all():
        raise _no_number(name)
    return nll


def _no_number(name: str) -> NumericError:
    return NumericError(f"the {name} gives NaN or Inf on this text", "use --dtype float32")


def _mended(seen: OnlineSoftmax, logits: Projected) -> torch.Tensor:
    """The log of the sum of exponents, float64 [n], its largest term made again in float64.

    A rounded logit moves the sum by its share of it, so that of the likeliest token is most of what rounding does. In a
    divergence from tiles of both models such errors cancel; here they would not.
    """
    log_total, highest = seen.log_total.cpu(), seen.highest.cpu().double()
    ids = seen.best.cpu()
    exact = torch.cat(
        [
            (logits.hidden[rows].double() * logits.head[ids[rows]].double()).sum(1)
            for rows in spans(logits.shape[0], ROWS)
        ]
    )
    return log_total + (highest - log_total).exp() * (exact - highest)


@dataclass(frozen=True, eq=False)
class OnlineSoftmax:
    """What is known of n distributions from the columns seen so far.

    highest  float32 [n]: the largest logit; best int64 [n]: its column
    total    float64 [n]: the sum of exp(logit - highest)
    """

    highest: torch.Tensor
    best: torch.Tensor
    total: torch.Tensor

    @staticmethod
    def start(n: int, device: torch.device) -> OnlineSoftmax:
        return OnlineSoftmax(
            torch.full((n,), -torch.inf, device=device),
            torch.zeros(n, dtype=torch.int64, device=device),
            torch.zeros(n, dtype=torch.float64, device=device),
        )

    @property
    def log_total(self) -> torch.Tensor:
        """float64 [n]: the log of the sum of exp(logit)."""
        return self.highest.double() + self.total.log()

    def add(self, rows: slice, logits: torch.Tensor, offset: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Takes in a tile [r, c] whose first column is `offset`.

        The factor [r] by which sums over earlier columns shrink, and exp(logit - highest) [r, c].
        """
        before = self.highest[rows]
        found = logits.amax(1)
        higher = (found > before).nonzero()[:, 0]  # the fewer, the more columns have been seen
        self.best[rows][higher] = logits[higher].argmax(1) + offset
        after = torch.maximum(found, before)
        shrink, weights = (before - after).exp().double(), (logits - after[:, None]).exp_()
        self.highest[rows] = after
        self.total[rows] = self.total[rows] * shrink + weights.sum(1)
        return shrink, weights


def spans(length: int, step: int) -> Iterator[slice]:
    return (slice(start, min(start + step, length)) for start in range(0, length, step))
