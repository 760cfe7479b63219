"""What a second start accepts, and what it refuses by name: interruptions, changes, other processes, a full disk."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from r1quant.storage.rundir import RunDir
from tests import models
from tests.crash.conftest import Place, contents
from tests.crash.points import POINTS, Point

Bytes = dict[str, bytes]
MIDDLE = POINTS["a layer in the middle is being solved"]


def test_ctrl_c_says_how_to_go_on(place: Place, straight: Bytes) -> None:
    ran = place.quantize(at=MIDDLE, do="interrupt")
    assert ran.code == 130 and ran.out == "" and "Traceback" not in ran.err
    command, *words = shlex.split(ran.err.splitlines()[-1])
    assert command == "r1quant"
    assert not place.out.exists() and list(place.run_folder.glob("layer-*"))
    assert not list(place.run_folder.rglob("*.partial"))
    again = place.server.run(place.folder, tuple(words), None, "")
    assert again.code == 0, again.err
    assert contents(place.out) == straight and not place.run_folder.exists()


def test_ctrl_c_with_json_is_one_object(place: Place) -> None:
    ran = place.quantize("--json", at=MIDDLE, do="interrupt")
    assert ran.code == 130
    error = ran.json["error"]
    assert error["kind"] == "Interrupted"
    assert error["hint"].startswith("r1quant quantize ../model -o out") and error["hint"] == ran.err.splitlines()[-1]


def test_ctrl_c_before_anything_is_worth_keeping(place: Place) -> None:
    ran = place.quantize(at=POINTS["half of the weights are hashed"], do="interrupt")
    assert ran.code == 130
    assert list(place.folder.iterdir()) == []


@pytest.fixture
def begun(place: Place, base: Path) -> Place:
    """An unfinished run of a model and a text that may be changed."""
    shutil.copytree(base / "model", place.folder / "model")
    shutil.copy(base / "text.txt", place.folder / "text.txt")
    assert place.quantize(model="model", text="text.txt", at=MIDDLE).code == -9
    return place


def flip(path: Path) -> None:
    """Changes one byte of the last tensor, and hides that: size and time of modification stay."""
    before, content = path.stat(), bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def rewrite(path: Path, old: str, new: str) -> None:
    text = path.read_text("utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), "utf-8")


@pytest.mark.parametrize("what", ["weights", "config", "tokenizer", "calibration"])
def test_changed_inputs_are_refused_by_name(begun: Place, what: str) -> None:
    model, text = begun.folder / "model", begun.folder / "text.txt"
    kept = {path: path.read_bytes() for path in (*model.iterdir(), text)}
    finished = contents(begun.run_folder)
    if what == "weights":
        flip(model / "model-00002-of-00002.safetensors")
    elif what == "config":
        rewrite(model / "config.json", "1e-06", "1e-05")
    elif what == "tokenizer":
        rewrite(model / "tokenizer_config.json", "PreTrained", "Another")
    else:
        rewrite(text, "step 0", "step 9")
    ran = begun.quantize(model="model", text="text.txt")
    name = {"weights": "weights.model-00002-of-00002.safetensors", "calibration": "calibration.sha256"}.get(what, what)
    assert ran.code == 2
    assert f"holds an unfinished run with a different {name} (" in ran.error[0]
    assert str(begun.run_folder) in ran.error[1]
    assert not begun.out.exists()
    parts = {
        name: content for name, content in contents(begun.run_folder).items() if name not in ("weights.json", "lock")
    }
    assert parts.items() <= finished.items()
    for path, content in kept.items():
        path.write_bytes(content)
    assert begun.quantize(model="model", text="text.txt").code == 0
    assert begun.out.exists() and not begun.run_folder.exists()


@pytest.mark.parametrize(
    ("option", "value", "name"),
    [("--bits", "8", "recipe.bits"), ("--seed", "5", "recipe.seed"), ("--damping", "0.02", "recipe.damping")],
)
def test_another_recipe_is_refused_by_name(place: Place, option: str, value: str, name: str) -> None:
    assert place.quantize(at=MIDDLE).code == -9
    ran = place.quantize(option, value)
    assert ran.code == 2 and name in ran.error[0] and f"-> {value})" in ran.error[0]
    assert place.run_folder.exists() and not place.out.exists()


def test_another_number_of_threads_goes_on_only_if_the_user_says_so(place: Place, straight: Bytes) -> None:
    """And the record of what comes out says so, however often it is interrupted after that."""
    early = POINTS["the text is not read yet"]
    assert place.quantize(at=MIDDLE).code == -9
    (finished,) = (path.read_bytes() for path in place.run_folder.glob("layer-*"))
    refused = place.quantize(at=early, do="another_thread")
    assert refused.code == 2 and "different environment.threads (1 -> 2)" in refused.error[0]
    assert "--resume-anyway" in refused.error[1]
    ran = place.quantize("--resume-anyway", "--bits", "8", at=early, do="another_thread")
    assert ran.code == 2 and "recipe.bits (4 -> 8)" in ran.error[0] and "--resume-anyway" not in ran.error[1]
    assert [path.read_bytes() for path in place.run_folder.glob("layer-*")] == [finished]
    ran = place.quantize("--resume-anyway", "--json", at=early, do="another_thread")
    assert ran.code == 0 and ran.json["resumed_layers"] == 1, ran.err
    change = {"name": "environment.threads", "before": "1", "after": "2"}
    record = ran.json["record"]
    assert record["changed_on_resume"] == [change] and record["environment"]["threads"] == "2"
    assert {*record} - {*json.loads(straight["r1quant.json"])} == {"changed_on_resume"}
    assert record["weights"] == json.loads(straight["r1quant.json"])["weights"]


def test_what_was_let_change_is_still_known_after_the_next_crash(place: Place) -> None:
    early = POINTS["the text is not read yet"]
    assert place.quantize(at=MIDDLE).code == -9
    fingerprint = place.run_folder / "fingerprint.json"
    rewrite(fingerprint, '"environment.numpy": "', '"environment.numpy": "0.')
    assert place.quantize("--resume-anyway", at=POINTS["all layers are done"]).code == -9
    ran = place.quantize("--json", at=early)
    assert ran.code == -9, "killed before anything is asked"
    ran = place.quantize("--json")
    assert ran.code == 0, ran.err
    (change,) = ran.json["record"]["changed_on_resume"]
    assert change["name"] == "environment.numpy" and change["before"] == f"0.{change['after']}"


@pytest.mark.parametrize("what", ["weights", "calibration"])
def test_changed_inputs_are_refused_even_so(begun: Place, what: str) -> None:
    if what == "weights":
        flip(begun.folder / "model" / "model-00002-of-00002.safetensors")
    else:
        rewrite(begun.folder / "text.txt", "step 0", "step 9")
    ran = begun.quantize("--resume-anyway", model="model", text="text.txt")
    assert ran.code == 2 and f"holds an unfinished run with a different {what}." in ran.error[0]
    assert "--resume-anyway" not in ran.error[1] and not begun.out.exists()


def test_a_second_process_is_refused(place: Place, straight: Bytes) -> None:
    with RunDir(place.run_folder) as held:
        held.claim({"a": "b"})
        ran = place.quantize()
        assert ran.code == 2 and "is working in" in ran.error[0]
        assert not place.out.exists()
        held.remove()
    assert place.quantize().code == 0
    assert contents(place.out) == straight


def test_a_run_directory_that_is_not_ours_is_left_alone(place: Place) -> None:
    place.run_folder.mkdir()
    (place.run_folder / "thesis.tex").write_text("ten years")
    ran = place.quantize()
    assert ran.code == 2 and "is not a run directory" in ran.error[0]
    assert contents(place.run_folder) == {"thesis.tex": b"ten years"} and not place.out.exists()


def test_complete_already(place: Place, straight: Bytes) -> None:
    place.out.mkdir()  # an empty folder is as good as none
    assert place.quantize().code == 0
    stamps = {path: path.stat().st_mtime_ns for path in place.out.iterdir()}
    ran = place.quantize("--json")
    assert ran.code == 0 and ran.json["already_complete"] is True
    assert ran.json["record"] == json.loads(straight["r1quant.json"])
    assert {path: path.stat().st_mtime_ns for path in place.out.iterdir()} == stamps
    other = place.quantize("--bits", "8")
    assert other.code == 2 and "with a different recipe" in other.error[0]
    assert [path.name for path in place.folder.iterdir()] == ["out"]
    assert contents(place.out) == straight


@pytest.mark.parametrize("files", [{"notes.txt": "mine"}, {"r1quant.json": "[1]"}, {"r1quant.json": "{"}])
def test_out_is_somebody_elses(place: Place, files: dict[str, str]) -> None:
    place.out.mkdir()
    for name, content in files.items():
        (place.out / name).write_text(content)
    ran = place.quantize()
    assert ran.code == 2 and "exists and is not empty" in ran.error[0]
    assert {name: content.decode() for name, content in contents(place.out).items()} == files
    assert [path.name for path in place.folder.iterdir()] == ["out"]


def test_out_is_taken_while_the_run_goes_on(place: Place, straight: Bytes) -> None:
    ran = place.quantize(at=POINTS["only the record is missing"], do="occupy")
    assert ran.code == 2 and "exists and is not empty" in ran.error[0]
    assert contents(place.out) == {"notes.txt": b"mine"}
    shutil.rmtree(place.out)
    again = place.quantize("--json")
    assert again.code == 0 and again.json["resumed_layers"] == 3
    assert contents(place.out) == straight


@pytest.mark.parametrize(
    "point",
    [
        Point("os:fsync", 1),
        Point("r1quant.checkpoint.tensorfile:header", 2),
        Point("r1quant.jobs.checkpoint_writer:Contents._encoded", 30),
        Point("os:mkdir"),
    ],
    ids=["weights.json", "first part", "a shard", "the run directory itself"],
)
def test_the_disk_is_full(place: Place, straight: Bytes, point: Point) -> None:
    ran = place.quantize("--json", at=point, do="full")
    assert ran.code == 3 and ran.json["error"]["kind"] == "OutOfSpaceError"
    assert not place.out.exists() and not list(place.folder.rglob("*.partial"))
    assert place.quantize().code == 0
    assert contents(place.out) == straight and not place.run_folder.exists()


@pytest.fixture
def small_disk(place: Place) -> Iterator[Place]:
    """The place on a disk of its own, of two megabytes."""
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "none", str(place.folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield place
    subprocess.run(["umount", "-l", str(place.folder)], check=True)


def test_a_small_disk_that_fills_up(small_disk: Place, straight: Bytes) -> None:
    ran = small_disk.quantize(at=POINTS["the first layer is written"], do="fill")
    assert ran.code == 3 and "is full" in ran.error[0] and "finished layers are kept" in ran.error[1]
    assert not small_disk.out.exists() and len(list(small_disk.run_folder.glob("layer-*"))) == 1
    small_disk.folder.joinpath("ballast").unlink()
    assert small_disk.quantize().code == 0
    assert contents(small_disk.out) == straight


def test_a_disk_that_is_too_small_is_refused_at_once(small_disk: Place, base: Path) -> None:
    if not (base / "wide").exists():
        models.write_model(base / "wide", "llama", vocab_size=32768)
    ran = small_disk.quantize(model="../wide")
    assert ran.code == 3 and "not enough disk space" in ran.error[0]
    assert list(small_disk.folder.iterdir()) == []
