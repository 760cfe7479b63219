"""kill -9 while embedding and head of a sharded checkpoint are rounded and written: the same bytes in the end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import Ran
from tests.crash.conftest import Place, Server, contents
from tests.crash.points import POINTS, Point

KILLED = -9
WORDS = (
    *("quantize", "../model", "-o", "out", "--calib", "../text.txt", "--format", "compressed-tensors"),
    *("--head-bits", "8", "--embedding-bits", "8", "--group-size", "32", "--method", "gptq"),
    *("--samples", "4", "--seq-len", "32", "--device", "cpu", "--dtype", "float32"),
)
MOMENTS = {
    "the last layer is written, no table is": Point("r1quant.jobs.quantize.layer_files:write", 3, after=True),
    "the head is still to be rounded": Point("r1quant.jobs.quantize.calibrated:round_table", 2),
    "the tables are rounded, but not written": Point("r1quant.jobs.quantize.layer_files:write", 4),
    "the embedding is being packed": Point("r1quant.jobs.checkpoint_writer:Contents._encoded"),
    "a shard is half written": POINTS["a shard is half written"],
    "only the record is missing": POINTS["only the record is missing"],
}  # fmt: skip


def quantize(place: Place, at: Point | None = None) -> Ran:
    return place.server.run(place.folder, WORDS, at, "kill")


@pytest.fixture(scope="module")
def unharmed(server: Server, base: Path) -> dict[str, bytes]:
    """The output of a run that nothing happened to."""
    place = Place(server, base / "unharmed-tables")
    place.folder.mkdir()
    ran = quantize(place)
    assert ran.code == 0, ran.err
    return contents(place.out)


def test_the_tables_are_integers_in_several_shards(unharmed: dict[str, bytes]) -> None:
    kept = json.loads(unharmed["model.safetensors.index.json"])["weight_map"]
    assert {"model.embed_tokens.weight_packed", "lm_head.weight_packed", "lm_head.weight_scale"} <= kept.keys()
    assert "lm_head.weight" not in kept and len(set(kept.values())) > 1


@pytest.mark.parametrize("name", MOMENTS)
def test_killed_when(place: Place, unharmed: dict[str, bytes], name: str) -> None:
    ran = quantize(place, MOMENTS[name])
    assert ran.code == KILLED, ran.err
    again = quantize(place)
    assert again.code == 0, again.err
    assert [path.name for path in place.folder.iterdir()] == ["out"]
    assert contents(place.out) == unharmed
