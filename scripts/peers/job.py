"""The half of a comparison that runs in the peer's environment: what is asked, and what is said beside the result.

    python SCRIPT.py MODEL TOKENS OUT --bits 4 --group-size 64 [--windows N] [--options JSON]

MODEL is a folder with bf16 weights, TOKENS an .npy file, int64 [windows, seq_len], of which the first N are used. The
result goes to OUT in the peer's own format, OUT.json says which versions made it and how long the peer's own call
took. It needs numpy alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(eq=False)
class Job:
    """tokens: int64 [windows, seq_len]. options: what is set beside the grid, the peer's defaults for all else."""

    model: str
    tokens: np.ndarray
    out: str
    bits: int
    group_size: int
    options: Mapping[str, Any]
    seconds: float = field(default=0.0, init=False)

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Around the peer's own call, without imports, loading and saving."""
        begun = time.monotonic()
        yield
        self.seconds = time.monotonic() - begun


def run(quantize: Callable[[Job], None], packages: Iterable[str]) -> None:
    """Does the job of the command line, without a network."""
    parser = argparse.ArgumentParser()
    for name in ("model", "tokens", "out"):
        parser.add_argument(name)
    for name in ("--bits", "--group-size"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--windows", type=int)
    parser.add_argument("--options", type=json.loads, default={})
    given = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    tokens = np.load(given.tokens)[: given.windows]
    job = Job(given.model, tokens, given.out, given.bits, given.group_size, given.options)
    quantize(job)
    versions = {name: metadata.version(name) for name in packages}
    report = {"versions": versions, "quantize_seconds": job.seconds}
    Path(f"{given.out}.json").write_text(json.dumps(report), "utf-8")
