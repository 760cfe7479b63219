"""Checkpoints that other programs make, read by r1quant and by their makers. Plain data, and how they are made.

They are made of the first layers of tiny-r1, since what counts is the format: every kind of grid that a maker has.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance.environments import HERE, VARIABLES

GROUPED = {"bits": 4, "group_size": 32, "sym": True, "desc_act": False}
LAYERS, WINDOWS = 1, (4, 128)
TIMEOUT = 1800.0


@dataclass(frozen=True)
class Maker:
    """script in environment makes checkpoints, each by the options that it is given.

    calibrated  whether it needs tokens
    made        the options by the name of the checkpoint
    readers     those of readers.READERS that dequantize what it made, without rounding
    """

    name: str
    environment: str
    script: str
    calibrated: bool
    made: Mapping[str, Mapping[str, Any]]
    readers: Mapping[str, tuple[str, ...]]


MAKERS = (
    Maker(
        "gptqmodel",
        "gptqmodel",
        "gptqmodel_make.py",
        True,
        {
            "gptq-sym": GROUPED,
            "gptq-asym": GROUPED | {"sym": False},
            "gptq-act-order": GROUPED | {"desc_act": True, "act_group_aware": False},
            "gptq-w8": GROUPED | {"bits": 8, "group_size": -1, "act_group_aware": False},
            "gptq-v2-asym": GROUPED | {"sym": False, "format": "gptq_v2"},
            "awq": {"bits": 4, "group_size": 32, "sym": False, "quant_method": "awq", "format": "gemm"},
        },
        {
            "gptq-sym": ("transformers", "auto-gptq"),
            "gptq-asym": ("transformers", "auto-gptq"),
            "gptq-act-order": ("transformers", "auto-gptq"),
            "gptq-w8": ("transformers", "auto-gptq"),
            "gptq-v2-asym": ("transformers",),
            "awq": ("transformers", "autoawq"),
        },
    ),
    Maker(
        "autoawq",
        "autoawq",
        "autoawq_make.py",
        False,
        {"awq": {"group_size": 32}},
        {"awq": ("autoawq", "transformers")},
    ),
    Maker(
        "llmcompressor",
        "llmcompressor",
        "llmcompressor_make.py",
        False,
        {
            "w4a16": {"scheme": "W4A16", "group_size": 32},
            "w4a16-asym": {"scheme": "W4A16_ASYM", "group_size": 32},
            "w8a16": {"scheme": "W8A16", "group_size": 32},
            "w8a8": {"scheme": "W8A8", "group_size": None},
        },
        dict.fromkeys(("w4a16", "w4a16-asym", "w8a16", "w8a8"), ("compressed-tensors",)),
    ),
)


def make(maker: Maker, python: Path, model: Path, work: Path, tokens: Callable[[], np.ndarray]) -> dict[str, Path]:
    """The folders of its checkpoints by name. A folder with an error.txt is one that could not be made."""
    folders = {name: work / f"{maker.name}-{name}" for name in maker.made}
    request: dict[str, Any] = {"model": str(model), "made": {str(folders[k]): v for k, v in maker.made.items()}}
    if maker.calibrated:
        np.save(work / "calibration.npy", tokens())
        request["tokens"] = str(work / "calibration.npy")
    listed, log = work / f"{maker.name}.json", work / f"{maker.name}.log"
    listed.write_text(json.dumps(request), "utf-8")
    with log.open("w") as file:
        subprocess.run(
            [str(python), str(HERE / maker.script), str(listed)],
            check=False,
            timeout=TIMEOUT,
            stdout=file,
            stderr=file,
            cwd=work,  # some leave files behind where they run
            env=os.environ | VARIABLES,
        )
    for folder in folders.values():
        if not folder.is_dir():
            folder.mkdir()
            (folder / "error.txt").write_text(log.read_text("utf-8", "replace")[-2000:], "utf-8")
    return folders
