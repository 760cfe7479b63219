"""Whole models of every architecture: onnxruntime against transformers, at once and token by token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch

from r1quant.arch.tables import architecture_of
from r1quant.backends.onnxruntime import OnnxRuntime
from r1quant.formats.onnx.options import OnnxOptions
from r1quant.formats.onnx.writer import OnnxFolder, data_bytes, write
from tests.formats.onnx.memory import Memory, Session, decoder, log_softmax, reference

LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
WINDOW = {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 1}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama-tied": ("llama", {"tied": True, "rope_scaling": LLAMA3}),
    "llama-w8": ("llama", {"bits": 8}),
    "llama-float": ("llama", {"bits": 0, "tied": True}),
    "mistral-window": ("mistral", {"sliding_window": 8, "symmetric": False}),
    "qwen2": ("qwen2", {"bits": 3, "tied": True}),
    "qwen2-window": ("qwen2", {"group_size": -1, **WINDOW}),
    "qwen3-yarn": ("qwen3", {}),
    "qwen3-w8": ("qwen3", {"bits": 8, "group_size": 16, "symmetric": False}),
}  # fmt: skip
TOKENS = np.random.default_rng(5).integers(0, 512, 24)


def written(folder: Path, artifact: Memory, **options: Any) -> OnnxFolder:
    folder.mkdir(exist_ok=True)
    return write(artifact, architecture_of(artifact.config), folder, OnnxOptions(**options))


@pytest.mark.parametrize("style", ["matmulnbits", "qdq"])
@pytest.mark.parametrize("case", CASES)
def test_every_architecture_gives_the_scores_of_transformers(tmp_path: Path, case: str, style: str) -> None:
    model_type, options = CASES[case]
    artifact = decoder(model_type, **options)
    result = written(tmp_path, artifact, style=style, accuracy_level=1)
    assert not result.inexact
    onnx.checker.check_model(str(tmp_path / "model.onnx"), full_check=style == "qdq")
    with torch.no_grad():
        expected = log_softmax(reference(artifact)(torch.from_numpy(TOKENS)[None]).logits[0].numpy())
    session = Session(tmp_path)
    together, alone = session.scores(TOKENS), session.one_by_one(TOKENS, 5)
    assert together.dtype == np.float32
    assert np.abs(log_softmax(together) - expected).max() < 1e-3
    assert np.abs(log_softmax(alone) - expected).max() < 1e-3


def test_standard_style_has_standard_operators_only(tmp_path: Path) -> None:
    written(tmp_path, decoder("qwen3"), style="qdq")
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""}
    assert [(opset.domain, opset.version) for opset in model.opset_import] == [("", 21)]


def test_standard_style_takes_padded_batches(tmp_path: Path) -> None:
    artifact = decoder("mistral", sliding_window=8)
    written(tmp_path, artifact, style="qdq")
    session = Session(tmp_path)
    tokens, mask = np.stack([TOKENS, TOKENS]), np.ones((2, 24), np.int64)
    tokens[1, :7], mask[1, :7] = 0, 0
    logits, _ = session.run(tokens, mask, session.empty(2))
    np.testing.assert_allclose(logits[0], session.scores(TOKENS), atol=1e-3)
    np.testing.assert_allclose(logits[1, 7:], session.scores(TOKENS[7:]), atol=1e-3)


def test_the_fused_operators_leave_no_other_way(tmp_path: Path) -> None:
    """One MatMulNBits for q, k and v and one for gate and up; normalizations that onnxruntime fuses."""
    import onnxruntime

    written(tmp_path, decoder("qwen3"))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.add_session_config_entry("session.optimized_model_external_initializers_file_name", "optimized.data")
    onnxruntime.InferenceSession(tmp_path / "model.onnx", options)
    kinds = [n.op_type for n in onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph.node]
    assert kinds.count("MatMulNBits") == 2 * 4 and kinds.count("GroupQueryAttention") == 2
    assert kinds.count("SimplifiedLayerNormalization") == 1 + 2 * 2
    assert kinds.count("ReduceMean") == 0


def test_float16_says_what_it_rounded(tmp_path: Path) -> None:
    artifact = decoder("qwen2", tied=True)
    tiny = artifact.floats["model.norm.weight"]
    tiny[0] = 2.0**-30
    result = written(tmp_path, artifact, dtype="float16")
    assert "model.norm.weight" in result.inexact
    assert result.inexact["model.norm.weight"] == "1 of 64 values are rounded to float16"
    about = json.loads(onnx.load(tmp_path / "model.onnx", load_external_data=False).metadata_props[0].value)
    assert about["inexact"] == result.inexact
    with torch.no_grad():
        expected = log_softmax(reference(artifact)(torch.from_numpy(TOKENS)[None]).logits[0].numpy())
    session = Session(tmp_path)
    for found in (session.scores(TOKENS), session.one_by_one(TOKENS, 5)):
        assert found.dtype == np.float16
        assert np.abs(log_softmax(found) - expected).max() < 0.1


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("hidden", [64, 80])
def test_8_bit_embedding_and_head(tmp_path: Path, tied: bool, hidden: int) -> None:
    artifact = decoder("llama", 4, 16, tied=tied, hidden_size=hidden, head_dim=16)
    plain, small = tmp_path / "plain", tmp_path / "small"
    written(plain, artifact)
    result = written(small, artifact, embedding="q8", head="q8")
    names = {"model.embed_tokens.weight"} | (set() if tied else {"lm_head.weight"})
    assert set(result.inexact) == names
    assert all(reason == "rounded to 8 bits in blocks of 32" for reason in result.inexact.values())
    p, q = (Session(folder).scores(TOKENS) for folder in (plain, small))
    assert 1e-4 < np.abs(p - q).max() < 0.02 * np.abs(p).max()
    saved = (plain / "model.onnx.data").stat().st_size - (small / "model.onnx.data").stat().st_size
    assert saved > 0.6 * 512 * hidden * 4 * len(names)


def test_tied_embeddings_are_stored_once(tmp_path: Path) -> None:
    sizes = {tied: data_bytes(a, architecture_of(a.config), OnnxOptions())
             for tied in (True, False) for a in [decoder("llama", tied=tied)]}  # fmt: skip
    assert sizes[False] - sizes[True] == 512 * 64 * 4
    written(tmp_path, decoder("llama", tied=True))
    assert (tmp_path / "model.onnx.data").stat().st_size == sizes[True]


def test_same_model_same_bytes(tmp_path: Path) -> None:
    files = [written(tmp_path / name, decoder("qwen3")).files for name in ("a", "b")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    assert {path.name for path in files[0]} == {path.name for path in (tmp_path / "a").iterdir()}


def test_every_tensor_outside_is_aligned_and_progress_adds_up(tmp_path: Path) -> None:
    artifact = decoder("qwen3")
    steps: list[int] = []
    write(artifact, architecture_of(artifact.config), tmp_path, OnnxOptions(), steps.append)
    model = onnx.load(tmp_path / "model.onnx", load_external_data=False)
    places = [{e.key: e.value for e in t.external_data} for t in model.graph.initializer if t.external_data]
    assert all(int(place["offset"]) % 4096 == 0 for place in places)
    assert sum(int(place["length"]) for place in places) == sum(steps)
    assert all(len(t.raw_data) < 64 for t in model.graph.initializer)


def test_configuration_for_genai(tmp_path: Path) -> None:
    written(tmp_path, decoder("qwen3", max_position_embeddings=131072), threads=3)
    found = json.loads((tmp_path / "genai_config.json").read_text())
    assert found["model"]["eos_token_id"] == [1, 3] and found["model"]["pad_token_id"] == 1
    assert found["model"]["type"] == "qwen3" and found["model"]["context_length"] == 131072
    decoding = found["model"]["decoder"]
    assert (decoding["head_size"], decoding["num_key_value_heads"]) == (32, 2)
    assert decoding["session_options"]["intra_op_num_threads"] == 3
    assert found["search"]["do_sample"] and found["search"]["temperature"] == 0.6 and found["search"]["top_p"] == 0.95
    assert found["search"]["max_length"] == 131072 and found["search"]["past_present_share_buffer"]


def test_an_8b_model_does_not_reserve_39_gb_by_default() -> None:
    from r1quant.formats.onnx.dimensions import Dimensions
    from r1quant.formats.onnx.genai import default_length

    sizes = Dimensions(4096, 32, 8, 128, 151936, 131072, 1e-6, (None,) * 36)
    assert default_length(sizes, OnnxOptions()) == 16384
    assert default_length(sizes, OnnxOptions(dtype="float16")) == 32768


def test_backend_scores_and_generates(tmp_path: Path) -> None:
    artifact = decoder("qwen3")
    written(tmp_path, artifact)
    runtime = OnnxRuntime(tmp_path, threads=1)
    model = reference(artifact)
    given = torch.from_numpy(TOKENS)[None]
    with torch.no_grad():
        expected = model(given).logits[0].numpy()
        for _ in range(20):
            given = torch.cat([given, model(given).logits[:, -1:].argmax(-1)], dim=1)
    np.testing.assert_allclose(runtime.logits(TOKENS), expected, atol=1e-3)
    assert runtime.generate(TOKENS, 20) == given[0, 24:].tolist()


def test_a_missing_runtime_is_said_with_its_install_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    from r1quant.errors import CheckpointError, MissingDependency

    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(CheckpointError, match="cannot load"):
        OnnxRuntime(tmp_path)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency) as caught:
        OnnxRuntime(tmp_path)
    assert caught.value.hint == "pip install 'r1quant[onnxruntime]'" and caught.value.exit_code == 4
