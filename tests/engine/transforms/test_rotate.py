"""A rotated model is the same model: its logits, in transformers' own whole model, are those of the original."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import r1quant
from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import Checkpoint, open_folder
from r1quant.checkpoint.tensorfile import TensorSpec, write
from r1quant.engine.transforms import view as views
from r1quant.engine.transforms.rotate import rotated
from r1quant.errors import CheckpointError, NumericError
from r1quant.planning import planner, problems
from r1quant.recipe import Recipe
from tests import independent, models
from tests.engine.transforms.conftest import FAMILIES, Open, changed, tokens

UNTOUCHED = {
    "self_attn.q_proj.bias", "self_attn.k_proj.bias", "self_attn.q_norm.weight", "self_attn.k_norm.weight",
    "mlp.gate_proj.bias", "mlp.up_proj.bias",
}  # fmt: skip
BOTH = {"residual": True, "heads": True}
KINDS = {"r1": {"residual": True, "heads": False}, "r2": {"residual": False, "heads": True}, "both": BOTH}


def logits(checkpoint: Checkpoint) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = independent.whole_model(checkpoint)(tokens(checkpoint)).logits
    return found


def linears_of(checkpoint: Checkpoint) -> set[str]:
    return {name for name, info in checkpoint.tensors.items() if ".layers." in name and len(info.shape) == 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_logits_are_the_models_own(model: Open, family: str, kind: str, tmp_path: Path) -> None:
    checkpoint = changed(model(family), tmp_path / "model", {}, torch.float32)
    view = rotated(checkpoint, **KINDS[kind])
    expected, found = logits(checkpoint), logits(view)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
    turned = {name for name in linears_of(checkpoint) if not view.read(name).equal(checkpoint.read(name))}
    values = {name for name in linears_of(checkpoint) if "v_proj" in name or "o_proj" in name}
    assert turned == (values if kind == "r2" else linears_of(checkpoint))


@pytest.mark.parametrize("family", ["llama-biased", "llama-tied", "qwen2", "qwen3"])
def test_no_tensor_may_be_left_as_it_was(model: Open, family: str) -> None:
    """The comparison of logits sees every single one of them."""
    checkpoint = model(family)
    view = rotated(checkpoint)
    expected = logits(checkpoint)
    whole = independent.whole_model(view)
    for name in view.tensors:
        before = checkpoint.read(name if name in checkpoint.tensors else "model.embed_tokens.weight").float()
        parameter = whole.get_parameter(name)
        if before.equal(parameter):
            assert name.removeprefix("model.layers.").partition(".")[2] in UNTOUCHED, name
            continue
        kept = parameter.data
        parameter.data = before
        with torch.inference_mode():
            wrong = whole(tokens(checkpoint)).logits
        parameter.data = kept
        assert (wrong - expected).abs().max() > 1e-3 * expected.abs().max(), name


@pytest.mark.parametrize("family", ["llama-tied", "qwen2-tied", "llama", "qwen3"])
def test_the_view_is_a_checkpoint_that_can_be_planned_and_written(model: Open, family: str, tmp_path: Path) -> None:
    view = rotated(model(family))
    assert view.config["tie_word_embeddings"] is False and json.loads(view.config_text) == view.config
    assert problems.tensor_problems(view, architecture_of(view.config)) == []
    assert not planner.make(view, Recipe(method="rtn", group_size=16)).problems
    assert view.name == model(family).name and view.dtype == "F32"
    specs = [TensorSpec(info.name, info.dtype, info.shape) for info in view.tensors.values()]
    folder = tmp_path / "written"
    folder.mkdir()
    contents = [lambda info=info: view.chunks(info) for info in view.tensors.values()]
    write(folder / "model.safetensors", specs, {"format": "pt"}, contents)
    (folder / "config.json").write_text(view.config_text)
    written = open_folder(folder)
    assert set(written.tensors) == set(view.tensors)
    assert all(written.read(name).equal(view.read(name)) for name in view.tensors)


def test_rows_are_turned_alike_in_pieces(model: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = model("llama-biased")
    whole = {name: rotated(checkpoint).read(name) for name in checkpoint.tensors}
    monkeypatch.setattr(views, "ROWS", 7)
    view = rotated(checkpoint)
    assert len(list(view.chunks(view.tensors["model.embed_tokens.weight"]))) == -(-models.VOCABULARY // 7)
    assert all(torch.allclose(view.read(name), whole[name], atol=1e-6) for name in whole)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_to_be_rounded_to_a_grid_is_not_rounded_before(model: Open, kind: str) -> None:
    checkpoint = model("llama-bfloat16")
    narrow = rotated(checkpoint, **KINDS[kind])
    wide = narrow.unrounded()
    assert wide.dtype == "BF16" and checkpoint.unrounded() is checkpoint
    for name in linears_of(checkpoint):
        turned = kind != "r2" or "v_proj" in name or "o_proj" in name
        assert wide.tensors[name].dtype == ("F32" if turned else "BF16")
        assert turned != wide.read(name).equal(wide.read(name).bfloat16().float())
        assert wide.read(name).bfloat16().equal(narrow.read(name))


def test_norms_are_one(model: Open) -> None:
    view = rotated(model("tiny-r1"))
    norms = [name for name in view.tensors if name.endswith("norm.weight")]
    ones = {name for name in norms if view.read(name).unique().tolist() == [1.0]}
    assert set(norms) - ones == {name for name in norms if "q_norm" in name or "k_norm" in name}


def test_outliers_are_spread(tmp_path: Path) -> None:
    """A few input channels of one linear and output channels of another stand out: afterwards all is near Gaussian."""
    folder = models.write_model(tmp_path / "m", "llama", dtype="float32")
    tensors = load_file(folder / "model.safetensors")
    gate, down = "model.layers.0.mlp.gate_proj.weight", "model.layers.1.mlp.down_proj.weight"
    tensors[gate][:, [3, 17]] *= 20
    tensors[down][[5, 40]] *= 20
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    checkpoint = open_folder(folder)
    view = rotated(checkpoint)

    def kurtosis(weight: torch.Tensor) -> float:
        return float(weight.double().pow(4).mean() / weight.double().square().mean() ** 2)

    for name in (gate, down):
        assert kurtosis(checkpoint.read(name)) > 30 and kurtosis(view.read(name)) < 6, name


def test_the_same_seed_gives_the_same_bytes(model: Open) -> None:
    checkpoint = model("qwen2")
    one, same, other = rotated(checkpoint), rotated(checkpoint), rotated(checkpoint, seed=1)
    assert all(one.read(name).equal(same.read(name)) for name in one.tensors)
    name = "model.layers.1.self_attn.o_proj.weight"
    assert not one.read(name).equal(other.read(name))


@pytest.mark.parametrize(("family", "limit"), [("tiny-r1", 1e-4), ("llama-bfloat16", 1e-3)])
def test_rounding_to_the_stored_dtype_costs_little(model: Open, family: str, limit: float) -> None:
    """The KL divergence of the bfloat16 view, in nats: not nothing, but far below that of 8 bits."""
    checkpoint = model(family)
    kl = independent.summary(checkpoint, rotated(checkpoint), tokens(checkpoint).numpy())["kl"]
    print(family, kl)
    assert 0 < kl < limit


def test_numbers_beyond_float16_are_named(tmp_path: Path) -> None:
    folder = models.write_model(tmp_path / "m", "llama", dtype="float16")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.0.input_layernorm.weight"] *= 30000
    tensors["model.layers.0.self_attn.q_proj.weight"] *= 30
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    view = rotated(open_folder(folder))
    with pytest.raises(
        NumericError, match=r"model\.layers\.0\.self_attn\.q_proj\.weight: transformed, it is beyond F16"
    ):
        view.read("model.layers.0.self_attn.q_proj.weight")


def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path: Path) -> None:
    folder = models.write_model(tmp_path / "m", "llama", tied=True)
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.embed_tokens.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"model.embed_tokens.weight is missing"):
        rotated(open_folder(folder))


def test_a_gguf_file_can_be_rotated(model: Open, tmp_path: Path) -> None:
    r1quant.export(model("llama-tied").folder, "gguf", tmp_path / "m.gguf", type="f32")
    checkpoint = open_model(tmp_path / "m.gguf")
    expected, found = logits(checkpoint), logits(rotated(checkpoint))
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()
