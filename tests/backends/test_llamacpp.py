"""llama.cpp in this process: its logits and its text against the library's whole model, and how it refuses."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from r1quant.backends import llamacpp
from r1quant.backends.llamacpp import LlamaCpp
from r1quant.checkpoint.resolve import open_model
from r1quant.errors import CheckpointError, MissingDependency, RecipeError
from r1quant.formats.gguf.kquants import requantize
from tests import independent
from tests.llamacpp import VOCABULARY

needs_llama_cpp = pytest.mark.usefixtures("llama_cpp")
TOKENS = np.random.default_rng(5).integers(0, VOCABULARY, 300)  # more than go into one call


def whole_logits(path: Path, tokens: np.ndarray) -> np.ndarray:
    model = independent.whole_model(open_model(path))
    with torch.inference_mode():
        result: np.ndarray = model(torch.from_numpy(tokens)[None]).logits[0].numpy()
        return result


@needs_llama_cpp
def test_logits_are_those_of_the_whole_model(floats: Path) -> None:
    expected = whole_logits(floats, TOKENS)
    with LlamaCpp(floats, 512, threads=1, precise=True) as model:
        assert model.vocabulary == VOCABULARY
        found = model.logits(TOKENS)
        assert found.shape == expected.shape and found.dtype == np.float32
        assert np.abs(found - expected).max() < 1e-3 * np.abs(expected).max()
        again = model.logits(TOKENS[:7])  # nothing of the text before is left
        assert np.abs(again - expected[:7]).max() < 1e-3 * np.abs(expected).max()


@needs_llama_cpp
def test_generation_takes_the_most_likely_token_each_time(floats: Path) -> None:
    prompt, text = TOKENS[:20], list(TOKENS[:20])
    for _ in range(12):
        text.append(int(whole_logits(floats, np.array(text))[-1].argmax()))
    with LlamaCpp(floats, 64, threads=1, precise=True) as model:
        assert model.generate(prompt, 12) == text[20:]
        assert model.generate([int(token) for token in prompt], 3) == text[20:23]
        assert len(model.generate(prompt, 1000)) == 64 - 20 + 1  # the last one needs no room


@needs_llama_cpp
def test_a_stream_ends_with_the_next_text_and_with_the_model(floats: Path) -> None:
    model = LlamaCpp(floats, 400, threads=1)
    first = model.stream(TOKENS)
    assert len([next(first), next(first)]) == 2
    second = model.stream(TOKENS[:9])
    assert next(second) == model.generate(TOKENS[:9], 1)[0]
    assert not list(first) and not list(second)
    third = model.stream(TOKENS)
    next(third)
    model.close()
    model.close()
    assert not list(third)
    with pytest.raises(ValueError, match="closed"):
        model.logits(TOKENS)


@needs_llama_cpp
def test_a_model_that_nobody_closes_ends_quietly(floats: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from r1quant.backends.llamacpp import LlamaCpp\n"
        "model = LlamaCpp(Path(sys.argv[1]), 64, threads=1); print(len(model.generate([1, 2, 3], 4)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(floats)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "4\n", "")


@needs_llama_cpp
@pytest.mark.parametrize("kind", ["Q4_0", "Q4_K_M", "Q8_0"])
def test_quantized_models_do_not_end_the_process(kind: str, floats: Path, tmp_path: Path) -> None:
    """In a process of its own: on AMX machines some builds of llama.cpp die at the first prompt."""
    path = requantize(floats, tmp_path / "q.gguf", kind).path
    program = (
        "import sys, numpy as np; from pathlib import Path; from r1quant.backends.llamacpp import LlamaCpp\n"
        "model = LlamaCpp(Path(sys.argv[1]), 512, threads=2)\n"
        "np.save(sys.argv[2], model.logits(np.load(sys.argv[3])))"
    )
    np.save(tmp_path / "tokens.npy", TOKENS)
    names = [str(tmp_path / name) for name in ("q.gguf", "logits.npy", "tokens.npy")]
    done = subprocess.run([sys.executable, "-c", program, *names], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""
    found, expected = np.load(tmp_path / "logits.npy"), whole_logits(path, TOKENS)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.99  # activations are rounded to 8 bits


@needs_llama_cpp
def test_tokens_that_cannot_be_are_refused(floats: Path) -> None:
    with LlamaCpp(floats, 32, threads=1) as model:
        cases: tuple[Any, ...] = ([], [VOCABULARY], [-1, 3], range(33))
        for tokens in cases:
            with pytest.raises(RecipeError):
                model.logits(np.array(list(tokens), np.int64))
            with pytest.raises(RecipeError):
                model.generate(list(tokens), 1)


@needs_llama_cpp
def test_files_that_cannot_be_loaded_are_errors_of_two_lines(
    floats: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cut, other = tmp_path / "cut.gguf", tmp_path / "other.gguf"
    cut.write_bytes(floats.read_bytes()[:20000])
    other.write_text("text")
    for path, reason in ((cut, "cut.gguf: "), (other, "magic"), (tmp_path / "none.gguf", "is not a file")):
        with pytest.raises(CheckpointError, match=reason) as caught:
            LlamaCpp(path, 32)
        assert str(caught.value).count("\n") == 1 and "it gave no reason" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "error", [ImportError("no"), RuntimeError("Failed to load shared library"), OSError("libgomp")]
)
def test_without_llama_cpp_the_install_line_is_given(
    error: Exception, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name.startswith("llama_cpp"):
            raise error
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    llamacpp.library.cache_clear()
    try:
        with pytest.raises(MissingDependency) as caught:
            LlamaCpp(tmp_path / "x.gguf", 32)
    finally:
        llamacpp.library.cache_clear()
    assert caught.value.exit_code == 4 and caught.value.hint == "pip install 'r1quant[llamacpp]'"
