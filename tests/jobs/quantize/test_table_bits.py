"""quantize --head-bits --embedding-bits: tables of integers in safetensors, rounded with feedback, killed, resumed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import r1quant
from r1quant.checkpoint.resolve import EMBEDDED
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.quantize import run as job
from r1quant.recipe import Recipe, from_values
from tests.conftest import Run

BITS = {"head_bits": 8, "embedding_bits": 4, "format": "compressed-tensors", "group_size": 64}
WEIGHTS = "model.safetensors"


def recipe(**values: object) -> Recipe:
    little = {"samples": 4, "seq_len": 64, "dtype": "float32", "device": "cpu"}
    return from_values({**little, **BITS, **values}, "fast")


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return job.quantize(EMBEDDED, tmp_path_factory.mktemp("tables") / "out", recipe()).out


def test_the_file_holds_them_as_the_plan_says(out: Path) -> None:
    plan, made = job.make_plan(EMBEDDED, recipe()), open_artifact(out)
    assert (out / WEIGHTS).stat().st_size == plan.layout.nbytes
    bits = {name: made.linear_specs[name].bits for name in ("lm_head", "model.embed_tokens")}
    assert bits == {"lm_head": 8, "model.embed_tokens": 4} and len(made.linear_specs) == 30
    record = json.loads((out / "r1quant.json").read_text())
    assert {"lm_head", "model.embed_tokens"} <= {linear["name"] for linear in record["linears"]}
    assert record["recipe"]["head_bits"] == 8


def test_8_bits_of_the_head_cost_nearly_nothing(tmp_path: Path, run: Run) -> None:
    def divergence(**values: object) -> float:
        made = job.quantize(EMBEDDED, tmp_path / f"{values}", recipe(embedding_bits=16, **values)).out
        ran = run("verify", made, "--windows", "4", "--seq-len", "128", "--json")
        assert ran.code == 0, ran.err
        mean: float = ran.json["kl"]["mean"]
        return mean

    assert 0 < divergence(head_bits=8) < 1.02 * divergence(head_bits=16)


def test_they_go_into_other_formats(out: Path, tmp_path: Path) -> None:
    graph = r1quant.export(out, "onnx", tmp_path / "onnx").written[0]
    assert graph.as_dict()["exact"]
    again = open_artifact(r1quant.export(out, "compressed-tensors", tmp_path / "again").written[0].path)
    assert again.linear_specs == open_artifact(out).linear_specs


def test_resumed_before_the_tables_it_ends_in_the_same_bytes(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from r1quant.jobs.quantize import layer_files

    write = layer_files.write

    def dying(path: Path, linears: object) -> None:
        if path.name == "layer-00004.safetensors":
            raise KeyboardInterrupt
        write(path, linears)  # type: ignore[arg-type]

    with monkeypatch.context() as patched:
        patched.setattr(layer_files, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            job.quantize(EMBEDDED, tmp_path / "again", recipe())
    done = job.quantize(EMBEDDED, tmp_path / "again", recipe())
    assert done.resumed_layers == 4
    assert (done.out / WEIGHTS).read_bytes() == (out / WEIGHTS).read_bytes()
