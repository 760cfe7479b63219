"""A truth that is known goes in; what verify makes of it, end to end, has to come out."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

import r1quant
from r1quant.jobs.verify.options import VerifyOptions
from r1quant.jobs.verify.run import verify
from r1quant.metrics import health
from r1quant.records.answers import ProblemScores
from tests.conftest import Run

SEEDS, PROBLEMS = 40, 100
BETTER, WORSE = 0.9, 0.7


@pytest.fixture(scope="module")
def made(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    shutil.copytree(llama, folder / "model")
    r1quant.quantize(folder / "model", folder / "out", bits=4, group_size=32, method="rtn")
    return folder / "out"


@pytest.fixture
def cheap(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of answers that nobody needs tomorrow, and of which nothing but right and wrong is asked."""
    monkeypatch.setenv("R1QUANT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(health, "compare", lambda *written: None)


def compared(made: Path, seed: int, worse: str, better: str) -> ProblemScores:
    options = VerifyOptions(
        windows=0, aime="mini", limit=PROBLEMS, seed=seed, backend=f"mock:{worse}", baseline_backend=f"mock:{better}"
    )
    aime = verify(made, options=options).aime
    assert aime is not None
    return aime


@pytest.mark.usefixtures("cheap")
def test_a_true_difference_lies_in_its_interval(made: Path) -> None:
    """95 % of the intervals: at most 7 of 40 miss it, which is all but one in 10,000 such tests."""
    deltas, holds, holds_own, significant = [], 0, 0, 0
    for seed in range(SEEDS):
        aime = compared(made, seed, str(WORSE), str(BETTER))
        found = aime.difference
        deltas.append(found.delta)
        assert found.delta_ci95 is not None and aime.quantized.ci95 is not None
        low, high = found.delta_ci95
        assert -1 <= low < found.delta < high <= 1
        holds += low <= WORSE - BETTER <= high
        low, high = aime.quantized.ci95
        holds_own += low <= WORSE <= high
        significant += found.p_value < 0.05
    assert 33 <= holds <= SEEDS and 33 <= holds_own <= SEEDS
    assert np.mean(deltas) == pytest.approx(WORSE - BETTER, abs=4 * np.std(deltas) / SEEDS**0.5)
    assert np.std(deltas) > 0.01, "every seed draws anew"
    assert significant > 0.9 * SEEDS, "twenty points in a hundred problems are found"


@pytest.mark.usefixtures("cheap")
def test_equal_models_do_not_differ(made: Path) -> None:
    """Of the same accuracy, but each with its own luck: the interval holds 0, and p is rarely small."""
    holds, small = 0, 0
    for seed in range(SEEDS // 2):
        aime = compared(made, seed, "0.8,seed=1", "0.8")
        assert aime.difference.delta_ci95 is not None
        holds += aime.difference.delta_ci95.low <= 0 <= aime.difference.delta_ci95.high
        small += aime.difference.p_value < 0.05
    assert holds >= 16 and small <= 4


def test_the_command_line(run: Run, made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("R1QUANT_CACHE", str(tmp_path / "cache"))
    asked = ("--aime", "mini", "--limit", PROBLEMS, "--windows", "0", "--samples", "3")
    words = ("verify", made, *asked, "--backend", "mock:0.7,truncated=0.1,loops=0.1", "--baseline-backend", "mock:0.9")
    ran = run(*words, "--gate", "aime.delta<-0.1", "--gate", "aime.p_value<0.01", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["backend"], ran.json["baseline_backend"]) == ("mock", "mock")
    assert ran.json["aime"]["quantized"]["maj"] > ran.json["aime"]["quantized"]["accuracy"]
    health = ran.json["health"]["quantized"]
    assert health["truncated"] == pytest.approx(0.2, abs=0.08) and health["loops"] == pytest.approx(0.1, abs=0.06)
    assert ran.json["health"]["baseline"]["truncated"] == 0
    shown = run(*words)
    assert shown.code == 0 and "accuracy, majority of 3" in shown.out and "repeats itself" in shown.out


@pytest.mark.parametrize("noise", [0.05, 0.1, 0.2])
def test_divergence_of_noise(
    run: Run, made: Path, text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: float
) -> None:
    """noise**2 / 2, less what the likeliest tokens take of it: a few per cent of 512 tokens."""
    monkeypatch.setenv("R1QUANT_CACHE", str(tmp_path / "cache"))
    words = ("verify", made, "--text", text_file, "--windows", "16", "--seq-len", "64", "--baseline-backend", "mock")
    found = run(*words, "--backend", f"mock:noise={noise}", "--json").json
    assert found["kl"]["mean"] == pytest.approx(noise**2 / 2, rel=0.1)
    low, high = found["kl"]["mean_ci95"]
    assert low < found["kl"]["mean"] < high and high - low < 0.1 * found["kl"]["mean"]
    assert found["kl_estimator"] == "exact" and found["backend"] == "mock"
    same = run(*words, "--backend", "mock", "--json").json
    assert same["kl"]["mean"] == 0 and same["top1"] == 1 and same["text"]["baseline_cached"]
