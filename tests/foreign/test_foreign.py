"""Checkpoints that other programs made are read to the very weights that their makers dequantize them to.

data/README.md says how they were made.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest

from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.check.run import check
from r1quant.jobs.export.run import export

DATA = Path(__file__).parent / "data"
MADE = {
    "gptqmodel-gptq-asym": "gptq",
    "gptqmodel-gptq-act-order": "gptq",
    "gptqmodel-gptq-w8": "gptq",
    "gptqmodel-gptq-v2-asym": "gptq-v2",
    "gptqmodel-awq": "awq",
    "autoawq-awq": "awq",
    "llmcompressor-w4a16-asym": "compressed-tensors",
    "llmcompressor-w8a8": "compressed-tensors-int",
}
ACT_ORDER = "gptqmodel-gptq-act-order"


def digest(weight: np.ndarray) -> str:
    """As the hashes beside the checkpoints were computed: over shape and values, with one zero."""
    values = np.ascontiguousarray(weight, "<f4") + np.float32(0)
    return hashlib.sha256(str(values.shape).encode() + values.tobytes()).hexdigest()


def test_every_checkpoint_is_tested() -> None:
    assert {path.name for path in DATA.iterdir() if path.is_dir()} == set(MADE)


@pytest.mark.parametrize("name", MADE)
def test_dequantized_weights_are_the_makers_own(name: str) -> None:
    artifact = open_artifact(DATA / name)
    theirs = json.loads((DATA / name / "dequantized.json").read_text("utf-8"))["weights"]
    assert artifact.format == MADE[name]
    assert {linear: digest(artifact.qlinear(linear).dequantize()) for linear in artifact.linear_specs} == theirs
    assert len(theirs) == 7


@pytest.mark.parametrize("name", [name for name in MADE if name != ACT_ORDER])
def test_it_exports_without_a_change(name: str, tmp_path: Path) -> None:
    """To the one format that holds every grid of equal groups, and on from there."""
    first = export(DATA / name, ["compressed-tensors"], tmp_path / "first").written[0]
    assert not first.inexact
    found = check(DATA / name, first.path)
    assert found.identical, found.as_dict()["first_difference"]
    assert found.linears == 7


def test_act_order_is_known_by_its_group_map() -> None:
    linear_specs = open_artifact(DATA / ACT_ORDER).linear_specs
    assert {form.group_size for form in linear_specs.values()} <= {None, 32}
    assert None in {form.group_size for form in linear_specs.values()}
