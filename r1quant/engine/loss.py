"""What rounding a linear costs, to second order, whatever method it was rounded by."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from r1quant.core.qlinear import QuantizedLinear
from r1quant.engine.stats import Stats

Rows = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Loss:
    """Of each row w of a weight and q of what it was rounded to, float64 [N], means over the calibration tokens.

    loss          (w - q) H (w - q)^T
    energy        w H w^T, to which the loss compares
    predicted_kl  if H_O is known: the row's share of 1/2 tr(H_O (W - Q) H (W - Q)^T), in nats
    """

    loss: Rows
    energy: Rows
    predicted_kl: Rows | None


def loss_of(weight: torch.Tensor, q: QuantizedLinear, stats: Stats) -> Loss:
    """weight: float32 [N, K], on the device of the statistics."""
    error = weight - torch.from_numpy(q.dequantize()).to(weight.device)
    error_h = error @ stats.hessian
    loss = _products(error_h, error) / stats.tokens
    energy = _products(weight @ stats.hessian, weight) / stats.tokens
    return Loss(loss, energy, None if stats.outputs is None else kl_by_row(error, error_h, stats))


def kl_by_row(error: torch.Tensor, error_h: torch.Tensor, stats: Stats) -> Rows:
    """The KL divergence per token that an error E of a weight costs, 1/2 tr(H_O E H E^T), in nats, as shares of rows.

    error    float32 [N, K], E
    error_h  float32 [N, K], E H
    stats    with the outputs that H_O is made of

    Returns float64 [N]. A share may be below zero, their sum not.
    """
    assert stats.outputs is not None
    shares, start = [], 0
    for covariance in stats.outputs:
        rows = slice(start, start + len(covariance))
        shares.append(_products(covariance.to(error.device) @ error[rows], error_h[rows]))
        start += len(covariance)
    return np.concatenate(shares) / 2 / stats.tokens


def _products(rows: torch.Tensor, others: torch.Tensor) -> Rows:
    """The inner products of rows with those of the same number, float64 [N]."""
    return (rows * others).sum(1, dtype=torch.float64).cpu().numpy()
