"""Compiled loops leave torch the threads that it has, so a run computes alike before and after the first."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from r1quant.core.blocktypes import BlockGrid
from r1quant.engine.grids.rounding import nearest

PROGRAM = """
import numpy as np, torch
from r1quant.core.grid import Grid
from r1quant.engine.grids.rounding import nearest
before = torch.get_num_threads()
nearest(np.ones((8, 64), np.float32), Grid(4, 32), None, False)
print(before, torch.get_num_threads())
"""


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 3, 64])
def test_torch_keeps_its_threads(count: int, threads: int) -> None:
    torch.set_num_threads(count)
    weight = np.random.default_rng(0).standard_normal((16, 256)).astype(np.float32)
    nearest(weight, BlockGrid("Q4_K"), None, True)
    assert torch.get_num_threads() == count


@pytest.mark.parametrize("count", ["1", "2", None])
def test_so_it_does_from_the_start_of_a_process(count: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if count is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", count)
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    before, after = done.stdout.split()
    assert before == after
    assert count != "1" or before == "1"
