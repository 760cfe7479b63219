"""The bar of `make conformance`: known shortfalls are named and bounded, and the record says what its figures say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def verdict(tmp_path: Path, kl: float, reader: str, run: str, variant: str, differing: bool = False) -> dict[str, Any]:
    """What `compare` says of a reader whose distribution over two tokens is so far from ours."""
    from conformance.comparison import Expected, compare
    from conformance.foreign import LOG_PROBABILITIES
    from conformance.readers import READERS, Answer

    chosen = next(r for r in READERS if r.name == reader)
    mine = np.log(np.array([[0.5, 0.5]], np.float32))
    theirs = np.sqrt(2 * kl) * np.array([[1.0, -1.0]])  # at even odds KL is half the square of what logits move by
    theirs -= np.log(np.exp(theirs).sum())
    np.save(tmp_path / LOG_PROBABILITIES, theirs.astype(np.float32))
    weights = {"a": "other" if differing else "same"}
    answer = Answer({"kernel": "", "weights": weights}, tmp_path / LOG_PROBABILITIES)
    expected = Expected(tmp_path, {"a": "same"}, mine, [], [])
    shortfall = chosen.shortfall(run, variant)
    return compare(expected, answer, chosen.variants[variant], "", shortfall)


def test_one_bar_for_all_that_do_not_compute_in_float32() -> None:
    from conformance.readers import READERS

    limits = {(limit.what, limit.nats) for reader in READERS for limit in reader.variants.values()}
    assert limits == {("mean_kl", 1e-3), ("max_delta_log_probability", 1e-2)}
    for reader in READERS:
        for known in reader.shortfalls:
            assert reader.variants[known.variant].nats < known.ceiling < 1e-2 and known.because
            assert reader.shortfall(known.run, known.variant) is known


@pytest.mark.parametrize(
    ("kl", "run", "passed", "short"),
    [
        (5e-4, "smollm2-w4g64", True, False),
        (4.6e-3, "smollm2-w4g64", False, True),
        (7e-3, "smollm2-w4g64", False, False),
        (4.6e-3, "tiny-r1-w4g128", False, False),
    ],
)
def test_a_known_shortfall_is_no_pass_and_worse_is_no_shortfall(
    tmp_path: Path, kl: float, run: str, passed: bool, short: bool
) -> None:
    row = verdict(tmp_path, kl, "onnxruntime", run, "onnx-int8")
    assert row["mean_kl"] == pytest.approx(kl, rel=0.05)
    assert (row["passed"], "short" in row) == (passed, short)


def test_a_shortfall_excuses_nothing_else(tmp_path: Path) -> None:
    row = verdict(tmp_path, 4.6e-3, "onnxruntime", "smollm2-w4g64", "onnx-int8", differing=True)
    assert not row["passed"] and "short" not in row and row["differing_linears"] == ["a"]


def test_a_checkpoint_that_cannot_be_made_says_why_and_the_next_one_is_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from conformance.foreign import make_all

    def make(request: dict[str, Any], out: Path, options: dict[str, Any]) -> None:
        out.mkdir()
        (out / "model").write_text(f"{request['model']} / {options['parts']}", "utf-8")

    made = {str(tmp_path / name): {"parts": parts} if parts else {} for name, parts in (("a", 0), ("b", 2))}
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"model": "m", "made": made}), "utf-8")
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")  # put back afterwards
    monkeypatch.setattr("sys.argv", ["maker", str(request)])
    make_all(make)
    assert "KeyError: 'parts'" in (tmp_path / "a" / "error.txt").read_text("utf-8")
    assert [path.name for path in (tmp_path / "b").iterdir()] == ["model"]
    assert (tmp_path / "b" / "model").read_text("utf-8") == "m / 2"


def test_the_record_says_what_its_figures_say() -> None:
    from conformance.comparison import against_limit
    from conformance.readers import READERS

    readers = {reader.name: reader for reader in READERS}
    record = json.loads((ROOT / "reports" / "conformance.json").read_text("utf-8"))
    scored = [row for row in record["rows"] if "limit" in row]
    assert len(scored) > 100
    for row in scored:
        reader = readers[row["reader"]]
        said = {key: row[key] for key in ("passed", "short") if key in row}
        known = reader.shortfall(row["run"], row["variant"])
        assert said == against_limit(row, reader.variants[row["variant"]], known), row
    assert record["short"] == sum("short" in row for row in record["rows"])
    everything = [row for key in ("exports", "checks", "rows", "peers") for row in record[key]]
    assert record["passed"] == all(row["passed"] or "short" in row for row in everything)
