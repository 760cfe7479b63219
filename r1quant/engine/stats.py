"""Stats: what a rounding method may know about a linear layer, gathered from its inputs.

The Hessian H = X^T X over all calibration tokens is summed chunk by chunk. Inputs stored in bfloat16 are multiplied
as such with float32 accumulation, which is exact for the products; the sum is never rounded to bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

PANELS = 4  # of the Hessian, each computed from its block on the diagonal to the right


@dataclass(frozen=True, eq=False)
class Stats:
    """Statistics of one linear, or of several that share their K inputs.

    hessian   float32 [K, K], the sum of w x x^T over the inputs x, w their weights, 1 on average
    tokens    how many inputs were summed
    outputs   float32 [n, n] of each run of outputs in turn, the mean of g g^T over the gradients g there: the blocks on
              the diagonal of H_O; None if no gradient is known
    """

    hessian: torch.Tensor
    tokens: int
    outputs: tuple[torch.Tensor, ...] | None = None

    @property
    def dead(self) -> torch.Tensor:
        """bool [K]: input channels that were zero in every token."""
        return self.hessian.diagonal() == 0

    def importance(self, damping: float) -> npt.NDArray[np.float32]:
        """float32 [K], 1 on average: what an error in each input channel counts, the diagonal of the Hessian with a
        share of its mean added."""
        diagonal = self.hessian.diagonal()
        floor = max(float(diagonal.mean()) * damping, torch.finfo(torch.float32).tiny)
        importance: npt.NDArray[np.float32] = (diagonal + floor).cpu().numpy()
        importance /= importance.mean()
        return importance

    @property
    def finite(self) -> bool:
        """Whether every input was finite: NaN and Inf always reach the diagonal."""
        return bool(torch.isfinite(self.hessian.diagonal()).all())


@contextmanager
def bfloat16_products(allowed: bool) -> Iterator[None]:
    """Inside, a float32 matrix product on the CPU may multiply in bfloat16; it still accumulates in float32."""
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    if allowed:
        products.fp32_precision = "bf16"
    try:
        yield
    finally:
        products.fp32_precision = before


def add_gram(total: torch.Tensor, x: torch.Tensor) -> None:
    """Adds x^T x to total [K, K], x [T, K], but for the blocks below those on the diagonal, which `mirrored` fills: a
    third less work, as the sum is symmetric."""
    for run in _panels(len(total)):
        right = total[run, run.start :]
        torch.addmm(right, x[:, run].T, x[:, run.start :], out=right)


def mirrored(total: torch.Tensor) -> torch.Tensor:
    """The same tensor, with the blocks filled that `add_gram` leaves out."""
    for run in _panels(len(total)):
        total[run.stop :, run] = total[run, run.stop :].T
    return total


def _panels(columns: int) -> list[slice]:
    return [slice(columns * i // PANELS, columns * (i + 1) // PANELS) for i in range(PANELS)]


class HessianAccumulator:
    """Statistics as they grow, of linears that share their input and the weights of tokens.

    weights   float32 [T], of the first tokens that will come; those after them have their mean. None: all count alike
    outputs   as in Stats
    drift     float32 [N, K]: the sum of w d x^T, d what an output lacks of the one that is aimed at even before
              anything is rounded; None before any output is said to lack something
    """

    def __init__(
        self,
        columns: int,
        device: torch.device,
        weights: torch.Tensor | None = None,
        outputs: tuple[torch.Tensor, ...] | None = None,
    ) -> None:
        self._hessian = torch.zeros(columns, columns, device=device)
        self.drift: torch.Tensor | None = None
        self._root_weights = None if weights is None else (weights / weights.mean()).sqrt().to(device)
        self._outputs, self._tokens = outputs, 0

    def add(self, inputs: torch.Tensor, missing: torch.Tensor | None = None) -> None:
        """inputs [..., K], bfloat16 or float32; missing [..., N], what their outputs lack, in the same dtype.

        If they are bfloat16, the drift of one call is rounded to it: that of so few tokens is off by far more, and it
        need not be definite.
        """
        device = self._hessian.device
        flat = inputs.reshape(-1, len(self._hessian)).to(device)
        roots = self._next_roots(len(flat))
        self._tokens += len(flat)
        x = flat.float() if roots is None else flat * roots
        with bfloat16_products(flat.dtype == torch.bfloat16 and device.type == "cpu"):
            add_gram(self._hessian, x)
        if missing is None:
            return
        d = missing.reshape(len(flat), -1).to(device)
        if roots is not None:
            d = d * roots.square()
        dtype = torch.bfloat16 if flat.dtype == torch.bfloat16 else torch.float32
        drift = (d.to(dtype).T @ flat.to(dtype)).float()
        self.drift = drift if self.drift is None else self.drift.add_(drift)

    def _next_roots(self, tokens: int) -> torch.Tensor | None:
        """float32 [tokens, 1]: the square roots of the weights of the tokens that come next."""
        if self._root_weights is None:
            return None
        given = self._root_weights[self._tokens : self._tokens + tokens]
        return torch.nn.functional.pad(given, (0, tokens - len(given)), value=1.0)[:, None]

    @property
    def stats(self) -> Stats:
        return Stats(mirrored(self._hessian), self._tokens, self._outputs)


def gather(chunks: Iterable[torch.Tensor], columns: int, device: torch.device) -> Stats:
    """The statistics of inputs given as chunks [..., K], all of which count alike."""
    accumulator = HessianAccumulator(columns, device)
    for chunk in chunks:
        accumulator.add(chunk)
    return accumulator.stats
