"""What fit is asked: which hardware, which formats, how long and how many texts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from r1quant.core.options import OneOf, Text, Within, check, option
from r1quant.recipe import FLOAT

HARDWARE, LOAD, FORMATS = "Hardware", "Texts", "Formats"
CARD = Text('give the name of a card, such as "RTX 4060", or a kind such as laptop', cards=True)


@dataclass(frozen=True)
class FitOptions:
    """What is asked. All hardware of the table if none is named, the usual formats if neither formats nor bits are."""

    gpus: tuple[str, ...] = option(
        (), HARDWARE, "Card, part of its name, or a kind of hardware such as laptop. Repeatable.", CARD, flag="--gpu"
    )
    formats: tuple[str, ...] = option(
        (),
        FORMATS,
        "Show only this format or variant: gptq, awq, gguf, gguf-q4_k_m, ... Repeatable.",
        Text("name a format such as gptq or gguf-q4_k_m"),
        flag="--format",
        shown="the usual ones",
    )
    bits: tuple[int, ...] = option(
        (), FORMATS, "Show only formats of these bits: 4, or 4,8; 16 are floats. Repeatable.", Within(1, FLOAT)
    )
    context: int | None = option(
        None,
        LOAD,
        "Tokens of each text, prompt and answer together.",
        Within(1),
        shown="32768, or the longest that the model takes",
    )
    batch: int = option(1, LOAD, "Texts at the same time.", Within(1))
    kv_bits: int = option(FLOAT, LOAD, "Bits of each number in the cache.", OneOf((FLOAT, 8, 4)))
    count: int = option(1, HARDWARE, "Cards of one kind that share the model.", Within(1), flag="--gpus")
    hardware: Path | None = option(None, HARDWARE, "TOML file that describes cards of your own.")
    detect: bool = option(False, HARDWARE, "Ask about this machine: its processor, its memory and its GPUs.")
    records: tuple[Path, ...] = option(
        (), HARDWARE, "Record of bench, or a folder of them, to show beside the model and to fit it to. Repeatable."
    )

    def __post_init__(self) -> None:
        """Raises RecipeError naming the first value that is not possible."""
        check(self)

    @property
    def named(self) -> bool:
        """Whether hardware is named, rather than asked for."""
        return bool(self.gpus or self.hardware or self.detect)

    @property
    def narrowed(self) -> bool:
        """Whether formats or bits are named."""
        return bool(self.formats or self.bits)
