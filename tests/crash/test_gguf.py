"""kill -9 while a GGUF file is made: the same command again ends in the bytes of an uninterrupted run."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import Ran
from tests.crash.conftest import Place, Server, contents
from tests.crash.points import POINTS, Point

KILLED = -9
WORDS = (
    *("quantize", "../model", "-o", "out", "--calib", "../text.txt", "--format", "gguf", "--type", "Q4_K_M"),
    *("--method", "gptq", "--samples", "4", "--seq-len", "32", "--device", "cpu", "--dtype", "float32"),
)
# The model has three layers; the tables come after them, with a layer file of their own.
MOMENTS = {
    "the first layer is written": POINTS["the first layer is written"],
    "a layer in the middle is being solved": POINTS["a layer in the middle is being solved"],
    "the last layer is written, no table is": Point("r1quant.jobs.quantize.layer_files:write", 3, after=True),
    "the head is still to be rounded": Point("r1quant.jobs.quantize.calibrated:round_table", 2),
    "the tables are rounded, but not written": Point("r1quant.jobs.quantize.layer_files:write", 4),
    "the tables are written": Point("r1quant.jobs.quantize.layer_files:write", 4, after=True),
    "the file is half written": Point("r1quant.jobs.quantize.layer_files:read", 12),
    "the Modelfile is missing": Point("r1quant.jobs.quantize.finalize:modelfile"),
    "only the record is missing": POINTS["only the record is missing"],
    "the output is in its place": POINTS["the output is in its place"],
}  # fmt: skip


def quantize(place: Place, at: Point | None = None) -> Ran:
    return place.server.run(place.folder, WORDS, at, "kill")


@pytest.fixture(scope="module")
def unharmed(server: Server, base: Path) -> dict[str, bytes]:
    """The output of a run that nothing happened to."""
    place = Place(server, base / "unharmed-gguf")
    place.folder.mkdir()
    ran = quantize(place)
    assert ran.code == 0, ran.err
    assert [path.name for path in place.folder.iterdir()] == ["out"]
    return contents(place.out)


def test_one_file_a_modelfile_and_a_record(unharmed: dict[str, bytes]) -> None:
    assert unharmed.keys() == {"Modelfile", "model-Q4_K_M.gguf", "r1quant.json"}


@pytest.mark.parametrize("name", MOMENTS)
def test_killed_when(place: Place, unharmed: dict[str, bytes], name: str) -> None:
    ran = quantize(place, MOMENTS[name])
    assert ran.code == KILLED, ran.err
    assert not place.out.exists() or contents(place.out) == unharmed
    again = quantize(place)
    assert again.code == 0, again.err
    assert [path.name for path in place.folder.iterdir()] == ["out"]
    assert contents(place.out) == unharmed
