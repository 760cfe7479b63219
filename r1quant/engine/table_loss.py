"""What rounding the embedding or the head costs, to second order, told from the few rows that a text needs of them.

Logits that are off by d cost a KL divergence of 1/2 Var_p(d) = 1/4 E (d_v - d_w)^2, v and w two tokens drawn from p: of
two draws at each of some positions this is the mean, and no other rows of the head need be rounded. A row of the
embedding that is off by e costs 1/2 E (g e)^2, g the gradient at all its occurrences in a window together. Errors of
other rows, and in other columns, count as independent of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from r1quant.core.limits import HEAD_TOKENS
from r1quant.engine.forward import Decoder

POSITIONS = 8192  # at which tokens are drawn
EMBEDDED_ROWS = 4096  # rounded, those of the tokens that matter most


@dataclass(frozen=True, eq=False)
class DrawnTokens:
    """Two next tokens at each of T positions: first, second int64 [T]; hidden [T, K], what the head reads there."""

    first: torch.Tensor
    second: torch.Tensor
    hidden: torch.Tensor

    @property
    def rows(self) -> torch.Tensor:
        """int64 [n], ascending: the rows of the head that are asked for."""
        rows: torch.Tensor = torch.cat([self.first, self.second]).unique()
        return rows

    def loss(self, error: torch.Tensor) -> float:
        """In nats per token; error: float32 [n, K], of the rows."""
        rows = self.rows
        first, second = (error[torch.searchsorted(rows, drawn.contiguous())] for drawn in (self.first, self.second))
        apart = ((first - second) * self.hidden.float().to(error.device)).sum(1)
        return float(apart.double().square().mean()) / 4


def draw(decoder: Decoder, hidden: torch.Tensor, seed: int) -> DrawnTokens:
    """hidden: what comes out of the last layer, [windows, seq_len, width]; POSITIONS of them at the most are used."""
    flat = hidden.flatten(0, 1)
    step = max(1, len(flat) // POSITIONS)
    flat = flat[step // 2 :: step]
    head, generator = decoder.head(decoder.dtype), torch.Generator(decoder.device).manual_seed(seed)
    found = []
    for start in range(0, len(flat), HEAD_TOKENS):
        normed = decoder.final_norm(flat[None, start : start + HEAD_TOKENS])[0]
        odds = head.logits(normed).softmax(1)
        drawn = torch.multinomial(odds, 2, replacement=True, generator=generator).cpu()
        found.append((drawn[:, 0], drawn[:, 1], normed.cpu()))
    first, second, read = (torch.cat(parts) for parts in zip(*found, strict=True))
    return DrawnTokens(first, second, read)


@dataclass(frozen=True, eq=False)
class EmbeddingSensitivity:
    """What an error of the embedding costs; on the host.

    rows     float32 [V], for each token the sum of |g|^2 over the windows, divided by the number of all tokens
    columns  float32 [K]: the share of each column in it
    """

    rows: torch.Tensor
    columns: torch.Tensor

    @property
    def used(self) -> torch.Tensor:
        """int64 [n]: the rows that say the loss."""
        most = min(EMBEDDED_ROWS, int((self.rows > 0).sum()))
        return torch.sort(self.rows.topk(most).indices).values

    def loss(self, error: torch.Tensor) -> float:
        """In nats per token; error: float32 [n, K], of the rows `used`, in the scale of what enters the first layer."""
        weights = self.rows[self.used].double()
        lost = weights @ (error.cpu().square() @ self.columns).double()
        return float(lost / weights.sum().clamp(min=1e-300) * self.rows.double().sum()) / 2


def embedding_sensitivity(tokens: torch.Tensor, gradient: torch.Tensor, vocabulary: int) -> EmbeddingSensitivity:
    """tokens: int64 [windows, seq_len]; gradient: [windows, seq_len, K], at what enters the first layer."""
    rows, columns = torch.zeros(vocabulary), torch.zeros(gradient.shape[-1])
    for window, of_window in zip(tokens, gradient, strict=True):
        ids, places = window.unique(return_inverse=True)
        squares = torch.zeros(len(ids), len(columns)).index_add_(0, places, of_window.float().cpu()).square_()
        rows[ids] += squares.sum(1)
        columns += squares.sum(0)
    total = columns.sum()
    return EmbeddingSensitivity(rows / tokens.numel(), columns / torch.where(total > 0, total, 1))
