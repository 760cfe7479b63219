"""What is compared: a row for each program and importance matrix, and the commands that make its file. Plain data."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from measuring import R1QUANT

from ggufpeers.tools import IMATRIX, QUANTIZE

HERE = Path(__file__).resolve().parent
OURS, LLAMA, AUTO_ROUND = "r1quant", "llama.cpp", "auto-round"
NONE, PLAIN, GUIDED, OWN = "none", "plain", "guided", "own"  # importance matrices that llama-quantize is given
# Types whose every linear is of one block type, and a mixture of llama.cpp's with that type as its base.
PURE = {"Q3_K": "Q3_K_S", "Q4_K": "Q4_K_S", "Q5_K": "Q5_K_S"}
TABLES = "Q6_K"  # of embedding and head in a pure file, as in most mixtures
# Those that llama.cpp does not make without an importance matrix.
UNWEIGHTED = {"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "Q2_K_S"}
SCHEMES = {  # of AutoRound, by the type of the file
    "Q2_K": "gguf:q2_k_s", "Q3_K_M": "gguf:q3_k_m", "Q4_K_M": "gguf:q4_k_m", "Q5_K_M": "gguf:q5_k_m",
    "Q6_K": "gguf:q6_k",
}  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One program in one setting.

    setting  what a reader is told of it
    matrix   which importance matrix llama.cpp is given; empty if the row is not its own
    flags    of `r1quant quantize`
    options  of AutoRound
    """

    name: str
    tool: str
    setting: str
    matrix: str = ""
    flags: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def told(self) -> dict[str, str]:
        """What the record says of it."""
        return {"name": self.name, "tool": self.tool, "setting": self.setting}

    def makes(self, kind: str) -> bool:
        """Whether the program has this type."""
        if self.tool == AUTO_ROUND:
            return kind in SCHEMES
        return self.matrix != NONE or kind not in UNWEIGHTED


def ours(name: str, flags: Iterable[str]) -> Row:
    flags = tuple(flags)
    return Row(name, OURS, " ".join(flags), flags=flags)


ROWS = (
    Row("llama.cpp", LLAMA, "without importance", NONE),
    Row("llama.cpp-plain", LLAMA, "r1quant's plain importance matrix", PLAIN),
    Row("llama.cpp-guided", LLAMA, "r1quant's guided importance matrix", GUIDED),
    Row("llama.cpp-imatrix", LLAMA, "its own llama-imatrix", OWN),
    ours("r1quant-fast", ("--preset", "fast")),
    ours("r1quant-balanced", ("--preset", "balanced")),
    Row("auto-round-rtn", AUTO_ROUND, "iters=0, zero importances raised", options={"iters": 0}),
    Row("auto-round", AUTO_ROUND, "default iterations, zero importances raised"),
)


@dataclass(frozen=True)
class Given:
    """What every row is given.

    model   a folder of floats; floats is the same as a GGUF file
    text    the calibration text, of which `samples` windows of `seq_len` tokens are used; tokens is them as .npy
    """

    model: Path
    floats: Path
    text: Path
    tokens: Path
    samples: int
    seq_len: int

    @property
    def shape(self) -> list[str]:
        return ["--samples", str(self.samples), "--seq-len", str(self.seq_len)]


def measure(matrix: str, given: Given, out: Path, programs: Path, python: Path) -> list[str]:
    """The command that writes an importance matrix, PLAIN, GUIDED or OWN."""
    if matrix == OWN:
        size = ["-c", str(given.seq_len), "-b", str(given.seq_len), "--chunks", str(given.samples)]
        asked = [
            "-m",
            str(given.floats),
            "-f",
            str(given.text),
            "-o",
            str(out),
            *size,
            "--parse-special",
            "--no-escape",
        ]
        return [str(programs / IMATRIX), *asked]
    guided = ["--guided"] if matrix == GUIDED else []
    return [
        str(python),
        str(HERE / "importance.py"),
        str(given.model),
        str(given.text),
        str(out),
        *given.shape,
        *guided,
    ]


def requantize(kind: str, given: Given, matrix: Path | None, out: Path, programs: Path) -> list[str]:
    """llama-quantize to a type."""
    pure = ["--pure", "--token-embedding-type", TABLES, "--output-tensor-type", TABLES] if kind in PURE else []
    weighted = [] if matrix is None else ["--imatrix", str(matrix)]
    return [str(programs / QUANTIZE), *weighted, *pure, str(given.floats), str(out), PURE.get(kind, kind)]


def quantize(row: Row, kind: str, given: Given, folder: Path) -> list[str]:
    """`r1quant quantize` to a folder with one GGUF file. Flags of the row come last, so that they hold."""
    asked = ["--format", "gguf", "--type", kind, "--calib", str(given.text), *given.shape, "--device", "cpu"]
    return [*R1QUANT, "quantize", str(given.model), "-o", str(folder), *asked, *row.flags]


def tune(row: Row, kind: str, given: Given, folder: Path, python: Path) -> list[str]:
    """AutoRound's export to a folder with one GGUF file."""
    script = [str(python), str(HERE / "auto_round_gguf.py"), str(given.model), str(given.tokens), str(folder)]
    return [*script, "--format", SCHEMES[kind], "--options", json.dumps(dict(row.options))]
