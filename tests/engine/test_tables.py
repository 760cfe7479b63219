"""Embedding and head are rounded a piece of rows at a time, as if they were rounded whole."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.safetensors import open_folder
from r1quant.core.blocktypes import BlockGrid
from r1quant.core.grid import Grid, ValueGrid
from r1quant.engine import tables
from r1quant.engine.forward import Decoder
from r1quant.engine.linear_report import Rounded
from r1quant.engine.stats import Stats
from r1quant.recipe import Recipe

ROWS, COLUMNS = 37, 256
GRIDS: tuple[ValueGrid, ...] = (Grid(4, 64), BlockGrid("Q4_K"), BlockGrid("Q6_K"), BlockGrid("Q8_0"), BlockGrid("Q5_1"))
RECIPE = Recipe(format="gguf")


def weight(dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(1)).to(dtype)


def stats() -> Stats:
    inputs = torch.randn(600, COLUMNS, generator=torch.Generator().manual_seed(2))
    inputs[:, ::3] *= 4
    return Stats(inputs.T @ inputs, len(inputs))


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: getattr(grid, "type", grid.kind))
@pytest.mark.parametrize("read", [False, True], ids=["embedding", "head"])
def test_pieces_of_rows_are_the_whole(grid: ValueGrid, read: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def made() -> Rounded:
        return tables.round_table("table", weight(), grid, RECIPE, stats() if read else None)

    whole = made()
    monkeypatch.setattr(tables, "TABLE_WEIGHTS", 5 * COLUMNS)
    pieces = made()
    assert whole.qlinear.shape == (ROWS, COLUMNS)
    expected = whole.qlinear.arrays()
    assert all(np.array_equal(array, expected[name]) for name, array in pieces.qlinear.arrays().items())
    assert pieces.report.relative_loss == pytest.approx(whole.report.relative_loss, rel=1e-5)
    assert pieces.report.rows_nearest == whole.report.rows_nearest


def test_what_was_lost_is_what_the_report_says() -> None:
    exact, found = weight().double(), stats()
    for read in (False, True):
        rounded = tables.round_table("table", weight(), BlockGrid("Q4_K"), RECIPE, found if read else None)
        error = exact - torch.from_numpy(rounded.qlinear.dequantize()).double()
        form = found.hessian.double() if read else torch.eye(COLUMNS, dtype=torch.float64)
        lost, energy = (float(((rows @ form) * rows).sum()) for rows in (error, exact))
        assert rounded.report.relative_loss == pytest.approx(lost / energy, rel=1e-4)
        assert rounded.report.loss == (pytest.approx(lost / found.tokens, rel=1e-4) if read else None)


def test_a_head_loses_less_by_what_it_reads() -> None:
    form, losses = stats().hessian, []
    for read in (False, True):
        rounded = tables.round_table("head", weight(), BlockGrid("Q4_K"), RECIPE, stats() if read else None)
        error = weight().float() - torch.from_numpy(rounded.qlinear.dequantize())
        losses.append(float(((error @ form) * error).sum()))
    assert losses[1] < 0.9 * losses[0]


def test_rows_of_the_embedding_are_those_of_the_whole_table_and_the_head_reads_normed_states(llama: Path) -> None:
    checkpoint = open_folder(llama)
    arch = architecture_of(checkpoint.config)
    decoder = Decoder(checkpoint, arch, torch.device("cpu"), torch.float32, 8)
    grid, tokens = BlockGrid("Q5_1"), torch.tensor([[5, 9, 5, 0], [9, 9, 400, 2]])
    with torch.no_grad():
        entering = tables.embed_rounded(decoder, tokens, grid, search=True)
        table = checkpoint.read(arch.tensors.embedding)
        whole = tables.round_table("table", table, grid, RECIPE, None).qlinear.dequantize()
        assert torch.equal(entering, torch.from_numpy(whole)[tokens])
        read = decoder.final_norm(entering).reshape(-1, entering.shape[-1])
        found = tables.head_statistics(decoder, entering)
    assert found.tokens == 8 and torch.allclose(found.hessian, read.T @ read, rtol=1e-4, atol=1e-4)
