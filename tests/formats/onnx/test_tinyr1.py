"""The embedded model, quantized by r1quant and run by onnxruntime: it reasons as in torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import r1quant
from r1quant.arch.tables import architecture_of
from r1quant.backends.onnxruntime import OnnxRuntime
from r1quant.checkpoint.resolve import embedded_folder, open_model
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.formats.onnx.options import OnnxOptions
from r1quant.formats.onnx.read import open_onnx
from r1quant.formats.onnx.writer import write
from r1quant.formats.table import artifact
from r1quant.tinyr1.problems import INSTRUCTION
from tests.formats.onnx.memory import log_softmax
from tests.independent import whole_model
from tests.laws.linears import same


@pytest.mark.parametrize("style", ["matmulnbits", "qdq"])
def test_the_embedded_model_reasons_as_in_torch(tmp_path: Path, style: str) -> None:
    r1quant.quantize("tiny-r1", tmp_path / "w4", bits=4, group_size=64, method="rtn")
    source = artifact(open_model(tmp_path / "w4"))
    (tmp_path / "onnx").mkdir()
    result = write(source, architecture_of(source.config), tmp_path / "onnx", OnnxOptions(style=style))  # type: ignore[arg-type]
    assert not result.inexact and {"tokenizer.json", "tokenizer_config.json"} <= {path.name for path in result.files}
    found = open_onnx(tmp_path / "onnx")
    assert all(same(found.qlinear(name), source.qlinear(name)) for name in source.linear_specs)

    held_out = (embedded_folder().parent / "heldout.jsonl").read_text("utf-8").splitlines()
    problem = json.loads(held_out[0])["problem"]
    text = f"<｜begin▁of▁sentence｜><｜User｜>{problem}\n{INSTRUCTION}<｜Assistant｜>"
    tokens = np.array(Tokenizer.from_files(source.side_files, "tiny-r1").encode(text), np.int64)
    model, runtime = whole_model(source), OnnxRuntime(tmp_path / "onnx", threads=1)
    given = torch.from_numpy(tokens)[None]
    with torch.no_grad():
        expected = log_softmax(model(given).logits[0].numpy())
        for _ in range(32):
            given = torch.cat([given, model(given).logits[:, -1:].argmax(-1)], dim=1)
    assert np.abs(log_softmax(runtime.logits(tokens)) - expected).max() < 1e-3
    assert runtime.generate(tokens, 32) == given[0, len(tokens) :].tolist()
