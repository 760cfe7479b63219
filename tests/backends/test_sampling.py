"""The choice of a token against a plain reference, its frequencies, and the loop of one text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from r1quant.backends import Prompt, Sampling, sampling
from r1quant.backends.sampling import choose, complete, follow, room
from r1quant.errors import NumericError, RecipeError

NEAR = 1e-5  # float32 against float64: closer to a border than this, either side is right
PROMPT = Prompt("p", (), (5, 6, 7), seed=3)


def reference(logits: np.ndarray, temperature: float, top_p: float, u: float) -> tuple[int, float]:
    """One row in float64, and how far the choice is from any border."""
    if temperature == 0:
        return int(logits.argmax()), 1.0
    weights = np.exp((logits - logits.max()) / temperature)
    p = weights / weights.sum()
    order = sorted(range(len(logits)), key=lambda i: (-p[i], i))
    total = np.cumsum(p[order])
    kept = sorted(order if top_p >= 1 else order[: int(np.argmax(total >= top_p)) + 1])
    share = np.cumsum(p[kept]) / p[kept].sum()
    borders = [*(abs(share - u)), *([] if top_p >= 1 else abs(total - top_p))]
    return kept[int(np.argmax(share > u))], float(min(borders))


def draw(logits: np.ndarray, how: Sampling, u: Sequence[float]) -> list[int]:
    return choose(torch.from_numpy(logits), how, torch.tensor(u, dtype=torch.float64)).tolist()


@settings(max_examples=150, deadline=None)
@given(
    vocabulary=st.sampled_from([1, 2, 7, 64, 65, 300, 1024, 1500]),
    seed=st.integers(0, 2**32 - 1),
    scale=st.sampled_from([0.0, 0.1, 1.0, 5.0, 40.0]),
    steps=st.sampled_from([0, 1, 4]),
    temperature=st.sampled_from([0.0, 0.05, 0.6, 1.0, 3.0]),
    top_p=st.floats(0.01, 1.0),
    u=st.floats(0, 1, exclude_max=True),
)
def test_choice_is_that_of_the_reference(
    vocabulary: int, seed: int, scale: float, steps: int, temperature: float, top_p: float, u: float
) -> None:
    """steps: logits are multiples of 1 / steps, so that many are equal."""
    logits = (np.random.default_rng(seed).standard_normal(vocabulary) * scale).astype(np.float32)
    if steps:
        logits = np.round(logits * steps) / np.float32(steps)
    wanted, border = reference(logits.astype(np.float64), temperature, top_p, u)
    assume(border > NEAR)
    assert draw(logits[None], Sampling(temperature, top_p), [u]) == [wanted]


def test_golden_equals_are_taken_in_the_order_of_their_ids() -> None:
    logits = np.log(np.array([[1, 2, 2, 1, 2]], np.float32) / 8)
    for u, wanted in ((0, 1), (0.33, 1), (0.34, 2), (0.66, 2), (0.67, 4), (0.999, 4)):
        assert draw(logits, Sampling(1.0, 0.7), [u]) == [wanted]  # 3 of 8 * 2 = 0.75
        assert draw(logits, Sampling(1.0, 0.51), [u]) == [wanted]  # the token that crosses is kept
    assert [draw(logits, Sampling(1.0, 1.0), [u])[0] for u in (0.1, 0.2, 0.5, 0.7, 0.8)] == [0, 1, 2, 3, 4]


def test_equals_at_the_border_of_the_candidates_are_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sampling, "CANDIDATES", (4, 16))
    flat = np.zeros((40, 40), np.float32)
    u = [(i + 0.5) / 40 for i in range(40)]
    assert draw(flat, Sampling(1.0, 1.0), u) == list(range(40))
    assert draw(flat, Sampling(1.0, 0.499), u) == [i // 2 for i in range(40)]
    flat[:, 30:] = 20.0  # ten likely ones, the rest as good as nothing
    assert draw(flat, Sampling(1.0, 0.85), u) == [30 + int(9 * x) for x in u]


def test_frequencies_are_those_of_the_nucleus() -> None:
    rng, draws = np.random.default_rng(8), 40_000
    logits = rng.standard_normal(50).astype(np.float32) * 2
    p = np.exp(logits.astype(np.float64) / 0.8)
    p /= p.sum()
    order = np.argsort(-p)
    kept = order[: int(np.argmax(np.cumsum(p[order]) >= 0.9)) + 1]
    nucleus = np.zeros(50)
    nucleus[kept] = p[kept] / p[kept].sum()
    found = np.bincount(draw(np.tile(logits, (draws, 1)), Sampling(0.8, 0.9), rng.random(draws).tolist()), minlength=50)
    assert 5 < len(kept) < 40 and found[nucleus == 0].sum() == 0

    def chi_square(expected: np.ndarray) -> float:
        return float(((found[kept] - draws * expected[kept]) ** 2 / (draws * expected[kept])).sum())

    freedom = len(kept) - 1
    limit = freedom + 4 * np.sqrt(2 * freedom)  # four deviations
    assert chi_square(nucleus) < limit
    assert chi_square(p) > 10 * limit  # the distribution before it was cut is told apart


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_no_temperature_and_hardly_any_take_the_likeliest(dtype: torch.dtype) -> None:
    logits = (torch.randn(9, 700, generator=torch.Generator().manual_seed(1)) * 30).to(dtype)
    logits[0, :] = -3.0
    logits[1, 5:] = logits[1].max() + 1
    u = torch.full((9,), 0.999, dtype=torch.float64)
    wanted = logits.float().numpy().argmax(1).tolist()
    assert wanted[:2] == [0, 5]
    assert choose(logits, Sampling(0.0, 0.95), u).tolist() == wanted
    likely = slice(2, 9)
    assert choose(logits[likely], Sampling(1e-9, 0.5), u[likely] * 0).tolist() == wanted[likely]
    assert choose(logits, Sampling(1.0, 1e-9), u).tolist() == wanted


def test_a_row_does_not_know_the_others() -> None:
    """Rows that are done with few candidates, and rows that need all."""
    logits = torch.randn(12, 3000, generator=torch.Generator().manual_seed(2)) * torch.logspace(-2, 1.5, 12)[:, None]
    u = torch.from_numpy(np.random.default_rng(3).random(12))
    together = choose(logits, Sampling(1.0, 0.98), u)
    alone = [int(choose(logits[i : i + 1], Sampling(1.0, 0.98), u[i : i + 1])) for i in range(12)]
    assert together.tolist() == alone
    assert choose(logits.flip(0), Sampling(1.0, 0.98), u.flip(0)).flip(0).tolist() == alone


class Counter:
    """A model that likes the token after the last one best, and counts how often it is asked."""

    def __init__(self, vocabulary: int = 40, height: float = 30.0) -> None:
        self.vocabulary, self.height, self.steps = vocabulary, height, 0

    def begin(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        return self._after(int(tokens[-1]))

    def step(self, token: int) -> np.ndarray:
        self.steps += 1
        return self._after(token)

    def _after(self, token: int) -> np.ndarray:
        logits = np.zeros(self.vocabulary, np.float32)
        logits[(token + 1) % self.vocabulary] = self.height
        return logits


def test_a_text_ends_at_a_stop_token_or_is_cut() -> None:
    model = Counter()
    done = complete(model.begin, model.step, PROMPT, Sampling(0.0), frozenset([10, 30]), most=50)
    assert done.ids == (8, 9, 10) and done.count == 3 and done.finished and done.key == "p" and done.text == ""
    assert len(done.moments) == 3 and 0 < done.moments[0] <= done.moments[1] <= done.moments[2]
    assert model.steps == 2  # what follows the last token is not computed
    cut = complete(model.begin, model.step, PROMPT, Sampling(0.0), frozenset([10]), most=2)
    assert cut.ids == (8, 9) and not cut.finished
    none = complete(model.begin, model.step, PROMPT, Sampling(0.0), frozenset([10]), most=0)
    assert none.ids == () and none.count == 0 and not none.finished and none.moments == ()


def test_draws_are_those_of_the_seed_one_a_token() -> None:
    flat, how = Counter(height=0.0), Sampling(1.0, 1.0)
    wanted = [int(u * 40) for u in np.random.default_rng(3).random(30)]
    assert list(islice(follow(flat.begin, flat.step, PROMPT.tokens, how, 3), 30)) == wanted
    made = complete(flat.begin, flat.step, PROMPT, how, frozenset(), 30)
    assert list(made.ids) == wanted
    other = complete(flat.begin, flat.step, replace(PROMPT, seed=4), how, frozenset(), 30)
    assert other.ids != made.ids


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_an_error(bad: float) -> None:
    def step(token: int) -> np.ndarray:
        return np.array([0.0, bad, 1.0], np.float32)

    tokens = follow(lambda _: np.zeros(3, np.float32), step, [1])
    assert next(tokens) == 0
    with pytest.raises(NumericError, match="NaN or Inf"):
        next(tokens)


def test_room_is_what_is_left_of_the_context() -> None:
    assert room(PROMPT, Sampling(max_tokens=5), 100, 40) == 5
    assert room(PROMPT, Sampling(max_tokens=500), 100, 40) == 98  # the last one needs no place
    assert room(PROMPT, Sampling(max_tokens=5), 3, 40) == 1
    assert room(PROMPT, Sampling(max_tokens=5), 2, 40) == 0
    for tokens, vocabulary in (((), 40), ((1, 40), 40), ((-1, 3), 40)):
        with pytest.raises(RecipeError, match="'p' has"):
            room(replace(PROMPT, tokens=tokens), Sampling(), 100, vocabulary)
