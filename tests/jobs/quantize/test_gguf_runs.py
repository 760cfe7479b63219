"""Files of our own rounding in llama.cpp: what it writes, token by token, is what torch writes in float32.

llama.cpp rounds activations to 8 bits where weights are in blocks, which moves logits by up to 2 % of their size. So
the grid is compared without that first, as floats; then the file itself, whose tokens may differ at a near tie alone.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import r1quant
from r1quant.arch.tables import architecture_of
from r1quant.backends.llamacpp import LlamaCpp
from r1quant.backends.torch import TorchModel
from r1quant.checkpoint.resolve import EMBEDDED
from r1quant.jobs.artifacts import open_artifact
from tests.backends.questions import questions

TYPES = ("Q4_K_M", "Q3_K_M", "Q2_K", "IQ4_XS", "IQ3_XXS", "IQ2_XXS", "IQ1_M")
COUNT = 32  # tokens
KERNELS = 0.05  # of the largest logit; up to 0.02 is measured


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("type", TYPES)
def test_llama_writes_what_torch_writes_in_float32(type: str, tmp_path: Path) -> None:
    out, floats = tmp_path / "out", tmp_path / "floats.gguf"
    r1quant.quantize(EMBEDDED, out, format="gguf", type=type, method="rtn")
    r1quant.export(out, "gguf", floats, type="f32")
    artifact = open_artifact(out)
    ours = TorchModel(artifact, architecture_of(artifact.config))
    (path,) = out.glob("*.gguf")
    with (
        LlamaCpp(path, 512, threads=1, precise=True) as blocks,
        LlamaCpp(floats, 512, threads=1, precise=True) as exact,
    ):
        for question in questions(3):
            prompt = np.array(question.tokens, np.int64)
            written = ours.generate(prompt, COUNT)
            assert exact.generate(prompt, COUNT) == written
            text = np.concatenate([prompt, written])
            expected = ours.logits(text)
            largest = np.abs(expected).max()
            assert np.abs(_centred(exact.logits(text)) - _centred(expected)).max() < 1e-5 * largest
            most = np.abs(_centred(blocks.logits(text)) - _centred(expected)).max()
            assert most < KERNELS * largest
            for place, (token, other) in enumerate(zip(written, blocks.generate(prompt, COUNT), strict=True)):
                if token != other:
                    row = expected[len(prompt) - 1 + place]
                    assert row[token] - row[other] <= 2 * most, "they differ where there is no near tie"
                    break


def _centred(logits: np.ndarray) -> np.ndarray:
    """Of a row only differences count."""
    centred: np.ndarray = logits - logits.mean(-1, keepdims=True)
    return centred
