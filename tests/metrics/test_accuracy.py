"""Accuracy: the estimators against counting by hand, and intervals, test and power against simulated exams."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from r1quant.metrics import stats
from r1quant.metrics.accuracy import (
    accuracy_interval,
    delta_interval,
    difference,
    majority,
    p_value,
    pass_at,
    smallest_detectable,
    summary,
)
from r1quant.records.writing import as_json

Right = npt.NDArray[np.bool_]
SPREAD = 6.0  # of the difficulties, Beta(mean * SPREAD, (1 - mean) * SPREAD)


def exam(generator: np.random.Generator, problems: int, samples: int, mean: float, loss: float = 0.0) -> list[Right]:
    """Two models on problems of random difficulty. The second is right a share `loss` less often on each of them, and
    draws half of its samples as the first does. The true difference is -loss * mean."""
    chance = generator.beta(mean * SPREAD, (1 - mean) * SPREAD, (problems, 1))
    first, second, same = generator.random((3, problems, samples))
    return [first < chance, np.where(same < 0.5, first, second) < chance * (1 - loss)]


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fewer resamples an interval, more intervals a minute."""
    monkeypatch.setattr(stats, "RESAMPLES", 1500)


@pytest.mark.parametrize("problems", [30, 60, 400])
@pytest.mark.parametrize("mean", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("samples", [1, 4, 8])
def test_intervals_of_accuracy_cover_the_truth(problems: int, samples: int, mean: float) -> None:
    """The truth is drawn from near `mean`: at one truth alone, counts of 30 right or wrong answers come in steps."""
    generator = np.random.default_rng(3)
    runs = covered = 0
    for truth in np.repeat(np.linspace(mean - 0.02, mean + 0.02, 40), 30):
        found = accuracy_interval(exam(generator, problems, samples, truth)[0])
        assert found is not None
        covered += int(found.low <= truth <= found.high)
        runs += 1
    assert 0.93 <= covered / runs <= 0.97


@pytest.mark.parametrize(
    ("problems", "samples", "mean", "loss"),
    [(30, 4, 0.8, 0.05), (30, 8, 0.95, 0.05), (60, 1, 0.7, 0.1)],
)
def test_intervals_of_the_difference_cover_the_truth(
    problems: int, samples: int, mean: float, loss: float, quick: None
) -> None:
    generator = np.random.default_rng(4)
    runs, covered = 400, 0
    for _ in range(runs):
        found = delta_interval(*exam(generator, problems, samples, mean, loss))
        assert found is not None
        covered += found.low <= -loss * mean <= found.high
    assert 0.93 <= covered / runs <= 0.97


def test_where_nothing_differs_the_interval_is_wide_enough_for_what_was_not_seen(quick: None) -> None:
    """One problem in 40 loses its answer: most exams of 30 problems show one such problem or none."""
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        baseline = np.ones((30, 1), bool)
        found = delta_interval(baseline, generator.random((30, 1)) > 0.025)
        assert found is not None
        covered += found.low <= -0.025 <= found.high
    assert covered >= 0.95 * 200
    alike = difference(np.ones((30, 1), bool), np.ones((30, 1), bool))
    assert alike.delta == 0 and alike.p_value == 1 and alike.delta_ci95 is not None
    assert -0.12 < alike.delta_ci95.low < -0.05 and 0.05 < alike.delta_ci95.high < 0.12


def test_wilson_s_interval_by_hand() -> None:
    """Where each problem has one sample, 81 of 263: Newcombe, Statistics in Medicine 17 (1998), gives 0.2553 to 0.3662
    with the normal quantile; Student's with 262 degrees of freedom is 0.5 % larger."""
    found = accuracy_interval(np.arange(263)[:, None] < 81)
    assert found is not None and tuple(found) == pytest.approx((0.2553, 0.3662), abs=6e-4)
    assert accuracy_interval(np.ones((30, 4), bool)) == accuracy_interval(np.ones((30, 1), bool))
    perfect = accuracy_interval(np.ones((30, 1), bool))
    assert perfect is not None and tuple(perfect) == pytest.approx((0.8777, 1.0), abs=2e-3)
    assert accuracy_interval(np.ones((1, 4), bool)) is None


def test_majority() -> None:
    given: list[list[str | None]] = [
        ["7", "7", "8"],
        ["7", "8", "8"],
        ["7", "8", None],
        [None, None, "7"],
        [None, None, None],
        ["1/2", "0.5", "3"],
    ]
    judged = [
        [True, True, False],
        [True, False, False],
        [True, False, False],
        [False, False, True],
        [False] * 3,
        [True, True, False],
    ]
    right = np.array(judged)
    assert [majority(right[i : i + 1], given[i : i + 1]) for i in range(6)] == [1, 0, 0.5, 1, 0, 1]
    assert majority(right, given) == pytest.approx(3.5 / 6)
    assert majority(np.array([[False, False, True, True]]), [["1", "2", "3", "3"]]) == 1
    assert majority(np.array([[False, False, True]]), [["1", "2", "3"]]) == pytest.approx(1 / 3)


def test_pass_at_k_is_the_mean_over_all_choices_of_k_samples() -> None:
    right = np.random.default_rng(0).random((7, 6)) < [[0.0], [0.1], [0.3], [0.5], [0.7], [0.9], [1.0]]
    for k in range(1, 7):
        chosen = [right[:, list(c)].any(1).mean() for c in itertools.combinations(range(6), k)]
        assert pass_at(right, k) == pytest.approx(np.mean(chosen))
    assert pass_at(right, 1) == pytest.approx(right.mean())
    for k in (0, 7):
        with pytest.raises(ValueError, match="of 6 samples"):
            pass_at(right, k)


def test_the_permutation_test_is_all_sign_flips() -> None:
    generator = np.random.default_rng(6)
    for samples in ((1, 1), (4, 4), (2, 3)):
        baseline, quantized = (generator.random((9, k)) < c for k, c in zip(samples, (0.9, 0.5), strict=True))
        difference = quantized.mean(1) - baseline.mean(1)
        flips = np.array(list(itertools.product([-1, 1], repeat=9)))
        means = flips @ difference
        expected = np.mean(np.abs(means) >= abs(difference.sum()) - 1e-9)
        assert p_value(baseline, quantized) == pytest.approx(expected)
        assert p_value(quantized, baseline) == pytest.approx(expected)


def test_six_problems_are_the_fewest_that_tell() -> None:
    baseline = np.ones((30, 1), bool)
    for lost in (1, 5, 6):
        assert p_value(baseline, np.arange(30)[:, None] >= lost) == pytest.approx(2 * 0.5**lost)


def test_the_permutation_test_is_honest() -> None:
    generator = np.random.default_rng(8)
    found = [p_value(*exam(generator, 30, 4, 0.7)) for _ in range(600)]
    assert 0.02 <= np.mean(np.array(found) <= 0.05) <= 0.06


@pytest.mark.parametrize(("problems", "samples", "mean"), [(30, 8, 0.5), (60, 4, 0.7), (100, 1, 0.8), (30, 1, 0.95)])
def test_the_smallest_detectable_drop_is_found_in_four_of_five_runs(problems: int, samples: int, mean: float) -> None:
    """Two equal models say what can be detected; then one of them gets worse by that."""
    generator = np.random.default_rng(9)
    drops = [smallest_detectable(*exam(generator, problems, samples, mean)) for _ in range(50)]
    drop = float(np.median([d for d in drops if d is not None]))
    found = [p_value(*exam(generator, problems, samples, mean, drop / mean)) < 0.05 for _ in range(400)]
    assert 0.7 <= np.mean(found) <= 0.92


def test_the_smallest_detectable_drop_of_models_that_never_differ() -> None:
    """Of 30 problems, six must change: at this drop that happens in at least 80 % of the runs."""
    generator = np.random.default_rng(10)
    for samples in (1, 8):
        same = np.ones((30, samples), bool)
        drop = smallest_detectable(same, same)
        assert drop is not None
        changed = (generator.random((4000, 30, samples)) < drop).any(2).sum(1)
        assert 0.8 <= np.mean(changed >= 6) <= 0.87
    assert smallest_detectable(np.ones((5, 1), bool), np.ones((5, 1), bool)) == 1
    assert smallest_detectable(np.ones((1, 4), bool), np.ones((1, 4), bool)) is None


def test_summaries() -> None:
    right = np.array([[True, True, False, True], [False, False, False, True]])
    given: list[list[str | None]] = [["1", "1", "2", "1"], ["3", "3", None, "4"]]
    found = summary(right, given)
    assert set(as_json(found)) == {"accuracy", "ci95", "maj", "pass", "problems", "samples"}
    assert (found.accuracy, found.majority, found.any_right) == (0.5, 0.5, 1.0)
    assert (found.problems, found.samples) == (2, 4)
    assert summary(right, given, 1).any_right == 0.5
    both = difference(np.ones((2, 4), bool), right)
    assert set(as_json(both)) == {"delta", "delta_ci95", "p_value", "smallest_detectable"}
    assert both.delta == -0.5 and both.p_value == 0.5 and both.delta_ci95 is not None
    assert both.delta_ci95.low >= -1 and both.delta_ci95.high <= 1
    alone = difference(np.ones((1, 4), bool), right[:1])
    assert alone.delta_ci95 is None and alone.smallest_detectable is None and alone.p_value == 1
