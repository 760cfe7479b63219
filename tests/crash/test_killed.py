"""kill -9 at any moment: the same command again ends in the bytes of an uninterrupted run, and leaves nothing else."""

from __future__ import annotations

import importlib
import operator

import pytest

from tests.crash.conftest import BEST, Place, contents
from tests.crash.points import POINTS, Point

KILLED = -9
Bytes = dict[str, bytes]


def finish(place: Place, straight: Bytes) -> None:
    """Runs the command again and checks what is there afterwards."""
    ran = place.quantize()
    assert ran.code == 0, ran.err
    assert [path.name for path in place.folder.iterdir()] == ["out"]
    assert contents(place.out) == straight


def killed(place: Place, straight: Bytes, point: Point) -> bool:
    """Whether the point was reached. OUT, if it is there, is complete at every moment."""
    ran = place.quantize(at=point)
    assert ran.code in (KILLED, 0), ran.err
    assert not place.out.exists() or contents(place.out) == straight
    return ran.code == KILLED


def test_the_straight_run_is_what_the_points_are_made_for(straight: Bytes) -> None:
    assert sum(name.endswith(".safetensors") for name in straight) >= 3
    assert {"config.json", "quantize_config.json", "r1quant.json", "tokenizer.json"} <= set(straight)
    assert not any(name.endswith(".partial") for name in straight)


@pytest.mark.parametrize("name", POINTS)
def test_killed_when(place: Place, straight: Bytes, name: str) -> None:
    assert killed(place, straight, POINTS[name])
    finish(place, straight)


def test_killed_before_each_fifth_flush_to_the_disk(place: Place, straight: Bytes) -> None:
    reached, nth = 0, 2
    while killed(place, straight, Point("os:fsync", nth)):
        finish(place, straight)
        for path in place.out.iterdir():
            path.unlink()
        place.out.rmdir()
        reached, nth = reached + 1, nth + 5
    assert reached >= 7
    finish(place, straight)


def test_killed_again_and_again(place: Place, straight: Bytes) -> None:
    for name in (
        "the second layer's input is written, the first layer is not",
        "the first layer is written",
        "the first layer is written",
        "all layers are done",
        "the first shard is written",
        "the output is in its place",
    ):
        assert killed(place, straight, POINTS[name])
    finish(place, straight)


GUIDED = {
    "the model is writing": Point("r1quant.jobs.generate.samples:Samples.add", 2),
    "activations are on their way forward": Point("r1quant.jobs.quantize.sensitivity:save", 2, after=True),
    "the gradient is at the head": Point("r1quant.jobs.quantize.sensitivity:head_gradient", after=True),
    "a layer's gradient is written, its part is not": Point("r1quant.jobs.quantize.sensitivity:_Pass._write", 2),
    "a layer's part is written, what led to it is there too": Point(
        "r1quant.jobs.quantize.sensitivity:_Pass._write", 2, after=True
    ),
    "the first pass is complete": Point("r1quant.storage.rundir:RunDir.forget_layer_inputs"),
    "the second pass is at the head": Point("r1quant.jobs.quantize.sensitivity:head_gradient", 2),
    "the second layer is half done": Point("r1quant.engine.methods.gptq:quantize", 6),
    "both streams are written, the part is not": Point("r1quant.jobs.quantize.layer_loop:save", 2, after=True),
}


@pytest.mark.parametrize("name", GUIDED)
def test_killed_in_a_run_of_the_best_preset_when(place: Place, best: Bytes, name: str) -> None:
    assert place.quantize(*BEST, at=GUIDED[name]).code == KILLED
    ran = place.quantize(*BEST)
    assert ran.code == 0, ran.err
    assert contents(place.out) == best
    left = [path.name for path in place.folder.with_name(f"{place.folder.name}.cache").rglob("*") if path.is_file()]
    assert sum("layer" in path for path in left) == 2 * 3 and not any("input" in p or "gradient" in p for p in left)


def test_finished_layers_are_not_computed_again(place: Place, straight: Bytes) -> None:
    assert killed(place, straight, POINTS["a layer in the middle is being solved"])
    parts = {path: path.stat().st_mtime_ns for path in place.run_folder.glob("layer-*")}
    assert len(parts) == 1
    again = place.quantize(at=POINTS["all layers are done"])
    assert again.code == KILLED and "resuming after layer 1 of 3" in again.err
    assert {path: path.stat().st_mtime_ns for path in parts} == parts
    ran = place.quantize("--json")
    assert ran.code == 0 and ran.json["resumed_layers"] == 3
    assert contents(place.out) == straight


def test_a_part_without_the_activations_after_it_is_made_again(place: Place, straight: Bytes) -> None:
    assert killed(place, straight, POINTS["the last layer is half done"])
    for path in place.run_folder.glob("input-*"):
        path.unlink()
    finish(place, straight)


def test_without_calibration(place: Place) -> None:
    options = ("--method", "rtn", "--asymmetric")
    whole = Place(place.server, place.folder.with_name(place.folder.name + "-straight"))
    whole.folder.mkdir()
    assert whole.quantize(*options).code == 0
    for point in (Point("r1quant.jobs.quantize.layer_files:write", 2), Point("r1quant.engine.methods.rtn:quantize", 6)):
        assert place.quantize(*options, at=point).code == KILLED
        assert not place.out.exists()
    ran = place.quantize(*options, "--json")
    assert ran.code == 0 and ran.json["resumed_layers"] == 1
    assert contents(place.out) == contents(whole.out)
    assert [path.name for path in place.folder.iterdir()] == ["out"]


@pytest.mark.parametrize("point", [*POINTS.values(), *GUIDED.values()], ids=lambda point: point.where)
def test_every_point_is_a_function_that_is_there(point: Point) -> None:
    """A name that has moved would leave a crash untried."""
    module, _, path = point.where.partition(":")
    assert callable(operator.attrgetter(path)(importlib.import_module(module)))
