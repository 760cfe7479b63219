"""Stats: what a rounding method may know about a linear layer, gathered from its inputs.

The Hessian H = X^T X over all calibration tokens is summed chunk by chunk. Inputs stored in bfloat16 are multiplied
as such with float32 accumulation, which is exact for the products; the sum is never rounded to bfloat16.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

PANELS = 4  # of the Hessian, each computed from its block on the diagonal to the right


@dataclass(frozen=True, eq=False)
class Stats:
    """hessian   float32 [K, K], the sum of w x x^T over the inputs x, w their weights, 1 on average
    tokens    how many inputs were summed
    drift     float32 [N, K] or None: the sum of w d x^T, d what the output lacks of the one that is wanted even before
              anything is rounded
    outputs   float32 [n, n] of each run of outputs in turn, the mean of g g^T over the gradients g there; or None
    """

    hessian: torch.Tensor
    tokens: int
    drift: torch.Tensor | None = None
    outputs: tuple[torch.Tensor, ...] | None = None

    @property
    def dead(self) -> torch.Tensor:
        """bool [K]: input channels that were zero in every token."""
        return self.hessian.diagonal() == 0

    @property
    def finite(self) -> bool:
        """Whether every input was finite: NaN and Inf always reach the diagonal."""
        return bool(torch.isfinite(self.hessian.diagonal()).all())


@contextmanager
def bfloat16_products(wanted: bool) -> Iterator[None]:
    """Inside, a float32 matrix product on the CPU may multiply in bfloat16; it still accumulates in float32."""
    products: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = products.fp32_precision
    if wanted:
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


class Sums:
    """Statistics as they grow, of linears that share their input and the weights of tokens.

    weights   float32 [T], of the first tokens that will come; those after them have their mean. None: all count alike
    outputs   as in Stats
    """

    def __init__(
        self,
        columns: int,
        device: torch.device,
        weights: torch.Tensor | None = None,
        outputs: tuple[torch.Tensor, ...] | None = None,
    ) -> None:
        self._hessian = torch.zeros(columns, columns, device=device)
        self._drift: torch.Tensor | None = None
        self._roots = None if weights is None else (weights / weights.mean()).sqrt().to(device)
        self._outputs, self._tokens = outputs, 0

    def add(self, inputs: torch.Tensor, lacking: torch.Tensor | None = None) -> None:
        """inputs [..., K], bfloat16 or float32; lacking [..., N], what their outputs lack."""
        device = self._hessian.device
        flat = inputs.reshape(-1, len(self._hessian))
        parts = [flat] if lacking is None else [flat, lacking.reshape(len(flat), -1)]
        x, *rest = (part.to(device, torch.float32) for part in parts)
        if self._roots is not None:
            roots = self._roots[self._tokens : self._tokens + len(flat)]
            roots = torch.nn.functional.pad(roots, (0, len(flat) - len(roots)), value=1.0)[:, None]
            x, *rest = (part * roots for part in (x, *rest))
        self._tokens += len(flat)
        with bfloat16_products(flat.dtype == torch.bfloat16 and device.type == "cpu"):
            add_gram(self._hessian, x)
            for d in rest:
                if self._drift is None:
                    self._drift = torch.zeros(d.shape[1], x.shape[1], device=device)
                torch.addmm(self._drift, d.T, x, out=self._drift)

    def map(self, weight: torch.Tensor) -> None:
        """What was given as lacking were inputs [..., J] of a linear, weight float32 [N, J], not its outputs."""
        if self._drift is not None:
            self._drift = weight.to(self._drift.device) @ self._drift

    @property
    def stats(self) -> Stats:
        return Stats(mirrored(self._hessian), self._tokens, self._drift, self._outputs)


def gather(chunks: Iterable[torch.Tensor], columns: int, device: torch.device) -> Stats:
    """The statistics of inputs given as chunks [..., K], all of which count alike."""
    sums = Sums(columns, device)
    for chunk in chunks:
        sums.add(chunk)
    return sums.stats
