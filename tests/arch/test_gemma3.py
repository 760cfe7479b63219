"""Gemma 3 from end to end on tiny random models: what its table says is what transformers computes.

Norms before and after each block, of one plus their weight; scaled embeddings, tied unless config.json says otherwise;
layers with sliding windows and rotary embeddings of their own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import r1quant
from r1quant.arch.kvcache import cache_of
from r1quant.arch.tables import architecture_of
from r1quant.backends.torch import TorchModel
from r1quant.checkpoint.gguf.source import open_gguf
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import Checkpoint, open_folder
from r1quant.engine.transforms.folds import folded, folds
from r1quant.engine.transforms.rotate import rotated
from r1quant.errors import CheckpointError, RecipeError
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.fit.options import FitOptions
from r1quant.jobs.fit.run import fit
from r1quant.planning.targets import ExportOptions
from tests import independent, models

IDS = np.array([(i * 37) % 478 for i in range(60)])
QUICK: dict[str, Any] = {"group_size": 32, "samples": 4, "seq_len": 48, "dtype": "float32", "device": "cpu"}
SIX = {"num_hidden_layers": 6}  # the fewest of which one sees everything, in GGUF's pattern


def written(folder: Path, **options: Any) -> Path:
    """Every other layer sees everything, unless options say otherwise."""
    return models.write_model(folder, "gemma3_text", **{"sliding_window_pattern": 2, "tied": True} | options)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("gemma3") / "m")


def logits(checkpoint: Any) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = independent.whole_model(checkpoint)(torch.from_numpy(IDS)[None]).logits[0]
    return found


def assert_close(found: torch.Tensor, expected: torch.Tensor) -> None:
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def torch_model(checkpoint: Checkpoint) -> TorchModel:
    return TorchModel(checkpoint, architecture_of(checkpoint.config))


def test_the_torch_backend_gives_the_librarys_scores_and_text(model: Path) -> None:
    checkpoint = open_folder(model)
    ours, library = torch_model(checkpoint), independent.whole_model(checkpoint)
    assert_close(torch.from_numpy(ours.logits(IDS)), logits(checkpoint))
    for start in (IDS[:3], IDS):
        prompt = torch.from_numpy(start)[None]
        out = library.generate(
            prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=20, eos_token_id=None,
            pad_token_id=2,
        )  # fmt: skip
        assert ours.generate(start, 20) == out[0, len(start) :].tolist()


@pytest.mark.parametrize(
    "changes",
    [
        {"sliding_window": 30},
        {"rope_local_base_freq": 500.0},
        {"rope_theta": 10000.0},
        {"query_pre_attn_scalar": 64},
        {"sliding_window_pattern": 6},
        {"rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_the_scores_depend_on_every_setting(model: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    """So that the comparisons with the library would see a wrong one."""
    other = open_folder(written(tmp_path / "m", **changes))
    apart = torch_model(other).logits(IDS) - torch_model(open_folder(model)).logits(IDS)
    assert np.abs(apart).max() > 1e-2


@pytest.mark.parametrize("how", [{"method": "rtn"}, {"method": "gptq"}, {"preset": "balanced"}], ids=str)
def test_quantize_verify_and_every_format(tmp_path: Path, how: dict[str, str], text_file: Path) -> None:
    """Exported as GPTQ, compressed-tensors, AWQ and GGUF, the numbers are the same bit for bit."""
    model, out = written(tmp_path / "m"), tmp_path / "out"
    changes = json.loads((model / "config.json").read_text()) | {"sliding_window_pattern": 6}  # as GGUF has it
    (model / "config.json").write_text(json.dumps(changes))
    asked = QUICK | {"calib": str(text_file), "format": "gptq", "bits": 4} | how
    assert len(r1quant.quantize(model, out, **asked).record.linears) == 14
    record = r1quant.verify(out, model, str(text_file), windows=2, seq_len=48).numbers()
    source, artifact = open_folder(model), open_artifact(out)
    assert 0 < record["kl.mean"] < 1
    assert logits(artifact).shape == logits(source).shape and not logits(artifact).equal(logits(source))
    for format in ("gptq", "compressed-tensors", "awq", "gguf"):
        (export,) = r1quant.export(out, format, tmp_path / format).written
        assert not export.inexact
        checked = r1quant.check(out, tmp_path / format)
        assert checked.identical and checked.linears == 14, format
        if format != "gguf":
            assert open_folder(tmp_path / format).config["model_type"] == "gemma3_text"


def test_a_gguf_file_is_a_source(tmp_path: Path) -> None:
    """Six layers, of which the last one sees everything. Config, tokenizer and weights come from the file alone."""
    scaling = {"rope_type": "linear", "factor": 8.0}
    model = written(tmp_path / "m", sliding_window_pattern=6, rope_scaling=scaling, dtype="float32", **SIX)
    (export,) = r1quant.export(model, "gguf", tmp_path / "m.gguf").written
    back, source = open_gguf(export.path), open_folder(model)
    assert back.config["model_type"] == "gemma3_text" and not export.inexact
    for key in ("sliding_window", "query_pre_attn_scalar", "head_dim", "rope_theta", "rope_scaling"):
        assert back.config[key] == source.config[key], key
    assert (back.config["rope_local_base_freq"], back.config["sliding_window_pattern"]) == (10000.0, 6)
    assert back.config["tie_word_embeddings"] is True
    assert_close(logits(back), logits(source))
    assert_close(torch.from_numpy(torch_model(back).logits(IDS)), logits(source))
    assert r1quant.check(model, export.path).identical
    done = r1quant.quantize(export.path, tmp_path / "out", method="rtn", group_size=32)
    assert len(done.record.linears) == 42


def test_gguf_holds_one_plus_the_weight_of_norms(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    model = written(tmp_path / "m", sliding_window_pattern=6)
    (export,) = r1quant.export(model, "gguf", tmp_path / "m.gguf").written
    stored = {tensor.name: tensor.data for tensor in gguf.GGUFReader(export.path).tensors}
    checkpoint = open_folder(model)
    for ours, theirs in (
        ("model.norm", "output_norm"),
        ("model.layers.1.self_attn.k_norm", "blk.1.attn_k_norm"),
        ("model.layers.1.post_attention_layernorm", "blk.1.post_attention_norm"),
        ("model.layers.1.pre_feedforward_layernorm", "blk.1.ffn_norm"),
        ("model.layers.1.post_feedforward_layernorm", "blk.1.post_ffw_norm"),
    ):
        assert np.array_equal(stored[f"{theirs}.weight"], 1 + checkpoint.read(f"{ours}.weight").float().numpy())


def test_a_norm_weight_too_small_beside_one_is_the_same_model(tmp_path: Path) -> None:
    """1 + 2**-30 is 1 in float32, in every program: check compares what multiplies."""
    model = written(tmp_path / "m", sliding_window_pattern=6, dtype="float32")
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = 2.0**-30
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    (export,) = r1quant.export(model, "gguf", tmp_path / "m.gguf").written
    assert open_gguf(export.path).read("model.norm.weight")[0] == 0
    assert r1quant.check(model, export.path).identical


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"sliding_window_pattern": 2}, "sliding_window_pattern"),
        ({"sliding_window_pattern": None, "layer_types": ["full_attention"] * 2}, "sliding_window_pattern"),
        ({"rope_local_base_freq": 500.0}, "rope_local_base_freq"),
        ({"query_pre_attn_scalar": 64}, "query_pre_attn_scalar"),
        ({"hidden_activation": "silu"}, "hidden_activation"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_not_exported(
    tmp_path: Path, changes: dict[str, Any], key: str
) -> None:
    model = written(tmp_path / "m", **{"sliding_window_pattern": 6} | changes)
    with pytest.raises(CheckpointError, match=f"llama.cpp computes gemma3 models with {key} = "):
        r1quant.export(model, "gguf", tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_62_layers_scale_their_queries_by_the_hidden_size(tmp_path: Path) -> None:
    """So it is in the 27B, which llama.cpp tells by that number."""
    sizes = {"num_hidden_layers": 62, "hidden_size": 32, "intermediate_size": 32, "head_dim": 16}
    model = written(tmp_path / "m", sliding_window_pattern=6, query_pre_attn_scalar=8, **sizes)
    (export,) = r1quant.export(model, "gguf", tmp_path / "m.gguf").written
    assert open_gguf(export.path).config["query_pre_attn_scalar"] == 32 // 4


def test_onnx_is_refused_with_the_reason(model: Path, tmp_path: Path) -> None:
    plan = r1quant.plan(model, method="rtn", group_size=32)
    assert plan.as_dict()["formats"]["onnx"] == (
        "gemma3_text layers have norms behind attention and MLP, which no ONNX graph is built with yet"
    )
    refused = {verdict.runtime: verdict.refuses for verdict in plan.runtimes}
    assert "norms behind" in refused["onnxruntime"]["onnx"] and "gptq" not in refused["vLLM"]
    with pytest.raises(RecipeError, match="no ONNX graph"):
        r1quant.export(model, "onnx", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()
    assert ExportOptions().onnx.style == "matmulnbits"


@pytest.mark.parametrize("rotate", ["r1", "both"])
def test_the_residual_stream_is_not_rotated(model: Path, tmp_path: Path, rotate: str) -> None:
    with pytest.raises(RecipeError, match="cannot be rotated"):
        r1quant.quantize(model, tmp_path / "out", method="rtn", group_size=32, rotate=rotate)
    assert not (tmp_path / "out").exists()


def test_heads_are_rotated(model: Path) -> None:
    checkpoint = open_folder(model)
    view = rotated(checkpoint, residual=False).unrounded()
    assert not view.read("model.layers.1.self_attn.o_proj.weight").equal(
        checkpoint.read("model.layers.1.self_attn.o_proj.weight").float()
    )
    assert_close(logits(view), logits(checkpoint))


def test_factors_fold_into_norms_of_one_plus_their_weight(model: Path) -> None:
    """Of every stage at once; stored in bfloat16, a norm and the linears behind it still belong together."""
    checkpoint = open_folder(model)
    scales = {}
    for seed, (stage, fold) in enumerate(folds(architecture_of(checkpoint.config), checkpoint.config).items()):
        noise = torch.rand(fold.outputs, generator=torch.Generator().manual_seed(seed))
        scales[stage] = torch.exp2(4 * noise - 2)[fold.source]
    view = folded(checkpoint, {0: scales, 1: scales})
    norm = "model.layers.1.pre_feedforward_layernorm.weight"
    gain = (1 + checkpoint.read(norm).float()) / (1 + view.read(norm).float())
    assert ((gain - scales["gate_up"]) / scales["gate_up"]).abs().max() < 2**-5
    presented = view.unrounded()
    state = {name: presented.read(name).float() for name in presented.tensors}
    state |= {name: view.read(name).float() for name in state if name.endswith("norm.weight")}
    whole = independent.whole_model(checkpoint)
    whole.load_state_dict(state, strict=False)
    with torch.inference_mode():
        assert_close(whole(torch.from_numpy(IDS)[None]).logits[0], logits(checkpoint))


@pytest.mark.parametrize("how", [{"method": "awq"}, {"smooth": 0.5, "method": "rtn"}], ids=str)
def test_factors_are_chosen(model: Path, tmp_path: Path, how: dict[str, Any], text_file: Path) -> None:
    r1quant.quantize(model, tmp_path / "out", bits=4, calib=str(text_file), **QUICK, **how)
    record = r1quant.verify(tmp_path / "out", model, str(text_file), windows=2, seq_len=48).numbers()
    assert 0 < record["kl.mean"] < 1


@pytest.mark.parametrize("key", ["final_logit_softcapping", "attn_logit_softcapping", "use_bidirectional_attention"])
def test_relatives_that_compute_otherwise_are_refused(model: Path, key: str) -> None:
    config = open_folder(model).config
    assert architecture_of({**config, key: None}).model_class == "Gemma3ForCausalLM"
    with pytest.raises(CheckpointError, match=key):
        architecture_of({**config, key: 30.0})


def test_a_model_that_sees_is_refused_with_the_reason() -> None:
    with pytest.raises(CheckpointError, match="'gemma3' holds a gemma3_text beside parts that see or hear") as caught:
        architecture_of({"model_type": "gemma3", "text_config": {"model_type": "gemma3_text"}})
    assert caught.value.hint == "use a checkpoint of the language model alone"


def test_what_config_json_leaves_out_is_what_transformers_takes(tmp_path: Path) -> None:
    """As in config.json of models that were taken out of larger ones: heads of 256 columns, 8 of q and 4 of k and v."""
    left_out = (
        "head_dim", "num_attention_heads", "num_key_value_heads", "query_pre_attn_scalar", "rope_theta",
        "rope_local_base_freq", "sliding_window_pattern", "max_position_embeddings",
    )  # fmt: skip
    model = written(tmp_path / "m", head_dim=256, num_attention_heads=8, num_key_value_heads=4)
    path = model / "config.json"
    stated = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in stated.items() if key not in left_out}))
    checkpoint = open_folder(model)
    assert_close(torch.from_numpy(torch_model(checkpoint).logits(IDS)), logits(checkpoint))
    (export,) = r1quant.export(model, "gguf", tmp_path / "m.gguf").written
    assert_close(logits(open_gguf(export.path)), logits(checkpoint))


def test_plans_and_fits_know_the_sliding_windows(model: Path) -> None:
    config = open_folder(model).config
    cache, width = cache_of(config), 2 * 2 * 32  # keys and values, two heads of 32
    assert (cache.full, cache.windowed) == (width, ((width, 8),))
    rows = fit(model, FitOptions(gpus=("RTX 4090",), context=1000)).rows
    assert {row.as_dict()["kv_bytes"] for row in rows} == {2 * width * (1000 + 8)}
    found = r1quant.inspect(model)
    assert (found["architecture"], found["tied_embeddings"], found["linears"]) == ("gemma3_text", True, 14)
    assert not found["problems"] and not r1quant.plan(model, method="rtn", group_size=32).problems
    assert open_model(model).config == config
