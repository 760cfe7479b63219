"""quantize --format gguf: a mixture of block types by our own rounding, in one file."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import GGUFReader

import r1quant
from r1quant.arch.tables import is_tied
from r1quant.checkpoint.gguf.source import gguf_names
from r1quant.checkpoint.resolve import EMBEDDED, open_model
from r1quant.core.blocktypes import BlockGrid
from r1quant.core.qlinear import QuantizedLinear
from r1quant.errors import RecipeError
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.quantize import run as job
from r1quant.planning import planner
from r1quant.recipe import Recipe, from_values
from r1quant.storage.rundir import RunDir
from tests import models
from tests.conftest import Run

LITTLE = {"samples": 4, "seq_len": 64, "dtype": "float32", "device": "cpu"}


def recipe(type: str, preset: str | None = "fast", **values: object) -> Recipe:
    return from_values({"format": "gguf", "type": type, **LITTLE, **values}, preset)


def tensors(out: Path) -> dict[str, gguf.ReaderTensor]:
    (path,) = out.glob("*.gguf")
    return {tensor.name: tensor for tensor in GGUFReader(path).tensors}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny-r1 as Q4_K_M, by feedback."""
    return job.quantize(EMBEDDED, tmp_path_factory.mktemp("gguf") / "out", recipe("Q4_K_M")).out


def test_types_and_bytes_are_those_of_the_plan(out: Path) -> None:
    plan = job.make_plan(EMBEDDED, recipe("Q4_K_M"))
    (path,) = out.glob("*.gguf")
    assert path.name == "tiny-r1-Q4_K_M.gguf" and path.stat().st_size == plan.layout.nbytes
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors(out).items()}
    assert kinds["token_embd.weight"] == "Q4_K" and kinds["output.weight"] == "Q6_K"
    values = [kinds[f"blk.{layer}.attn_v.weight"] for layer in range(4)]
    assert sorted(values) == ["Q4_K", "Q4_K", "Q6_K", "Q6_K"] and kinds["blk.0.attn_q.weight"] == "Q4_K"
    record = json.loads((out / "r1quant.json").read_text())
    assert record["recipe"]["type"] == "Q4_K_M" and record["recipe"]["bits"] is None
    assert {"model.embed_tokens", "lm_head"} <= {linear["name"] for linear in record["linears"]}


def test_ollama_finds_one_file_beside_its_modelfile(out: Path) -> None:
    assert {path.name for path in out.iterdir()} == {"tiny-r1-Q4_K_M.gguf", "Modelfile", "r1quant.json"}
    lines = (out / "Modelfile").read_text("utf-8").splitlines()
    assert [line for line in lines if line.startswith("FROM")] == ["FROM ./tiny-r1-Q4_K_M.gguf"]
    assert any(line.startswith("TEMPLATE ") for line in lines)


def test_a_copy_has_every_tensor_byte_for_byte_and_the_tables_in_their_blocks(out: Path, tmp_path: Path) -> None:
    done = r1quant.export(out, "gguf", tmp_path / "copy").written[0]
    before, after = tensors(out), tensors(done.path)
    assert done.as_dict()["exact"] and list(before) == list(after)
    for name, tensor in before.items():
        assert after[name].tensor_type == tensor.tensor_type and np.array_equal(after[name].data, tensor.data), name
    floats = tensors(r1quant.export(out, "gguf", tmp_path / "floats", embedding="f16", head="q8_0").written[0].path)
    assert [floats[name].tensor_type.name for name in ("token_embd.weight", "output.weight")] == ["F16", "Q8_0"]


def layer_files_of(monkeypatch: pytest.MonkeyPatch) -> dict[str, QuantizedLinear]:
    """What is read back of the layer files from here on, by name."""
    from r1quant.jobs.quantize import layer_files

    found, real = dict[str, QuantizedLinear](), layer_files.read

    def read(path: Path, name: str) -> QuantizedLinear:
        found[name] = real(path, name)
        return found[name]

    monkeypatch.setattr(layer_files, "read", read)
    return found


@pytest.mark.parametrize("method", ["rtn", "gptq"])
@pytest.mark.parametrize("type", ["Q4_K_M", "Q3_K", "Q8_0"])
def test_the_file_holds_what_the_layer_files_say(
    type: str, method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounded, given = layer_files_of(monkeypatch), recipe(type, None, method=method)
    made = job.quantize(EMBEDDED, tmp_path / "out", given)
    plan, found = job.make_plan(EMBEDDED, given), tensors(made.out)
    (path,) = made.out.glob("*.gguf")
    assert path.stat().st_size == plan.layout.nbytes == plan.estimate.output_bytes
    assert rounded.keys() == {matrix.name for matrix in plan.matrices} and len(rounded) == 30
    names = gguf_names(plan.arch, plan.layers)
    for name, linear in rounded.items():
        tensor, grid = found[names[f"{name}.weight"]], plan.grids[name]
        assert isinstance(grid, BlockGrid) and tensor.tensor_type.name == grid.type, name
        assert np.array_equal(gguf.quants.dequantize(tensor.data, tensor.tensor_type), linear.dequantize()), name
    assert {tensor.tensor_type.name for name, tensor in found.items() if "norm" in name} == {"F32"}
    assert made.record.bits_per_weight == plan.bits_per_weight


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text"])
def test_rows_without_super_blocks_in_models_of_other_families(
    family: str, tied: bool, text_file: Path, tmp_path: Path, run: Run
) -> None:
    """Their 64 and 96 columns fill blocks of 32; a tied table is one tensor, rounded once."""
    model = models.write_model(tmp_path / "model", family, tied=tied)
    given = recipe("Q4_K_M", calib=str(text_file), seq_len=32)
    made = job.quantize(model, tmp_path / "out", given)
    plan, found = job.make_plan(model, given), tensors(made.out)
    (path,) = made.out.glob("*.gguf")
    assert path.stat().st_size == plan.layout.nbytes
    assert {tensor.tensor_type.name for tensor in found.values()} == {"F32", "Q5_0", "Q8_0"}
    assert ("output.weight" in found) is not tied
    assert found["token_embd.weight"].tensor_type.name == ("Q8_0" if tied else "Q5_0")
    ran = run("verify", made.out, "--text", text_file, "--windows", "1", "--seq-len", "32", "--json")
    assert ran.code == 0 and ran.json["kl"]["mean"] < 0.1, ran.err


def test_every_tensor_is_near_the_original(out: Path) -> None:
    model, made = open_model(EMBEDDED), open_artifact(out)
    for name, info in model.tensors.items():
        before, after = model.read(name).float().numpy(), made.read(name).float().numpy()
        error = float(np.square(before - after).sum() / np.square(before).sum())
        assert error < 0.02 if len(info.shape) == 2 else error < 1e-5, name


def test_verify_opens_the_folder_and_finds_the_model(out: Path, run: Run) -> None:
    ran = run("verify", out, "--windows", "1", "--seq-len", "64", "--json")
    assert ran.code == 0 and 0 < ran.json["kl"]["mean"] < 0.1


def test_the_same_command_again_finds_it_complete(out: Path) -> None:
    assert job.quantize(EMBEDDED, out, recipe("Q4_K_M")).already_complete


@pytest.mark.parametrize("missing", [2, 4])
def test_resumed_it_ends_in_the_same_bytes(
    out: Path, missing: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Interrupted after a layer, and before the tables, which have the last layer file."""
    from r1quant.jobs.quantize import layer_files

    write = layer_files.write

    def dying(path: Path, linears: object) -> None:
        if path.name == f"layer-{missing:05d}.safetensors":
            raise KeyboardInterrupt
        write(path, linears)  # type: ignore[arg-type]

    again = tmp_path / "again"
    with monkeypatch.context() as patched:
        patched.setattr(layer_files, "write", dying)
        with pytest.raises(KeyboardInterrupt):
            job.quantize(EMBEDDED, again, recipe("Q4_K_M"))
    with RunDir(tmp_path / "again.run") as folder:
        assert folder.done(5) == missing
    done = job.quantize(EMBEDDED, again, recipe("Q4_K_M"))
    assert done.resumed_layers == missing
    assert (again / "tiny-r1-Q4_K_M.gguf").read_bytes() == (out / "tiny-r1-Q4_K_M.gguf").read_bytes()


@pytest.mark.parametrize("type", ["Q3_K", "Q8_0", "IQ4_XS", "Q5_1", "IQ2_XXS"])
def test_types_without_calibration(type: str, tmp_path: Path) -> None:
    made = job.quantize(EMBEDDED, tmp_path / "out", recipe(type, None, method="rtn")).out
    kinds = {name: tensor.tensor_type.name for name, tensor in tensors(made).items()}
    assert {kinds[f"blk.{layer}.ffn_up.weight"] for layer in range(4)} == {type}


def test_a_tied_table_is_one_tensor_with_the_type_of_the_head(tmp_path: Path) -> None:
    from tests.checkpoint.gguf_files import smollm_path

    checkpoint = open_model(smollm_path())
    assert is_tied(checkpoint.config)
    plan = planner.make(checkpoint, recipe("Q4_K_M"))
    assert not plan.problems and [table.name for table in plan.rounded_tables] == ["model.embed_tokens"]
    assert plan.grids["model.embed_tokens"] == BlockGrid("Q8_0")  # 576 columns fill no super-block
    assert {grid.type for grid in plan.grids.values() if isinstance(grid, BlockGrid)} == {
        "Q5_0",
        "Q6_K",
        "Q8_0",
        "Q4_K",
    }


@pytest.mark.parametrize(
    ("values", "message", "hint"),
    [
        ({"type": "Q4_K_M"}, "--type Q4_K_M is of GGUF files", "--format gguf"),
        ({"format": "gguf", "bits": 4}, "--bits does not go with --format gguf", "choose a --type"),
        ({"format": "gguf", "group_size": 32}, "--group-size does not go with --format gguf", "choose a --type"),
        ({"format": "gguf", "awq": True}, "AWQ does not go with --format gguf", "leave it out"),
        ({"format": "gguf", "type": "Q4_K_XL"}, "'Q4_K_XL' is not supported", "Q4_K"),
    ],
)
def test_what_does_not_go_together_is_refused(values: dict[str, object], message: str, hint: str) -> None:
    with pytest.raises(RecipeError) as refused:
        from_values(values)
    assert message in refused.value.message and hint in refused.value.hint
