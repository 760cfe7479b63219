"""What an error of embedding or head costs, told from few rows, is what the whole matrix costs."""

from __future__ import annotations

import torch

from r1quant.engine.table_loss import DrawnTokens, EmbeddingSensitivity, embedding_sensitivity


def test_two_draws_at_each_position_give_half_the_variance_of_the_logits_errors() -> None:
    generator = torch.Generator().manual_seed(0)
    positions, width, vocabulary = 400, 8, 11
    hidden = torch.randn(positions, width, generator=generator)
    odds = torch.randn(positions, vocabulary, generator=generator).mul(2).softmax(1)
    error = torch.randn(vocabulary, width, generator=generator) / 100
    apart = hidden @ error.T
    mean = (odds * apart).sum(1, keepdim=True)
    exact = float((odds * (apart - mean) ** 2).sum(1).mean()) / 2
    found = []
    for _ in range(40):
        drawn = torch.multinomial(odds, 2, replacement=True, generator=generator)
        tokens = DrawnTokens(drawn[:, 0], drawn[:, 1], hidden)
        found.append(tokens.loss(error[tokens.rows]))
    assert abs(sum(found) / len(found) / exact - 1) < 0.03
    same = DrawnTokens(torch.zeros(4, dtype=torch.long), torch.zeros(4, dtype=torch.long), hidden[:4])
    assert same.loss(error[same.rows]) == 0


def test_an_embeddings_loss_counts_all_occurrences_of_a_token_in_a_window_together() -> None:
    tokens = torch.tensor([[3, 1, 3], [1, 1, 0]])
    gradient = torch.arange(12, dtype=torch.float32).reshape(2, 3, 2)
    found = embedding_sensitivity(tokens, gradient, 5)
    together = {(0, 3): [0 + 4, 1 + 5], (0, 1): [2, 3], (1, 1): [6 + 8, 7 + 9], (1, 0): [10, 11]}
    rows = [0.0] * 5
    for (_, token), (a, b) in together.items():
        rows[token] += (a * a + b * b) / 6
    assert torch.allclose(found.rows, torch.tensor(rows))
    assert found.used.tolist() == [0, 1, 3] and torch.isclose(found.columns.sum(), torch.ones(()))
    error = torch.full((3, 2), 0.5)
    assert abs(found.loss(error) / (sum(rows) * 0.25 / 2) - 1) < 1e-6


def test_rows_that_are_not_rounded_count_like_those_that_are() -> None:
    whole = EmbeddingSensitivity(torch.tensor([4.0, 0, 1, 3]), torch.tensor([0.5, 0.5]))
    assert abs(whole.loss(torch.ones(3, 2)) - 4.0) < 1e-6
    none = EmbeddingSensitivity(torch.zeros(4), torch.zeros(2))
    assert none.loss(torch.ones(len(none.used), 2)) == 0
