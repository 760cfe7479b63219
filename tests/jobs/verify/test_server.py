"""`r1quant verify` with the quantized model on a real server: problems are asked there, and the baseline here."""

from __future__ import annotations

import json
from pathlib import Path

import r1quant
from tests.backends.server.conftest import LlamaServer, gguf, llama_server, no_surroundings
from tests.conftest import Run

__all__ = ["gguf", "llama_server", "no_surroundings"]  # fixtures

ASKED = ("--aime", "mini", "--limit", "3", "--temperature", "0", "--max-tokens", "120")


def test_problems_on_a_server(run: Run, in_tmp: Path, llama_server: LlamaServer) -> None:
    r1quant.quantize("tiny-r1", in_tmp / "w4", method="rtn", bits=4)
    url = llama_server.url.replace("//", "//somebody:secret@")
    ran = run("verify", "w4", *ASKED, "--base-url", url, "--gate", "aime.delta>-2", "--json", "--record", "r.json")
    assert ran.code == 0, ran.err
    found = ran.json
    assert found["backend"] == "openai" and found["baseline_backend"] == "torch"
    assert "text" not in found, "this server is not asked to score one"
    assert found["aime"]["problems"] == 3 and len(found["aime"]["table"]) == 3
    assert "secret" not in ran.out + ran.err + Path("r.json").read_text("utf-8")
    assert "makes other tokens of 3 prompts" in ran.err, "its pre-tokenizer is not tiny-r1's, and that is said"
    again = run("verify", "w4", *ASKED, "--base-url", url, "--json")
    assert again.json["aime"] == found["aime"]
    assert json.loads(Path("r.json").read_text("utf-8"))["options"]["base_url"] == [llama_server.url]


def test_a_text_on_a_server_that_cannot_score_one(run: Run, in_tmp: Path, llama_server: LlamaServer) -> None:
    r1quant.quantize("tiny-r1", in_tmp / "w4", method="rtn", bits=4)
    ran = run("verify", "w4", "--windows", "2", "--seq-len", "16", "--base-url", llama_server.url)
    assert ran.code in (2, 3) and all(ran.error)
