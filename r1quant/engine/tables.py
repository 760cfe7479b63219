"""Rounds the embedding and the head: matrices with a row for each token of the vocabulary, a piece of rows at a time.

The head is rounded like any other linear, by the statistics of what it reads. A row of the embedding is read as it is,
and nothing follows from its neighbours: it is rounded to nearest.
"""

from __future__ import annotations

import torch

from r1quant.core.grid import ValueGrid
from r1quant.core.limits import TABLE_WEIGHTS
from r1quant.core.qlinear import QuantizedLinear
from r1quant.engine.forward import Decoder, chunked, scaled
from r1quant.engine.grids.rounding import nearest
from r1quant.engine.linear_report import Rounded
from r1quant.engine.methods.method import RoundingOptions, rounding_by
from r1quant.engine.stats import HessianAccumulator, Stats
from r1quant.recipe import Recipe
from r1quant.records.quantization import LinearReport


def embed_rounded(decoder: Decoder, tokens: torch.Tensor, grid: ValueGrid, search: bool) -> torch.Tensor:
    """What enters the first layer if the embedding is rounded; as Decoder.embed. Only rows that occur are rounded."""
    used, places = torch.unique(tokens, return_inverse=True)
    rows = decoder.weights.read(decoder.arch.tensors.embedding)[used].float()
    rounded = torch.from_numpy(nearest(rows.numpy(), grid, None, search).dequantize()).to(decoder.dtype)
    return scaled(rounded[places], decoder.weights.config, decoder.arch)


def head_statistics(decoder: Decoder, hidden: torch.Tensor) -> Stats:
    """Of what the head reads. hidden: what comes out of the last layer, [windows, seq_len, width]."""
    sums = HessianAccumulator(hidden.shape[-1], decoder.device)
    for chunk in chunked(hidden):
        sums.add(decoder.final_norm(chunk))
    return sums.stats


def round_table(name: str, weight: torch.Tensor, grid: ValueGrid, recipe: Recipe, stats: Stats | None) -> Rounded:
    """An embedding or a head [N, K] in any float dtype, on the host. stats: of the inputs of a head; None rounds to
    nearest."""
    options, step = RoundingOptions.of(recipe), max(1, TABLE_WEIGHTS // weight.shape[1])
    parts, lost, energy, worse, damping, fallback = list[QuantizedLinear](), 0.0, 0.0, 0, None, False
    for start in range(0, len(weight), step):
        exact = weight[start : start + step].float()
        if stats is None:
            q = nearest(exact.numpy(), grid, None, options.search)
        else:
            solved = rounding_by(recipe.method)(exact.to(stats.hessian.device), stats, grid, options)
            q, damping, fallback = solved.qlinear, solved.damping, solved.fallback
            worse += 0 if solved.rows_nearest is None else int(solved.rows_nearest.sum())
        error = exact - torch.from_numpy(q.dequantize())
        lost, energy = lost + _form(error, stats), energy + _form(exact, stats)
        parts.append(q)
    whole = parts[0] if len(parts) == 1 else type(parts[0]).stack(parts)
    loss = None if stats is None else lost / stats.tokens
    raised = damping is not None and damping > recipe.damping
    dead = 0 if stats is None else int(stats.dead.sum())
    relative = lost / energy if energy else 0.0
    return Rounded(name, whole, LinearReport(name, loss, relative, damping, dead, worse, fallback, None, raised))


def _form(rows: torch.Tensor, stats: Stats | None) -> float:
    """The sum of row H row^T, H the identity without statistics."""
    if stats is None:
        return float(rows.square().sum(dtype=torch.float64))
    moved = rows.to(stats.hessian.device)
    return float(((moved @ stats.hessian) * moved).sum(dtype=torch.float64))
