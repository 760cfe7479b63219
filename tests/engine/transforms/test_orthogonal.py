"""Rotations are orthogonal, spread evenly, and are the same every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r1quant.engine.transforms.orthogonal import paley, rotation

HADAMARD = (1, 2, 4, 12, 16, 20, 28, 48, 64, 96, 128, 256, 576, 896, 1536, 3584, 4096)


def dense(size: int, *seed: int) -> np.ndarray:
    return rotation(size, *seed)(torch.eye(size)).double().numpy()


@pytest.mark.parametrize("size", [*HADAMARD, 3, 6, 104, 208])
def test_orthogonal(size: int) -> None:
    q = dense(size, 0)
    assert np.abs(q @ q.T - np.eye(size)).max() < 1e-5


@pytest.mark.parametrize("size", HADAMARD)
def test_every_entry_has_the_same_magnitude(size: int) -> None:
    assert np.abs(np.abs(dense(size, 0)) - size**-0.5).max() < 1e-6


@pytest.mark.parametrize("size", [12, 20, 24, 28, 36, 44, 60, 68, 76, 84])
def test_paley_matrices_are_hadamard(size: int) -> None:
    h = paley(size)
    assert h is not None
    assert np.array_equal(np.abs(h), np.ones((size, size)))
    assert np.array_equal(h @ h.T, size * np.eye(size))


@pytest.mark.parametrize("size", [2, 6, 40, 52, 56])
def test_sizes_that_paley_does_not_reach(size: int) -> None:
    """40 = 3 * 13 + 1 and 2 (19 + 1), 52 = 2 (25 + 1): neither prime, or of the wrong remainder."""
    assert paley(size) is None


def test_rows_and_blocks_are_turned_alike() -> None:
    turn, x = rotation(12, 1), torch.randn(3, 5, 24, generator=torch.Generator().manual_seed(0))
    q = torch.from_numpy(dense(12, 1)).float()
    expected = torch.cat([x[..., :12] @ q, x[..., 12:] @ q], -1)
    assert (turn(x) - expected).abs().max() < 1e-5


def test_the_seed_decides() -> None:
    assert np.array_equal(dense(104, 3), dense(104, 3))
    assert not np.array_equal(dense(104, 3), dense(104, 4))
    assert not np.array_equal(dense(64, 3, 0), dense(64, 3, 1))
