"""The table of cards: complete, strict, and found by the names that users write."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from r1quant.errors import RecipeError
from r1quant.hardware.cards import KINDS, PCIE, card, cards, driven, matching, parse, with_own

TEXT = resources.files("r1quant").joinpath("hardware", "gpus.toml").read_text("utf-8")
ONE = """[[card]]
name = "A"
kind = "consumer"
memory_gib = 8
bandwidth_gbs = 1.0
fp16_tflops = 2.0
bf16 = false
source = "me"
"""
KNOWN = {  # of NVIDIA's own tables: GiB, GB/s, dense TFLOPS
    "A100 40GB": (40, 1555, 312), "A100 80GB": (80, 2039, 312), "H100 SXM": (80, 3350, 989.5), "L4": (24, 300, 121),
    "T4": (16, 320, 65), "RTX 3090": (24, 936, 71), "RTX 4090": (24, 1008, 165.2), "RTX 5090": (32, 1792, 209.5),
}  # fmt: skip


def test_the_well_known_ones_are_there_and_are_found_by_name() -> None:
    assert card("rtx4090") is card("RTX 4090") is cards()["RTX 4090"]
    for name, (memory, bandwidth, flops) in KNOWN.items():
        found = card(name)
        assert (found.memory_bytes, found.bandwidth, found.fp16_flops) == (memory << 30, bandwidth * 1e9, flops * 1e12)
    assert not card("T4").bf16_flops and card("L4").bf16_flops == card("L4").fp16_flops
    assert {found.kind for found in cards().values()} == set(KINDS)
    assert len(cards()) >= 70


@pytest.mark.parametrize("name", cards())
def test_figures_are_of_such_hardware(name: str) -> None:
    """In bytes, bytes a second and operations a second: a slip of 1000 or a figure with sparsity shows."""
    found = card(name)
    memory, bandwidth, flops = {
        "data-centre": ((16, 300), (250, 9000), (60, 2500)),
        "workstation": ((8, 130), (200, 2000), (30, 600)),
        "consumer": ((6, 40), (200, 2000), (20, 250)),
        "laptop": ((6, 130), (150, 1000), (20, 120)),
        "apple": ((8, 520), (60, 900), (2, 40)),
        "jetson": ((4, 130), (50, 300), (5, 300)),
        "cpu": ((4, 1600), (10, 700), (0.05, 20)),
    }[found.kind]
    assert memory[0] << 30 <= found.memory_bytes <= memory[1] << 30
    assert bandwidth[0] * 1e9 <= found.bandwidth <= bandwidth[1] * 1e9
    assert flops[0] * 1e12 <= found.fp16_flops <= flops[1] * 1e12
    assert found.bf16_flops in (0, found.fp16_flops)
    assert 10e9 <= found.link <= 1e12
    assert len(found.source) > 15


def test_part_of_a_name_or_a_kind_means_several() -> None:
    assert [found.name for found in matching("a100", cards())] == ["A100 40GB", "A100 80GB"]
    assert [found.name for found in matching("L4", cards())] == ["L4"]
    assert {found.kind for found in matching("laptop", cards())} == {"laptop"}
    with pytest.raises(RecipeError, match="RTX 4090"):
        matching("RTX 4091", cards())
    with pytest.raises(RecipeError):
        matching("  ", cards())


@pytest.mark.parametrize(
    ("driver", "gib", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.4, "A100 40GB"),
        ("NVIDIA A100-SXM4-80GB", 79.2, "A100 80GB"),
        ("NVIDIA H100 80GB HBM3", 79.6, "H100 SXM"),
        ("NVIDIA H100 PCIe", 79.6, "H100 PCIe"),
        ("NVIDIA H100 NVL", 93.6, "H100 NVL"),
        ("NVIDIA H200", 140.4, "H200"),
        ("Tesla T4", 15, "T4"),
        ("Tesla V100-SXM2-16GB", 15.8, "V100 16GB"),
        ("NVIDIA GeForce RTX 4090", 24, "RTX 4090"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", 16, "RTX 4090 Laptop"),
        ("NVIDIA GeForce RTX 4060 Ti", 16, "RTX 4060 Ti 16GB"),
        ("NVIDIA RTX 6000 Ada Generation", 48, "RTX 6000 Ada"),
        ("NVIDIA RTX A6000", 48, "RTX A6000"),
        ("AMD Radeon RX 7900 XTX", 24, "RX 7900 XTX"),
        ("NVIDIA GeForce RTX 4060 Ti", 8, None),
        ("NVIDIA TITAN V", 12, None),
    ],
)
def test_cards_by_what_their_driver_calls_them(driver: str, gib: float, name: str | None) -> None:
    found = driven(driver, round(gib * 2**30), cards().values())
    assert (found and found.name) == name


def test_a_file_of_ones_own_adds_and_replaces(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text(ONE + ONE.replace('"A"', '"T4"') + "link_gbs = 7\n")
    found = with_own(own)
    assert len(found) == len(cards()) + 1 and found["A"].memory_bytes == 8 << 30 and found["A"].link == PCIE
    assert found["T4"].link == 7e9 and cards()["T4"].memory_bytes == 16 << 30
    own.write_text(ONE.replace("memory_gib = 8", "memory = 8"))
    with pytest.raises(RecipeError, match="the keys must be") as caught:
        with_own(own)
    assert "memory_gib" in caught.value.hint
    with pytest.raises(RecipeError, match="cannot be read"):
        with_own(tmp_path / "absent.toml")
    own.write_text("= 1")
    with pytest.raises(RecipeError):
        with_own(own)


def test_an_unknown_card_is_refused_with_those_that_are_like_it() -> None:
    with pytest.raises(RecipeError, match="RTX 4090") as caught:
        card("RTX 4091")
    assert caught.value.message == "the card 'RTX 4091' is not known"
    for name, hint in (
        ("4061", "did you mean RTX 4060 or RTX 4060 Ti 16GB or RTX 4060 Laptop? r1quant fit --json lists all cards"),
        ("?", "r1quant fit --json lists all cards"),
    ):
        with pytest.raises(RecipeError) as caught:
            card(name)
        assert caught.value.hint == hint


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ONE + "watts = 1\n", "the keys must be"),
        (ONE.replace("bandwidth_gbs = 1.0\n", ""), "the keys must be"),
        (ONE + ONE, "A is there twice"),
        (ONE.replace("= 8", '= "8"'), "memory_gib of A is '8'"),
        (ONE.replace("= 1.0", "= 0.0"), "bandwidth_gbs of A is 0.0"),
        (ONE.replace("= 2.0", "= true"), "fp16_tflops of A is True"),
        (ONE.replace("= 2.0", "= 312e12"), "fp16_tflops of A is 3"),
        (ONE.replace("consumer", "toaster"), "kind of A is 'toaster'"),
        (ONE.replace("false", "0"), "bf16 of A must be true or false"),
        (ONE.replace('"A"', '""'), "a card's name is ''"),
        (ONE + "[other]\n", "the only table"),
        ("", "the only table"),
    ],
)
def test_the_table_is_read_strictly(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text, "here")
    assert parse(ONE, "here")["A"].bandwidth == 1e9
