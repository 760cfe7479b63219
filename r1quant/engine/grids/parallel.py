"""Compiled loops over rows, on as many threads as torch computes with, which they leave as it was.

numba takes a thread for every processor, and torch, which shares its OpenMP, would go on with as many: what is
computed after the first loop would have other last bits than before it, and than in a run that is resumed there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numba
import torch

R = TypeVar("R")


def over_rows(fastmath: bool | set[str] = False) -> Callable[[Callable[..., R]], Callable[..., R]]:
    """Compiles a function with loops of numba.prange; no other compiled function can call it. fastmath as in numba."""

    def compiled(function: Callable[..., R]) -> Callable[..., R]:
        kernel = numba.njit(cache=True, parallel=True, fastmath=fastmath)(function)

        @wraps(function)
        def call(*arguments: Any) -> R:
            threads = torch.get_num_threads()
            numba.set_num_threads(min(threads, numba.config.NUMBA_NUM_THREADS))
            try:
                done: R = kernel(*arguments)
            finally:
                if torch.get_num_threads() != threads:
                    torch.set_num_threads(threads)
            return done

        return call

    return compiled
