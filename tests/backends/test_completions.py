"""The same model in three runtimes completes the same prompts with the same text."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from r1quant.arch.tables import architecture_of
from r1quant.backends import Completion, Prompt, Runtime, Sampling, onnxruntime
from r1quant.backends.generation import Engine
from r1quant.backends.llamacpp import LlamaCpp
from r1quant.backends.onnxruntime import OnnxRuntime
from r1quant.checkpoint.artifact import Artifact
from r1quant.checkpoint.resolve import open_model
from r1quant.errors import RecipeError
from r1quant.formats.gguf.options import GgufOptions
from r1quant.formats.gguf.write import write as write_gguf
from r1quant.formats.onnx.options import OnnxOptions
from r1quant.formats.onnx.writer import write as write_onnx
from r1quant.formats.table import artifact
from tests.backends.questions import STOP, questions

GREEDY = Sampling(0.0, max_tokens=120)
LIVELY = Sampling(4.0, 0.95, 40)  # the model is sure of itself
RUNTIMES = ("matmulnbits", "qdq", "gguf")


def tiny_r1() -> Artifact:
    return artifact(open_model("tiny-r1"))


def in_torch(prompts: list[Prompt], how: Sampling) -> dict[str, Completion]:
    weights = tiny_r1()
    arch = architecture_of(weights.config)
    found = Engine(weights, arch, torch.device("cpu"), torch.float32).complete(prompts, how, STOP)
    return {each.key: each for each in found}


@pytest.fixture(scope="module")
def greedy() -> dict[str, Completion]:
    return in_torch(questions(3), GREEDY)


@pytest.fixture(scope="module", params=RUNTIMES)
def runtime(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runtime]:
    """tiny-r1 in float32, a context of 4096."""
    source, folder = tiny_r1(), tmp_path_factory.mktemp(request.param)
    arch = architecture_of(source.config)
    if request.param != "gguf":
        write_onnx(source, arch, folder, OnnxOptions(style=request.param))
        yield OnnxRuntime(folder, threads=1)
        return
    if importlib.util.find_spec("llama_cpp") is None:
        pytest.skip("llama-cpp-python is not installed; it is not among the development packages: its build is long")
    path = write_gguf(source, arch, folder / "m.gguf", GgufOptions(type="f32")).paths[0]
    with LlamaCpp(path, 4096, threads=1, precise=True) as model:
        yield model


def test_greedy_completions_are_those_of_torch(runtime: Runtime, greedy: dict[str, Completion]) -> None:
    found = list(runtime.complete(questions(3), GREEDY, STOP))
    assert [each.key for each in found] == ["0", "1", "2"]
    for each in found:
        assert each.ids == greedy[each.key].ids
        assert each.finished == greedy[each.key].finished == (each.ids[-1] in STOP)
        assert each.count == len(each.ids) == len(each.moments) and 0 < each.moments[0] < each.moments[-1]


def test_a_seed_draws_the_same_text_in_every_runtime(runtime: Runtime) -> None:
    """But where a draw lies between two tokens as they are rounded here and there."""
    prompts = questions(6)
    wanted = in_torch(prompts, LIVELY)
    found = {each.key: each for each in runtime.complete(prompts, LIVELY, STOP)}
    assert sum(found[key].ids == wanted[key].ids for key in wanted) >= 5
    others = [replace(prompt, seed=prompt.seed + 50) for prompt in prompts]
    changed = {each.key: each for each in runtime.complete(others, LIVELY, STOP)}
    assert all(changed[key].ids != found[key].ids for key in found)


def test_a_stop_token_ends_a_text(runtime: Runtime, greedy: dict[str, Completion]) -> None:
    ids = greedy["0"].ids
    token = ids[10]
    (found,) = runtime.complete(questions(3)[:1], GREEDY, frozenset([token]))
    assert found.ids == ids[: ids.index(token) + 1] and found.finished


def test_the_context_is_the_end(runtime: Runtime) -> None:
    tokens = questions(1)[0].tokens
    long = tuple(tokens[i % len(tokens)] for i in range(4097))
    prompts = [Prompt("full", (), long), Prompt("last", (), long[:4094])]
    full, last = runtime.complete(prompts, Sampling(0.0), frozenset())
    assert (full.key, full.count, full.finished) == ("full", 0, False)
    assert (last.key, last.count, last.finished) == ("last", 3, False)


def test_tokens_that_cannot_be_are_refused(runtime: Runtime) -> None:
    assert runtime.name in ("onnxruntime", "llamacpp")
    for tokens in ((), (3, 512), (-1,)):
        with pytest.raises(RecipeError, match="'bad' has"):
            list(runtime.complete([Prompt("bad", (), tokens)], GREEDY, STOP))


@pytest.mark.parametrize("style", ["matmulnbits", "qdq"])
def test_onnx_text_grows_out_of_its_buffers(
    style: str, tmp_path: Path, greedy: dict[str, Completion], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prompt in pieces, buffers that become longer many times, and two texts of one session in turn."""
    monkeypatch.setattr(onnxruntime, "TOKENS_PER_CALL", 16)
    monkeypatch.setattr(onnxruntime, "STEP", 8)
    source = tiny_r1()
    write_onnx(source, architecture_of(source.config), tmp_path, OnnxOptions(style=style))  # type: ignore[arg-type]
    model, prompts = OnnxRuntime(tmp_path, threads=1), questions(3)
    assert model._shared == (style == "matmulnbits") and model.context == 4096 and model.vocabulary == 512
    first, second = (onnxruntime._Text(model) for _ in range(2))
    pair = [(first, list[int]()), (second, list[int]())]
    scores = [text.begin(prompt.tokens) for (text, _), prompt in zip(pair, prompts, strict=False)]
    for _ in range(60):
        for index, (text, ids) in enumerate(pair):
            ids.append(int(scores[index].argmax()))
            scores[index] = text.step(ids[-1])
    assert [tuple(ids) for _, ids in pair] == [greedy[key].ids[:60] for key in ("0", "1")]
    tokens = np.array(prompts[2].tokens, np.int64)
    assert model.generate(tokens, 60) == list(greedy["2"].ids[:60])
