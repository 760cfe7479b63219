"""What is refused for a card says what that card does hold."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.resolve import open_model
from r1quant.hardware.cards import Card, cards
from r1quant.hardware.inventory import of_config
from r1quant.planning.recommend import Capacities, Load, candidates, recommend, what_fits
from r1quant.planning.variants import usual, variants
from tests.configs import R1_QWEN3_8B
from tests.conftest import Run


@pytest.fixture
def headers(tmp_path: Path) -> Path:
    """The 8B model with headers alone: its weights are a hole in the file."""
    config, header, end = R1_QWEN3_8B, {}, 0
    for name, shape in architecture_of(config).shapes(config).items():
        nbytes = 2 * math.prod(shape)
        if name.endswith(".bias"):
            continue
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + nbytes]}
        end += nbytes
    content = json.dumps(header).encode()
    folder = tmp_path / "r1"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config), "utf-8")
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(content).to_bytes(8, "little") + content)
        file.truncate(8 + len(content) + end)
    return folder


def test_quantizing_for_a_card_that_is_too_small_says_what_fits(headers: Path, run: Run, in_tmp: Path) -> None:
    ran = run("plan", headers, "--fit-gpu", "RTX 4060", "--context", "32768", "--json")
    assert ran.code == 2
    problem = next(problem for problem in ran.json["problems"] if "too small" in problem["message"])
    fitted = run("fit", headers, "--gpu", "RTX 4060", "--context", "32768", "--json").json
    assert problem["hint"].endswith(f"; {fitted['recommendation']['text']}")
    assert "on RTX 4060: Q4_K_M with an 8-bit cache, 2" in problem["hint"]
    assert what_fits(open_model(headers), cards()["RTX 4060"], 32768) == fitted["recommendation"]["text"]


def capacities(load: Load) -> Capacities:
    model = of_config(R1_QWEN3_8B)
    return Capacities(model, usual(model), load, R1_QWEN3_8B["max_position_embeddings"])


@pytest.mark.parametrize("name", sorted(cards()))
def test_what_is_recommended_is_held_and_nothing_more_precise_is(name: str) -> None:
    card, held = cards()[name], capacities(Load(16384))
    among = candidates(list(held.weights), False, False)
    advice = recommend(held, among, card, cards().values())
    if not advice.holds:
        assert advice.choice is None or 1024 <= advice.choice.max_context < 16384
        assert advice.needed is not None
        return
    assert advice.choice is not None and advice.choice.max_context >= 16384
    chosen = next(variant for variant in among if variant.label == advice.choice.format)
    assert held.modelled(chosen, card, kv_bits=advice.choice.kv_bits).fits
    better = [variant for variant in among if variant.bits > chosen.bits]
    assert not any(held.modelled(variant, card, kv_bits=advice.choice.kv_bits).fits for variant in better)


def test_servers_run_safetensors_and_others_gguf() -> None:
    held, gib = capacities(Load(8192)), 1 << 30
    for kind, title in (("data-centre", "W8 GPTQ"), ("consumer", "Q8_0"), ("apple", "Q8_0")):
        card: Card = replace(cards()["L4"], kind=kind, memory_bytes=18 * gib)
        advice = recommend(held, candidates(list(held.weights), False, False), card, [])
        assert advice.choice is not None and advice.choice.title == title and advice.needed is None


def test_candidates_are_one_of_a_kind_and_not_too_coarse() -> None:
    every = variants()
    plain = candidates(every, False, False)
    assert min(v.bits for v in plain) == 4 and all(v.format != "onnx" for v in plain)
    assert len({(v.format, v.bits, v.kind) for v in plain}) == len(plain)
    assert {v.label for v in plain} >= {"fp16", "gptq-w4-g128", "gguf-q4_k_m"} and "gptq-w4-g64" not in {
        v.label for v in plain
    }
    three = [v for v in every if v.bits == 3 and v.format == "gptq"]
    assert candidates(three, True, True) == candidates(three, True, False) == three[:1]
