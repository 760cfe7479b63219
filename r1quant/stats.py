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


@dataclass(frozen=True, eq=False)
class Stats:
    """hessian: float32 [K, K], the sum of x x^T over the inputs; tokens: how many inputs were summed."""

    hessian: torch.Tensor
    tokens: int

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


def gather(chunks: Iterable[torch.Tensor], columns: int, device: torch.device) -> Stats:
    """The statistics of inputs given as chunks [..., K], bfloat16 or float32; H is built on `device`."""
    tokens = 0
    hessian = torch.zeros(columns, columns, device=device)
    for chunk in chunks:
        inputs = chunk.reshape(-1, columns)
        tokens += len(inputs)
        exact_in_bfloat16 = inputs.dtype == torch.bfloat16 and device.type == "cpu"
        with bfloat16_products(exact_in_bfloat16):
            wide = inputs.to(device, torch.float32)
            torch.addmm(hessian, wide.T, wide, out=hessian)
    return Stats(hessian, tokens)
