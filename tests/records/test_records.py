"""Records survive JSON, say the same numbers as ever, and take nothing from JSON that their types do not allow."""

from __future__ import annotations

import copy
import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from r1quant.errors import RecordError
from r1quant.records.reading import LONGEST, MOST, read
from r1quant.records.record import Record
from r1quant.records.table import KINDS, read_record
from r1quant.records.verification import Part, Verification
from tests.records.strategies import JSON, values

REPORTS = Path(__file__).parents[2] / "reports"
PATHS = sorted(REPORTS.rglob("*.json"))
# Written by scripts for their own tables, and read by nothing else.
NOT_RECORDS = {
    "conformance", "gguf-decode", "gguf-peers", "imatrix", "onnx-decode", "peers", "report", "shape-8b", "shape-export",
    "shape-sensitivity", "tiny-r1", "tiny-r1-presets", "verify-cost",
}  # fmt: skip
DRAWN = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large]
)


def stored() -> list[Path]:
    return [path for path in PATHS if read_record(json.loads(path.read_text("utf-8"))) is not None]


@pytest.mark.parametrize("path", PATHS, ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_every_stored_record_is_read_and_written_as_it_was(path: Path) -> None:
    content = json.loads(path.read_text("utf-8"))
    record = read_record(content)
    if record is None:
        assert path.stem in NOT_RECORDS
        return
    written = json.loads(json.dumps(record.as_dict()))
    assert written == content
    assert type(record).from_json(written) == record == read_record(content, lenient=True)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
@DRAWN
def test_a_record_survives_json(kind: type[Record], data: st.DataObject) -> None:
    record = data.draw(values(kind))
    written = json.loads(json.dumps(record.as_dict()))
    assert kind.from_json(written) == record
    assert kind.from_json(written, lenient=True) is not None


@pytest.mark.parametrize("kind", KINDS)
@given(json=st.dictionaries(st.text(max_size=8), JSON) | JSON)
@DRAWN
def test_any_json_is_read_or_refused(kind: type[Record], json: Any) -> None:
    for content in (json, {"schema": kind.SCHEMA, **json} if isinstance(json, dict) else {"schema": json}):
        for lenient in (False, True):
            try:
                record = kind.from_json(content, lenient)
            except RecordError as error:
                assert "\n" not in error.message and len(error.message) < 400
            else:
                assert kind.from_json(record.as_dict()) == record  # what was let pass is a record without fault


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (container, key) inside a JSON value."""
    if isinstance(value, dict):
        own: list[tuple[Any, Any]] = [(value, key) for key in value]
    elif isinstance(value, list):
        own = [(value, index) for index in range(len(value))]
    else:
        return []
    return own + [place for container, key in own for place in places(container[key])]


LIES: tuple[Any, ...] = (
    None, True, -1, 0.5, float("nan"), float("inf"), 10**400, "", "\x1b[2J", "\u202egnp", "\ud800", "x" * (LONGEST + 1),
    [], [1, 2, 3], [2.0, 1.0], {}, {"mean": "0.1"}, [[[]]], "Infinity",
)  # fmt: skip


@pytest.mark.parametrize("path", stored(), ids=lambda path: f"{path.parent.parent.name}-{path.stem}")
def test_one_lie_in_a_stored_record_is_refused_or_harmless(path: Path) -> None:
    content, generator = json.loads(path.read_text("utf-8")), random.Random(path.name)
    kind = type(read_record(content))
    assert issubclass(kind, Record)
    for _ in range(60):
        spoilt = copy.deepcopy(content)
        container, key = generator.choice([place for place in places(spoilt) if place[1] != "schema"])
        container[key] = generator.choice(LIES)
        for lenient in (False, True):
            try:
                record = kind.from_json(spoilt, lenient)
            except RecordError as error:
                assert not lenient, f"one broken value, {error.message}, must not cost the whole record"
            else:
                assert kind.from_json(record.as_dict()) == record


def test_a_refusal_names_the_place() -> None:
    content = json.loads((REPORTS / "tiny-r1/records/4-verify.json").read_text("utf-8"))
    for change, message in (
        ({"tokens": -1}, "tokens is -1, not a whole number of at least 0"),
        ({"tokens": 1.5}, "tokens is 1.5, not a whole number of at least 0"),
        ({"tokens": 10**400}, "tokens is a huge number, not a whole number of at least 0"),
        ({"kl": {**content["kl"], "mean": True}}, "kl.mean is true or false, not a finite number"),
        ({"kl": {**content["kl"], "mean": float("nan")}}, "kl.mean is nan, not a finite number"),
        ({"kl": {**content["kl"], "mean_ci95": [2, 1]}}, r"kl.mean_ci95 is a list, not an interval \[low, high\]"),
        ({"kl": []}, "kl is a list, not an object"),
        ({"kl": {"mean": 1.0}}, "kl.median is missing"),
        ({"out": "a\nb"}, "out has control characters"),
        ({"out": "a" * 5000}, "out has 5000 characters"),
        ({"gates": [{"gate": "kl.mean<1", "value": 0, "passed": 1}]}, "gates.0.passed is 1, not true or false"),
        ({"environment": {"torch": 2}}, "environment.torch is 2, not a text"),
        ({"schema": "r1quant.verification/1"}, "its schema says 'r1quant.verification/1'"),
        ({"schema": None}, "its schema is missing"),
    ):
        with pytest.raises(RecordError, match=message):
            Verification.from_json(content | change)


def test_leniently_a_broken_value_is_missing_and_the_rest_is_there() -> None:
    content = json.loads((REPORTS / "tiny-r1/records/4-verify.json").read_text("utf-8"))
    whole = Verification.from_json(content)
    assert whole.scores is not None and whole.scores.kl is not None
    content["kl"]["mean_ci95"] = [2, 1]
    content["kl"]["by_position"][1]["mean"] = None
    content["out"] = "a\x1b[2J  b"
    content["environment"]["torch"] = 2
    found = Verification.from_json(content, lenient=True)
    assert found.scores is not None and found.scores.kl is not None
    assert found.scores.kl.mean == whole.scores.kl.mean and found.scores.kl.mean_ci95 is None
    assert found.scores.kl.by_position == (whole.scores.kl.by_position[0], *whole.scores.kl.by_position[2:])
    assert found.out == "a[2J b" and "torch" not in found.environment and found.environment["numpy"]
    content["kl"]["median"] = "0.1"
    without = Verification.from_json(content, lenient=True)
    assert without.scores is not None and without.scores.kl is None
    assert without.scores.perplexity == whole.scores.perplexity


def test_long_lists_and_deep_nesting_are_bounded() -> None:
    rows = [{"gate": "a<1", "value": None, "passed": True}] * (MOST + 1)
    content = {"schema": Verification.SCHEMA, "gates": rows}
    with pytest.raises(RecordError, match="gates has 100001 entries"):
        Verification.from_json(content)
    assert len(Verification.from_json(content, lenient=True).gates) == MOST
    deep: Any = []
    for _ in range(5_000):
        deep = [deep]
    for content in ({"schema": Verification.SCHEMA, key: deep} for key in ("kl", "out", "options", "gates", "aime")):
        with pytest.raises(RecordError):
            Verification.from_json(content)
    with pytest.raises(RecordError, match="nested more than 32 deep"):
        read(Any, deep)  # a field of that type


def test_the_parts_of_a_verification_have_all_its_numbers_between_them() -> None:
    paths = [path for part in Part for path in part.number_paths]
    assert len(set(paths)) == len(paths) and set(paths) == set(Verification.number_paths())


def test_paths_of_numbers_follow_from_the_types() -> None:
    paths = Verification.number_paths()
    assert len(set(paths)) == len(paths)
    for path in ("kl.mean", "kl.mean.low", "kl.mean_ci95.high", "top1.low", "aime.delta.low", "aime.baseline.ci95.low",
                 "by_class.thinking.kl.mean", "kl.by_position.3.mean", "health.formats.quantized.json_valid",
                 "tasks.delta.*.*.mean"):  # fmt: skip
        assert path in paths
    for name in ("smollm2", "tiny-r1"):
        content = json.loads((REPORTS / name / "records/4-verify.json").read_text("utf-8"))
        numbers = Verification.from_json(content).numbers()
        assert set(numbers) <= set(paths) and len(numbers) > 40
        assert numbers["kl.mean"] == content["kl"]["mean"] and numbers["kl.mean.low"] == content["kl"]["mean_ci95"][0]
