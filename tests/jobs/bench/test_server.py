"""bench of a model that a server runs: a real one, started here on loopback."""

from __future__ import annotations

import json

import pytest

from r1quant.cli import console
from r1quant.cli.bench import bench as command
from tests.backends.server.conftest import LlamaServer, gguf, llama_server, no_surroundings

__all__ = ["gguf", "llama_server", "no_surroundings"]  # fixtures


def test_a_model_on_a_server(llama_server: LlamaServer, capsys: pytest.CaptureFixture[str]) -> None:
    """Whose address says enough; what is secret in it is not written down."""
    pytest.importorskip("openai")
    words = "--prompt-tokens 24 --new-tokens 6 --batch 2 --repeats 1 --warm-up 1 --json --base-url"
    url = llama_server.url.replace("//", "//me:hidden@")
    assert console.run(command, ["tiny-r1", *words.split(), url]) == 0
    printed = capsys.readouterr().out
    found = json.loads(printed)
    assert found["options"]["base_urls"] == [llama_server.url] and "hidden" not in printed
    assert found["options"]["backend"] == "openai" and found["rows"][0]["turns"] is None
    one = found["rows"][0]["quantized"]
    assert one["backend"] == "openai" and found["rows"][0]["baseline"] is None and found["model"] is None
    assert 2 <= one["new_tokens_made"] <= 12
    assert found["ttft_seconds"] > 0 and one["tokens_per_second"]["median"] > 0
    assert found["peak_memory_bytes"] is None and one["memory"] is None, "it is the server that needs the memory"
