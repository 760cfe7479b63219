"""A real server, llama-cpp-python's, on loopback: its numbers are llama.cpp's own, and its death costs no sample."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from r1quant.backends import Prompt, Sampling
from r1quant.backends.llamacpp import LlamaCpp
from r1quant.backends.openai import OpenAI
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.errors import RecipeError
from r1quant.jobs.generate.samples import Sample, Samples, collect
from r1quant.progress import Silent
from tests.backends.server.conftest import LlamaServer

GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=40)
IDENTITY = {"model": "tiny-r1", "backend": "openai"}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    wide = logits.astype(np.float64)
    wide -= wide.max(-1, keepdims=True)
    result: np.ndarray = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    return result


def test_answers_are_those_of_llama_cpp_in_this_process(
    llama_server: LlamaServer, gguf: Path, prompts: list[Prompt], tokenizer: Tokenizer
) -> None:
    wanted = {}
    with LlamaCpp(gguf, 512, threads=1, precise=True) as model:
        for prompt in prompts[:2]:
            text = list(prompt.tokens)
            while len(text) < len(prompt.tokens) + 20:
                text.append(int(model.logits(np.array(text))[-1].argmax()))
            wanted[prompt.key] = tokenizer.decode(text[len(prompt.tokens) :])
    short = replace(GREEDY, max_tokens=20)
    for raw in (True, False):
        server = OpenAI([llama_server.url], raw=raw, text_of=tokenizer.decode, concurrency=2)
        found = list(server.complete(prompts[:2], short, frozenset()))
        assert {answer.key: answer.text for answer in found} == wanted
        assert all(answer.count == 20 and not answer.finished for answer in found)
        assert server.retemplated == 0
    streamed = OpenAI([llama_server.url], moments=True, concurrency=1).complete(prompts[:1], short, frozenset())
    (answer,) = streamed
    assert answer.text == wanted[answer.key] and len(answer.moments) > 10
    assert list(answer.moments) == sorted(answer.moments)


def test_scores_are_those_of_llama_cpp_in_this_process(
    llama_server: LlamaServer, gguf: Path, prompts: list[Prompt], tokenizer: Tokenizer
) -> None:
    """All but the first of a window, which the server does not tell."""
    windows = np.array([prompt.tokens[:24] for prompt in prompts[:3]], np.int64)
    with LlamaCpp(gguf, 512, threads=1, precise=True) as model:
        scores = np.array([log_softmax(model.logits(window)) for window in windows])
    wanted = -np.take_along_axis(scores[:, :-1], windows[:, 1:, None], 2)[..., 0]
    found = OpenAI([llama_server.url], text_of=tokenizer.decode).nll(windows)
    assert found.shape == wanted.shape and found.dtype == np.float64
    assert np.isnan(found[:, 0]).all()
    assert np.abs(found - wanted)[:, 1:].max() < 1e-4


def test_scores_of_a_text_without_bos_are_refused(
    llama_server: LlamaServer, prompts: list[Prompt], tokenizer: Tokenizer
) -> None:
    """The server gives each token the score that the one before it had at its place."""
    windows = np.array([prompts[0].tokens[1:25]], np.int64)
    with pytest.raises(RecipeError, match="belong to other tokens"):
        OpenAI([llama_server.url], text_of=tokenizer.decode).nll(windows)


def test_a_prompt_that_the_server_tokenizes_otherwise_is_noticed(
    llama_server: LlamaServer, prompts: list[Prompt], tokenizer: Tokenizer
) -> None:
    message = {"role": "user", "content": prompts[0].messages[0]["content"].replace(" Please", "\nPlease")}
    tokens = tokenizer.encode(tokenizer.render([message], add_generation_prompt=True))
    prompt, few = Prompt("one", (message,), tuple(tokens)), replace(GREEDY, max_tokens=4)
    with pytest.raises(RecipeError, match=f"makes {len(tokens) + 2} tokens of a prompt of {len(tokens)}"):
        list(OpenAI([llama_server.url], raw=True, text_of=tokenizer.decode).complete([prompt], few, frozenset()))
    chat = OpenAI([llama_server.url])
    assert len(list(chat.complete([prompt], few, frozenset()))) == chat.retemplated == 1


def test_token_ids_need_a_tokenizer_here(llama_server: LlamaServer, prompts: list[Prompt]) -> None:
    with pytest.raises(RecipeError, match="takes no token ids"):
        list(OpenAI([llama_server.url], raw=True).complete(prompts[:1], GREEDY, frozenset()))


def test_a_server_that_is_killed_and_started_again_loses_no_sample(
    llama_server: LlamaServer, prompts: list[Prompt], tmp_path: Path
) -> None:
    notes: list[str] = []

    class Killing(Silent):
        """Kills the server after the fourth sample, with others on their way, and starts another."""

        stored = 0

        def advance(self, amount: float = 1, text: str = "") -> None:
            self.stored += 1
            if self.stored == 4:
                llama_server.kill()
                llama_server.start()

    def sampled(folder: Path, progress: Silent) -> list[Sample]:
        server = OpenAI([llama_server.url], concurrency=3, patience_s=120, note=notes.append)
        with Samples.open(folder, IDENTITY) as store:
            return collect(server, prompts, GREEDY, frozenset(), store, str, progress)

    straight = sampled(tmp_path / "straight", Silent())
    assert [sample.key for sample in straight] == [prompt.key for prompt in prompts] and not notes
    first = llama_server.process
    found = sampled(tmp_path / "killed", Killing())
    assert llama_server.process is not first and notes
    assert found == straight
    (path,) = (tmp_path / "killed").iterdir()
    keys = [json.loads(line)["key"] for line in path.read_text("utf-8").splitlines()[1:]]
    assert sorted(keys) == sorted(prompt.key for prompt in prompts)
