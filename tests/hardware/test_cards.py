"""The table of cards: complete, strict, and found by the names that users write."""

from __future__ import annotations

from importlib import resources

import pytest

from r1quant.errors import RecipeError
from r1quant.hardware.cards import card, cards, parse

TEXT = resources.files("r1quant").joinpath("hardware", "gpus.toml").read_text("utf-8")
ONE = '[[card]]\nname = "A"\nmemory_bytes = 8\nbandwidth = 1.0\nfp16_flops = 2.0\nbf16_flops = 0\n'
NAMES = [
    "A100 40GB", "A100 80GB", "H100 SXM", "H100 PCIe", "H200", "L4", "L40S", "A10", "T4", "RTX 3060 12GB", "RTX 3090",
    "RTX 4060", "RTX 4060 Ti 16GB", "RTX 4070", "RTX 4080", "RTX 4090", "RTX 5090",
]  # fmt: skip


def test_the_well_known_ones_are_there_and_are_found_by_name() -> None:
    assert list(cards()) == NAMES
    assert card("rtx4090") is card("RTX 4090") is cards()["RTX 4090"]
    assert card("A100 40GB").memory_bytes == 40 << 30
    assert not card("T4").bf16_flops and card("T4").fp16_flops
    assert card("H200").memory_bytes > card("H100 SXM").memory_bytes


@pytest.mark.parametrize("name", NAMES)
def test_figures_are_of_a_card(name: str) -> None:
    """In bytes, bytes a second and operations a second: a slip of 1000 or a figure with sparsity shows."""
    found = card(name)
    assert 8 << 30 <= found.memory_bytes <= 200 << 30 and found.memory_bytes % (1 << 30) == 0
    assert 250e9 <= found.bandwidth <= 8e12
    assert 20e12 <= found.fp16_flops <= 1000e12
    assert found.bf16_flops in (0, found.fp16_flops)


def test_an_unknown_card_is_refused_with_those_that_are_like_it() -> None:
    with pytest.raises(RecipeError, match="RTX 4090") as caught:
        card("RTX 4091")
    assert caught.value.message == "the card 'RTX 4091' is not known"
    with pytest.raises(RecipeError, match="A100 40GB, A100 80GB"):
        card("?")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (ONE + "watts = 1\n", "the keys must be exactly"),
        (ONE.replace("bandwidth = 1.0\n", ""), "the keys must be exactly"),
        (ONE + ONE, "A is there twice"),
        (ONE.replace("= 8", "= 8.5"), "memory_bytes of A is 8.5"),
        (ONE.replace("= 1.0", "= 0.0"), "bandwidth of A is 0.0"),
        (ONE.replace("= 2.0", "= true"), "fp16_flops of A is True"),
        (ONE.replace('"A"', '""'), "a card's name is ''"),
        (ONE + "[other]\n", "the only table"),
        ("", "the only table"),
    ],
)
def test_the_table_is_read_strictly(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse(text, "here")
    assert parse(ONE, "here")["A"].bandwidth == 1.0


def test_every_card_has_its_source() -> None:
    heads = [line for line in TEXT.splitlines() if line.startswith("[[card]]")]
    assert len(heads) == len(NAMES)
    assert all("# NVIDIA" in line for line in heads)
