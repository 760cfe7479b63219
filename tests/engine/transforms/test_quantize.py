"""The transforms as options of quantize: the result is a plain checkpoint that stands for the same model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import r1quant
from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import open_folder
from r1quant.engine.forward import Decoder
from r1quant.engine.transforms.folds import folded, folds
from r1quant.engine.transforms.rotate import rotated
from r1quant.errors import RecipeError
from r1quant.formats import table
from r1quant.recipe import Recipe
from tests import independent, models
from tests.engine.transforms.conftest import Open, tokens

SMALL: dict[str, Any] = {"group_size": 32, "samples": 8, "seq_len": 64, "dtype": "float32"}
KINDS: dict[str, dict[str, Any]] = {
    "awq": {"method": "awq"},
    "awq, then gptq": {"method": "gptq", "awq": True},
    "smooth": {"method": "rtn", "smooth": 0.5},
    "smooth, then gptq": {"method": "gptq", "smooth": 0.3},
    "r1": {"method": "rtn", "rotate": "r1"},
    "both": {"method": "gptq", "rotate": "both"},
    "all": {"preset": "balanced", "rotate": "r1", "awq": True},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", ["llama-tied", "llama-biased", "llama-bfloat16", "qwen3"])
def test_eight_bits_behind_a_transform_are_the_model(
    model: Open, family: str, kind: str, tmp_path: Path, text_file: Path
) -> None:
    checkpoint = model(family)
    done = r1quant.quantize(checkpoint.folder, tmp_path / "out", bits=8, calib=str(text_file), **SMALL, **KINDS[kind])
    weights = table.artifact(open_folder(tmp_path / "out"))
    assert weights.config["tie_word_embeddings"] is (family == "llama-tied" and "rotate" not in KINDS[kind])
    assert independent.summary(checkpoint, weights, tokens(checkpoint).numpy())["kl"] < 2e-3
    before = checkpoint.read("model.layers.1.mlp.down_proj.weight").float()
    after = weights.read("model.layers.1.mlp.down_proj.weight").float()
    assert (before - after).norm() > 0.05 * before.norm()
    recipe = done.record.recipe
    assert {key: recipe[key] for key in KINDS[kind] if key != "preset"} == {
        key: value for key, value in KINDS[kind].items() if key != "preset"
    }


def test_awq_loses_less_than_plain_rounding(tmp_path: Path) -> None:
    """tiny-r1, 3 bits: the factors are chosen on one text and judged on another."""
    common: dict[str, Any] = {"bits": 3, "samples": 16, "seq_len": 256}
    r1quant.quantize(out=tmp_path / "rtn", method="rtn", bits=3)
    r1quant.quantize(out=tmp_path / "awq", method="awq", **common)
    kl = {
        name: r1quant.verify(tmp_path / name, "tiny-r1", windows=8, seq_len=256).numbers()["kl.mean"]
        for name in ("rtn", "awq")
    }
    assert kl["awq"] < kl["rtn"]


def test_the_same_again_gives_the_same_bytes_and_chooses_nothing_twice(
    llama: Path, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**SMALL, "calib": str(text_file), "method": "awq", "rotate": "r2"}
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    r1quant.quantize(llama, tmp_path / "a" / "out", **options)
    monkeypatch.setattr("r1quant.jobs.quantize.factors._choose", lambda *_: pytest.fail("chosen again"))
    r1quant.quantize(llama, tmp_path / "b" / "out", **options)
    for path in sorted((tmp_path / "a" / "out").iterdir()):
        assert path.read_bytes() == (tmp_path / "b" / "out" / path.name).read_bytes(), path.name
    assert r1quant.quantize(llama, tmp_path / "a" / "out", **options).already_complete
    with pytest.raises(pytest.fail.Exception, match="chosen again"):
        r1quant.quantize(llama, tmp_path / "c" / "out", **{**options, "seed": 3})


def test_the_choice_goes_on_where_it_was_interrupted(
    llama: Path, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**SMALL, "calib": str(text_file), "method": "awq", "seed": 11}
    entered, whole = [], Decoder.layer

    def stops(self: Decoder, index: int) -> Any:
        entered.append(index)
        if len(entered) == 2:
            raise KeyboardInterrupt
        return whole(self, index)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Decoder, "layer", stops)
        r1quant.quantize(llama, tmp_path / "out", **options)
    assert entered == [0, 1]
    again: list[int] = []

    def counted(self: Decoder, index: int) -> Any:
        again.append(index)
        return whole(self, index)

    monkeypatch.setattr(Decoder, "layer", counted)
    r1quant.quantize(llama, tmp_path / "out", **options)
    assert again[: models.LAYERS - 1] == list(range(1, models.LAYERS))


def test_the_plan_knows_that_a_rotated_head_is_a_tensor_of_its_own(model: Open) -> None:
    folder = model("llama-tied").folder
    plain, turned = (r1quant.plan(folder, method="rtn", group_size=32, rotate=rotate) for rotate in (None, "r1"))
    table_bytes = open_model(folder).info("model.embed_tokens.weight").nbytes
    assert 0 <= turned.estimate.output_bytes - plain.estimate.output_bytes - table_bytes < 400
    assert json.loads(turned.checkpoint.config_text)["tie_word_embeddings"] is False


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"rotate": "r3"}, "rotate 'r3' is not supported"),
        ({"smooth": 1.5}, "smooth is 1.5"),
        ({"smooth": True}, "smooth is True"),
        ({"awq": 1}, "awq is 1"),
        ({"smooth": 0.5, "awq": True}, "--smooth and AWQ choose the same factors"),
        ({"smooth": 0.5, "method": "awq"}, "--smooth and AWQ choose the same factors"),
    ],
)
def test_what_makes_no_sense_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Recipe(**values)


def test_a_view_of_a_view(model: Open) -> None:
    """Factors behind a rotation: the rotated tensor is not rounded on the way."""
    checkpoint = model("llama-bfloat16")
    turned = rotated(checkpoint)
    by_stage = folds(architecture_of(checkpoint.config), turned.config)
    scales = {stage: torch.full((len(fold.source),), 3.0) for stage, fold in by_stage.items()}
    view = folded(turned, {0: scales})
    name = "model.layers.0.mlp.gate_proj.weight"
    wide = view.unrounded().read(name)
    # 1 / 3 rounded to bfloat16 is what the norm becomes, and its inverse the factor
    factor = 1 / torch.tensor(1 / 3).bfloat16().float()
    assert torch.allclose(wide, turned.unrounded().read(name) * factor, rtol=1e-6)
    assert not wide.equal(wide.bfloat16().float()) and view.read(name).dtype is torch.bfloat16
    assert view.read("model.layers.0.post_attention_layernorm.weight").float().unique().tolist() == [float(1 / factor)]
    other = "model.layers.1.mlp.gate_proj.weight"  # which the outer view leaves alone
    assert view.read(other).equal(turned.read(other))
    assert view.unrounded().read(other).equal(turned.unrounded().read(other))
