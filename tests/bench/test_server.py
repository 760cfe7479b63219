"""bench of a model that a server runs: a real one, started here on loopback."""

from __future__ import annotations

import pytest

from r1quant.jobs.bench import Protocol, bench
from tests.server.conftest import LlamaServer, gguf, llama_server, no_surroundings

__all__ = ["gguf", "llama_server", "no_surroundings"]  # fixtures


def test_a_model_on_a_server(llama_server: LlamaServer) -> None:
    pytest.importorskip("openai")
    protocol = Protocol((24,), (6,), (2,), repeats=1, warm_up=1)
    found = bench("tiny-r1", backend="openai", base_urls=(llama_server.url,), protocol=protocol).as_dict()
    one = found["rows"][0]["quantized"]
    assert one["backend"] == "openai" and found["rows"][0]["baseline"] is None and found["model"] is None
    assert 2 <= one["new_tokens_made"] <= 12
    assert found["ttft_seconds"] > 0 and one["tokens_per_second"]["median"] > 0
    assert found["peak_memory_bytes"] is None and one["memory"] is None, "it is the server that needs the memory"
