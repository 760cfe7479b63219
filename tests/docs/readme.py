"""README.md taken apart: its commands, its Python, its links, and its numbers."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text("utf-8")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]+\]\(([^)#]+)")
# Digits that count nothing: names of models, cards, formats and versions, ranges of what is accepted, exit codes.
NAMES = re.compile(
    r"r1quant|r1-8b[\w-]*|tiny-r1|DeepSeek-R1-0528-Qwen3-8B|R1-Distill-Llama|SmolLM2(-135M)?|WikiText-2"
    r"|Q\d(_\w+)+|FP\d+|[bB][fF]16|RTX \d+( Ti)?|A100|AIME|WSL 2|Python 3\.11|Llama 2 and 3|Mistral 7B"
    r"|Qwen 1\.5, 2, 2\.5 and 3|Gemma 3|the 8B|2 to 8 bits|to 4 bits|8 to 2 bits|0 done, 1 a check failed, 2 wrong"
    r"|3 unusable|4 a package|130 interrupted"
)


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return [match[2] for match in FENCE.finditer(TEXT) if match[1] == language]


def commands(block: str) -> list[list[str]]:
    """The words of each line."""
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.strip()]


def make_targets() -> list[str]:
    return re.findall(r"(?:^    |`)make (\w+)", TEXT, re.MULTILINE)


def links() -> list[str]:
    return LINK.findall(TEXT)


def numbers() -> list[str]:
    """Those of the prose, in order: outside fenced blocks, tables, links and names."""
    text = re.sub(r"\]\([^)]*\)", "]", FENCE.sub("", TEXT))
    lines = [line for line in text.splitlines() if not line.startswith("|")]
    return re.findall(r"\d[\d.,]*\d|\d", NAMES.sub("", " ".join(lines)))


def rows(heading: str) -> Iterator[list[str]]:
    """The cells of the table under a heading, without its header."""
    section = TEXT.split(f"## {heading}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in section.splitlines() if line.startswith("|")]
    for line in lines[2:]:
        yield [cell.strip() for cell in line.strip("|").split("|")]
