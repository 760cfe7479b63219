"""fit as a user meets it: what can I run, what must I buy, and what is said where it cannot be answered."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from r1quant.errors import RecipeError
from r1quant.hardware import detect
from r1quant.hardware.cards import card, cards
from r1quant.hardware.detect import Gpu, Host
from r1quant.jobs.fit.options import FitOptions
from r1quant.jobs.fit.run import fit
from tests.configs import DEEPSEEK_V3, MISTRAL_7B, R1_QWEN3_8B
from tests.conftest import Run

KEYS = {
    "gpu", "format", "fits", "weights_bytes", "kv_bytes", "total_bytes", "max_context", "decode_tokens_per_second",
    "max_batch", "prefill_tokens_per_second", "activation_bytes", "overhead_bytes", "tensor_parallel",
}  # fmt: skip


@pytest.fixture
def r1(tmp_path: Path) -> Path:
    """A folder that has a config.json and nothing else."""
    return written(tmp_path / "r1", R1_QWEN3_8B)


def written(folder: Path, config: dict[str, Any]) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    return folder


def test_the_8b_model_from_its_config_alone(run: Run, r1: Path) -> None:
    found = run("fit", r1, "--json").json
    assert found["model"]["parameters"] == 8_190_735_360 and found["model"]["kv_bytes_per_token"] == 147_456
    assert found["context"] == 32768 and found["batch"] == 1 and not found["notes"]
    first = found["rows"][0]
    assert first["baseline"] and (first["gpu"], first["format"], first["fits"]) == ("A100 40GB", "fp16", True)
    assert first["weights_bytes"] == pytest.approx(16.4e9, rel=0.002)
    assert first["kv_bytes"] == 147_456 * 32768
    assert {row["gpu"] for row in found["rows"]} == set(cards())
    for row in found["rows"]:
        assert set(row) >= KEYS
        parts = [row[f"{part}_bytes"] for part in ("weights", "kv", "activation", "overhead")]
        assert sum(parts) == row["total_bytes"] and row["fits"] == (row["total_bytes"] <= row["usable_bytes"])
        assert row["fits"] == (row["max_context"] >= 32768) == (row["max_batch"] >= 1)
        assert row["max_context"] <= 131_072 and row["decode_tokens_per_second"] > 0
    assert len({(row["gpu"], row["format"]) for row in found["rows"]}) == len(found["rows"])


def test_what_can_i_run(run: Run, r1: Path) -> None:
    words = ("fit", r1, "--gpu", "RTX 4060 Ti 16GB", "--context", "8192", "--json")
    rows = {row["format"]: row for row in run(*words).json["rows"]}
    base = rows.pop("fp16") if rows["fp16"]["gpu"] == "A100 40GB" else None
    assert base is None and not rows["fp16"]["fits"] and rows["gptq-w4-g128"]["fits"]
    small = {row["format"] for row in run(*words, "--bits", "4", "--format", "gguf").json["rows"]}
    assert small == {"fp16", "gguf-q4_k_m", "gguf-q4_k_s", "gguf-q4_1", "gguf-q4_0", "gguf-iq4_xs", "gguf-iq4_nl"}
    for option, value, less in (("--kv-bits", "8", 0.5), ("--kv-bits", "4", 4.5 / 16)):
        fewer = {row["format"]: row for row in run(*words, option, value).json["rows"] if not row["baseline"]}
        assert fewer["gptq-w4-g128"]["kv_bytes"] == less * rows["gptq-w4-g128"]["kv_bytes"]
        assert fewer["gptq-w4-g128"]["max_context"] > rows["gptq-w4-g128"]["max_context"]
    eight = {row["format"]: row for row in run(*words, "--batch", "8").json["rows"] if not row["baseline"]}
    assert eight["awq-w4-g128"]["kv_bytes"] == 8 * rows["awq-w4-g128"]["kv_bytes"]


def test_what_must_i_buy(r1: Path) -> None:
    found = fit(r1, FitOptions(context=65536, batch=4))
    for row in found.buy:
        assert row.modelled.fits
        alone = row.modelled.gpus == 1
        smaller = [c for c in cards().values() if c.kind == row.card.kind and c.memory_bytes < row.card.memory_bytes]
        others = [r for r in found.rows if r.variant == row.variant and r.card in smaller and alone]
        assert not any(other.modelled.fits for other in others)
    kinds = {row.card.kind for row in found.buy}
    assert {"data-centre", "apple"} <= kinds
    several = [row for row in fit(r1, FitOptions(context=131072, batch=8)).buy if row.modelled.gpus > 1]
    assert several and all(row.card.kind in ("consumer", "workstation", "data-centre") for row in several)


def test_longest_context_and_largest_batch_are_just_that(r1: Path) -> None:
    card = ("RTX 3090",)
    for label in ("gptq-w8-g128", "gguf-q8_0"):
        row = next(r for r in fit(r1, FitOptions(card, (label,), context=4096)).rows if not r.baseline)
        for context, batch in ((row.max_context, 1), (4096, row.modelled.max_batch)):
            more = (context + 1, 1) if batch == 1 else (context, batch + 1)
            for (tokens, texts), fits in (((context, batch), True), (more, False)):
                again = fit(r1, FitOptions(card, (label,), context=tokens, batch=texts)).rows[-1]
                assert again.modelled.fits is fits


def test_several_cards(r1: Path, tmp_path: Path) -> None:
    one, four = (
        next(r for r in fit(r1, FitOptions(("RTX 4090",), ("fp16",), count=n)).rows if not r.baseline) for n in (1, 4)
    )
    assert four.modelled.usable_bytes == 4 * one.modelled.usable_bytes
    assert four.modelled.kv_bytes == one.modelled.kv_bytes  # 8 heads, two on each card
    assert 1.5 < four.modelled.decode_tokens_per_second / one.modelled.decode_tokens_per_second < 4
    latent = written(tmp_path / "v3", DEEPSEEK_V3)
    rows = [fit(latent, FitOptions(("H200",), ("gptq-w4-g128",), count=n)).rows[-1].modelled for n in (1, 8)]
    assert rows[1].kv_bytes == 8 * rows[0].kv_bytes and rows[1].fits and not rows[0].fits
    many = fit(r1, FitOptions(("RTX 4090",), ("fp16",), count=16)).rows[-1].modelled
    assert many.kv_bytes == 2 * one.modelled.kv_bytes  # each of 8 heads on two cards


def test_windows_bound_the_cache(tmp_path: Path) -> None:
    windowed = written(tmp_path / "mistral", MISTRAL_7B)
    row = next(
        r for r in fit(windowed, FitOptions(("RTX 4090",), ("gptq-w4-g128",), context=32768)).rows if not r.baseline
    )
    assert row.modelled.kv_bytes == 4096 * 131_072 and row.max_context == 32768


def test_a_file_of_ones_own_cards(run: Run, r1: Path, in_tmp: Path) -> None:
    text = 'name = "Mine"\nkind = "workstation"\nmemory_gib = 23\nbandwidth_gbs = 500\nfp16_tflops = 90\n'
    Path("own.toml").write_text(f'[[card]]\n{text}bf16 = true\nsource = "the invoice"\n')
    found = run("fit", r1, "--hardware", "own.toml", "--json").json
    assert {row["gpu"] for row in found["rows"]} == {"A100 40GB", "Mine"}
    assert any(entry["gpu"] == "Mine" for entry in found["buy"])
    assert run("fit", r1, "--hardware", "none.toml").code == 2


@pytest.mark.parametrize(
    ("words", "code", "says", "hint"),
    [
        (["--gpu", "RTX 4091"], 2, "the card 'RTX 4091' is not known", "RTX 4090"),
        (["--context", "200000"], 2, "context 200000 is longer than the model's 131072 positions", "--context 131072"),
        (["--context", "0"], 2, "context is 0", "at least 1"),
        (["--batch", "0"], 2, "batch is 0", "at least 1"),
        (["--format", "gtpq"], 2, "there is no format 'gtpq'", "gptq"),
        (["--format", "awq", "--bits", "8"], 2, "no variant has these formats and bits", "--bits"),
        (["--bits", "four"], 2, "bits is 'four'", "a whole number from 1 to 16"),
        (["--kv-bits", "5"], 2, "kv-bits 5 is not supported", "16, 8, 4"),
        (["--gpus", "3"], 2, "32 attention heads cannot be split over 3 cards", "1, 2, 4, 8"),
        (["--records", "none"], 2, "there is no none", "bench"),
    ],
)
def test_what_cannot_be_asked(run: Run, r1: Path, words: list[str], code: int, says: str, hint: str) -> None:
    ran = run("fit", r1, *words)
    assert (ran.code, ran.out) == (code, "") and says in ran.error[0] and hint in ran.error[1]


def test_models_that_are_not_there_or_say_too_little(run: Run, tmp_path: Path) -> None:
    assert run("fit", "no-such-model").code == 3
    lacking = written(tmp_path / "lacking", {"model_type": "qwen3", "hidden_size": 64})
    assert run("fit", lacking).error[0].startswith("config.json: ")
    unknown = written(tmp_path / "unknown", {**R1_QWEN3_8B, "model_type": "qwen9"})
    ran = run("fit", unknown)
    assert ran.code == 0 and ran.err.count("note: ") == 1 and "'qwen9' is not known" in ran.err


def test_the_tables(run: Run, r1: Path) -> None:
    shown = run("fit", r1)
    assert "8,190,735,360 parameters, 147,456 B of 16-bit cache" in shown.out and "smallest that holds it" in shown.out
    assert len(shown.out.splitlines()) < 60 and shown.err == ""
    chosen = run("fit", r1, "--gpu", "l4")
    assert "L4: 24 GiB, 300 GB/s, 121 TFLOPS" in chosen.out and "fp16, A100 40GB" in chosen.out
    tiny = run("fit")
    assert "\ntiny-r1 (qwen3): 2,624,256 parameters" in tiny.out


def test_nothing_heavy_is_loaded(r1: Path) -> None:
    code = (
        "import sys; from r1quant.cli import console, cli; console.run(cli, sys.argv[1:]);"
        "heavy = {'torch', 'transformers', 'numba', 'onnx', 'gguf', 'onnxruntime', 'huggingface_hub', 'tokenizers'};"
        "sys.exit(f'loaded {heavy & set(sys.modules)}' if heavy & set(sys.modules) else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, "fit", str(r1), "--json"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"]["parameters"] == 8_190_735_360


def test_this_machine(monkeypatch: pytest.MonkeyPatch, run: Run, r1: Path) -> None:
    driver = "NVIDIA A100-SXM4-40GB, 40960\nNVIDIA A100-SXM4-40GB, 40960\nNVIDIA TITAN V, 12288\n"
    monkeypatch.setattr(detect, "_output_of", lambda *words: driver if words[0] == "nvidia-smi" else "")
    assert detect.gpus()[0] == Gpu("NVIDIA A100-SXM4-40GB", 40 << 30)
    monkeypatch.setattr(detect, "READ_BYTES", 1 << 22)
    here = detect.machine(cards().values())
    assert [found.name for found in here.cards] == ["A100 40GB", detect.host().name]
    assert here.cards[1].kind == "cpu" and here.cards[1].bandwidth > 1e8 and here.cards[1].fp16_flops > 1e8
    assert here.cards[1].memory_bytes > 1 << 28 and detect.machine([]).cards[-1] == here.cards[1]
    assert len(here.notes) == 1 and "TITAN V" in here.notes[0] and "--hardware" in here.notes[0]
    found = run("fit", r1, "--detect", "--json").json
    assert {row["gpu"] for row in found["rows"]} == {"A100 40GB", detect.host().name}
    assert any("TITAN V" in note for note in found["notes"])


def test_a_mac_is_known_by_its_chip(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "host", lambda: Host("Apple M3 Max", 16, 36 << 30))
    (found,) = detect.machine(cards().values()).cards
    assert found.name == "M3 Max 36GB" and found.memory_bytes == 36 << 30
    assert found.bandwidth == card("M3 Max 128GB").bandwidth


def test_numbers_that_are_not_possible() -> None:
    for wrong in ({"batch": True}, {"context": 1.5}, {"count": 0}):
        with pytest.raises(RecipeError):
            FitOptions(**wrong)
    assert replace(FitOptions(), batch=2).batch == 2
