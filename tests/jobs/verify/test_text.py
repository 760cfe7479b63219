"""Text: what the baseline said is kept and found again, never for another; and any runtime may be the baseline."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import r1quant
from r1quant.backends.torch import TorchModel
from r1quant.jobs.verify import baselines
from tests import models
from tests.conftest import Ran, Run

WINDOWS = ("--windows", "8", "--seq-len", "32")
METRICS = ("tokens", "perplexity", "kl", "delta_p_rms", "top1", "top1_ci95", "by_class", "kl_estimator")


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("R1QUANT_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def four_bits(llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantized") / "w4"
    r1quant.quantize(llama, out, bits=4, group_size=32, method="rtn")
    return out


def metrics(ran: Ran) -> dict[str, Any]:
    assert ran.code == 0, ran.err
    return {name: ran.json[name] for name in METRICS}


def entries(cache: Path) -> list[Path]:
    return sorted(cache.glob("baseline-*"))


def cached(ran: Ran) -> bool:
    return bool(ran.json["text"]["baseline_cached"])


def test_what_the_baseline_said_is_not_asked_again(
    run: Run, llama: Path, four_bits: Path, text_file: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("verify", four_bits, "--baseline", llama, "--text", text_file, *WINDOWS, "--json")
    passes: list[int] = []
    states = TorchModel.final_states

    def counting(*given: Any) -> Any:
        passes.append(1)
        return states(*given)

    monkeypatch.setattr(TorchModel, "final_states", counting)
    first = run(*words)
    assert not cached(first) and len(passes) == 2 and len(entries(own_cache)) == 1
    again = run(*words)
    assert cached(again) and len(passes) == 3 and len(entries(own_cache)) == 1
    assert metrics(again) == metrics(first) and first.json["kl"]["mean"] > 1e-3
    assert not list(own_cache.glob("*.partial"))


def test_another_text_or_another_cut_of_it_is_another_entry(
    run: Run, llama: Path, four_bits: Path, text_file: Path, own_cache: Path, in_tmp: Path
) -> None:
    (in_tmp / "other.txt").write_text("Another text. " + text_file.read_text("utf-8"), "utf-8")
    start = ("verify", four_bits, "--baseline", llama, "--json", "--text")
    runs = [
        (text_file, *WINDOWS),
        (text_file, "--windows", "8", "--seq-len", "33"),
        (text_file, "--windows", "16", "--seq-len", "16"),
        ("other.txt", *WINDOWS),
        (text_file, *WINDOWS, "--dtype", "bfloat16"),
    ]
    for number, words in enumerate(runs, 1):
        ran = run(*start, *words)
        assert ran.code == 0 and not cached(ran) and len(entries(own_cache)) == number, words
    for words in runs:
        assert cached(run(*start, *words)), words


def test_a_bfloat16_baseline_comes_back_as_it_was(
    run: Run, llama: Path, four_bits: Path, text_file: Path, own_cache: Path
) -> None:
    words = ("verify", four_bits, "--baseline", llama, "--text", text_file, *WINDOWS, "--dtype", "bfloat16", "--json")
    first, again = run(*words), run(*words)
    assert not cached(first) and cached(again) and metrics(first) == metrics(again)


def test_one_baseline_serves_many_artifacts(
    run: Run, llama: Path, four_bits: Path, text_file: Path, own_cache: Path
) -> None:
    assert run("quantize", llama, "--bits", "8", "--method", "rtn", "--group-size", "32", "-o", "w8").code == 0
    words = ("--baseline", llama, "--text", text_file, *WINDOWS, "--json")
    coarse, fine = run("verify", four_bits, *words), run("verify", "w8", *words)
    assert not cached(coarse) and cached(fine) and len(entries(own_cache)) == 1
    assert fine.json["perplexity"]["baseline"] == coarse.json["perplexity"]["baseline"]
    assert fine.json["kl"]["mean"] < coarse.json["kl"]["mean"] / 10


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "text", "another"])
def test_a_damaged_entry_is_made_again(
    run: Run, llama: Path, four_bits: Path, text_file: Path, own_cache: Path, damage: str
) -> None:
    words = ("verify", four_bits, "--baseline", llama, "--text", text_file, *WINDOWS, "--json")
    first = run(*words)
    (path,) = entries(own_cache)
    content = path.read_bytes()
    if damage == "another":
        run("verify", four_bits, "--baseline", llama, "--text", text_file, "--windows", "8", "--seq-len", "40")
        (other,) = set(entries(own_cache)) - {path}
        path.write_bytes(other.read_bytes())
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes({"cut": content[:-9], "flipped": flipped, "empty": b"", "text": b"no zip"}[damage])
    again = run(*words)
    assert not cached(again) and metrics(again) == metrics(first) and path.read_bytes() == content
    assert cached(run(*words))


def test_no_damage_of_a_byte_is_taken_for_an_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever it is, what comes back is what was put there."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    held = {"nll": np.arange(7, dtype=np.float64), "dtype": np.array("float32")}
    identity = {"model": "a", "tokens": "b"}
    baselines.load_or_make(tmp_path, identity, lambda: held)
    (path,) = tmp_path.iterdir()
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ (128, 1)[place % 2]]) + content[place + 1 :])
        found, _ = baselines.load_or_make(tmp_path, identity, lambda: held)
        assert set(found) == set(held), place
        assert all(found[name].tobytes() == array.tobytes() for name, array in held.items()), place


def test_a_baseline_that_was_changed_is_another(
    run: Run, copied: Path, four_bits: Path, text_file: Path, own_cache: Path
) -> None:
    """One byte of one weight, at the same path and of the same size; and a number in the config."""
    words = ("verify", four_bits, "--baseline", copied, "--text", text_file, *WINDOWS, "--json")
    first = run(*words)
    weights = copied / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2] ^= 0x40
    weights.write_bytes(bytes(content))
    second = run(*words)
    assert not cached(second) and second.json["hashes"]["baseline"] != first.json["hashes"]["baseline"]
    assert second.json["perplexity"]["baseline"] != first.json["perplexity"]["baseline"]
    config = copied / "config.json"
    config.write_text(config.read_text().replace('"rope_theta": 10000.0', '"rope_theta": 9000.0'))
    third = run(*words)
    assert not cached(third) and third.json["perplexity"]["baseline"] != second.json["perplexity"]["baseline"]
    content[-2] ^= 0x40
    weights.write_bytes(bytes(content))
    config.write_text(config.read_text().replace('"rope_theta": 9000.0', '"rope_theta": 10000.0'))
    last = run(*words)
    assert cached(last) and metrics(last) == metrics(first), "the files are what counts, not when they were written"


def test_the_same_files_elsewhere_are_the_same_baseline(
    run: Run, llama: Path, copied: Path, four_bits: Path, text_file: Path, own_cache: Path
) -> None:
    words = ("--text", text_file, *WINDOWS, "--json")
    first = run("verify", four_bits, "--baseline", llama, *words)
    moved = shutil.move(copied, copied.with_name("elsewhere"))
    again = run("verify", four_bits, "--baseline", moved, *words)
    assert not cached(first) and cached(again) and again.json["hashes"] == first.json["hashes"]


def test_another_runtime_as_the_baseline(
    run: Run, llama: Path, four_bits: Path, text_file: Path, own_cache: Path
) -> None:
    """The float model in ONNX says what it says in torch: so does the comparison, kept or not."""
    if importlib.util.find_spec("onnxruntime") is None:
        pytest.skip("onnxruntime is not installed")
    assert run("export", llama, "--to", "onnx", "-o", "onnx").code == 0
    words = ("--text", text_file, *WINDOWS, "--json")
    torch = run("verify", four_bits, "--baseline", llama, *words).json
    runs = [run("verify", four_bits, "--baseline", "onnx", *words, "--baseline-backend", "onnxruntime") for _ in "12"]
    assert [cached(ran) for ran in runs] == [False, True] and metrics(runs[0]) == metrics(runs[1])
    found = runs[0].json
    assert (found["backend"], found["baseline_backend"], found["kl_estimator"]) == ("torch", "onnxruntime", "exact")
    for side in ("baseline", "quantized"):
        assert found["perplexity"][side] == pytest.approx(torch["perplexity"][side], rel=1e-5)
    assert found["kl"]["mean"] == pytest.approx(torch["kl"]["mean"], rel=1e-3)
    assert found["kl"]["sampling_error"] == 0 and found["top1"] == torch["top1"]
    auto = run("verify", "onnx", "--baseline", llama, *words, "--backend", "auto").json
    assert auto["backend"] == "onnxruntime" and auto["baseline_backend"] == "torch"
    assert 0 <= auto["kl"]["mean"] < 1e-6 and auto["top1"] == 1


def test_mistral_in_gguf_is_verified_against_mistral(run: Run, tmp_path: Path, text_file: Path) -> None:
    """GGUF calls it llama."""
    model = models.write_model(tmp_path / "mistral", "mistral")
    r1quant.quantize(model, tmp_path / "w4", bits=4, group_size=32, method="rtn")
    words = ("--baseline", model, "--text", text_file, *WINDOWS, "--json")
    reference = run("verify", tmp_path / "w4", *words)
    assert run("export", tmp_path / "w4", "--to", "gguf", "-o", "gguf").code == 0
    found = run("verify", "gguf", *words)
    assert metrics(found) == metrics(reference) and found.json["kl"]["mean"] > 1e-3
    other = models.write_model(tmp_path / "qwen", "qwen2")
    refused = run("verify", "gguf", "--baseline", other, "--text", text_file, *WINDOWS)
    assert refused.code == 3 and "model_type is qwen2" in refused.error[0]
    if importlib.util.find_spec("llama_cpp") is not None:
        served = run("verify", "gguf", *words, "--backend", "llamacpp")
        assert served.json["backend"] == "llamacpp"
        assert served.json["kl"]["mean"] == pytest.approx(reference.json["kl"]["mean"], rel=0.2)
