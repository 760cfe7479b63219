"""The importance matrix of an export: its words, which pass it is from, and what is kept of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from r1quant.engine.sensitivity import backward
from r1quant.formats.gguf import imatrix
from r1quant.jobs.quantize import sensitivity
from tests import models
from tests.conftest import Run

pytestmark = pytest.mark.usefixtures("llama_cpp")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("R1QUANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def export(run: Run, copied: Path, text_file: Path) -> Callable[..., dict[str, Any]]:
    """export("out", "--imatrix", "plain") gives the one written file's part of the record."""

    def call(out: str, *words: object, source: Path = copied) -> dict[str, Any]:
        calib = () if "none" in words else ("--calib", text_file, "--samples", "4", "--seq-len", "32")
        ran = run("export", source, "--to", "gguf", "--type", "Q4_K_M", "-o", out, *calib, *words, "--json")
        assert ran.code == 0, ran.err
        result: dict[str, Any] = ran.json["files"][0]
        return result

    return call


def matrix(out: str) -> imatrix.ImportanceMatrix:
    (path,) = Path(out).glob("*.imatrix.gguf")
    return imatrix.read(path)


@pytest.fixture
def layers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every layer that a sensitivity pass goes back through."""
    made: list[int] = []

    def counted(*given: Any) -> Any:
        made.append(len(made))
        return backward(*given)

    monkeypatch.setattr(sensitivity, "backward", counted)
    return made


def test_the_words(export: Callable[..., dict[str, Any]], layers: list[int]) -> None:
    files = {word: export(word, "--imatrix", word) for word in ("none", "plain", "guided")}
    assert len(layers) == models.LAYERS  # guided alone asks for the pass
    stated = {word: json.loads(Path(word, "r1quant.json").read_text())["imatrix"] for word in files}
    assert stated == {word: files[word]["imatrix"] for word in files} and stated["none"] is None
    assert {word: stated[word]["tokens"] for word in ("plain", "guided")} == {"plain": "plain", "guided": "guided"}
    assert not list(Path("none").glob("*.imatrix.gguf"))
    plain, guided = matrix("plain"), matrix("guided")
    assert plain.counts == guided.counts and set(plain.counts.values()) == {4 * 32}
    assert plain.sums.keys() == guided.sums.keys() and len(plain.sums) == 7 * models.LAYERS
    q, k = (f"blk.0.attn_{name}.weight" for name in "qk")
    assert np.array_equal(plain.sums[q], plain.sums[k]) and not np.allclose(guided.sums[q], guided.sums[k], rtol=0.01)
    weights = {word: next(Path(word).glob("*Q4_K_M.gguf")).read_bytes() for word in files}
    assert len(set(weights.values())) == 3

    assert "tokens" not in export("file", "--imatrix", next(Path("guided").glob("*.imatrix.gguf")))["imatrix"]
    assert next(Path("file").glob("*Q4_K_M.gguf")).read_bytes() == weights["guided"]
    export("left-out")
    assert matrix("left-out").sums["blk.1.ffn_down.weight"].tolist() == guided.sums["blk.1.ffn_down.weight"].tolist()
    assert len(layers) == models.LAYERS  # and takes what was made before


def test_quantize_and_export_share_the_pass(
    run: Run, copied: Path, text_file: Path, export: Callable[..., dict[str, Any]], layers: list[int]
) -> None:
    text = ("--calib", text_file, "--samples", "4", "--seq-len", "32")
    assert run("quantize", copied, "--method", "gptq", "--guided", "--group-size", "32", *text, "-o", "w4").code == 0
    assert len(layers) == models.LAYERS
    export("floats")
    assert len(layers) == models.LAYERS
    export("rounded", source=Path("w4"))  # is another model
    assert len(layers) == 2 * models.LAYERS


def test_an_interrupted_pass_goes_on(
    run: Run, copied: Path, export: Callable[..., dict[str, Any]], layers: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = export("whole")
    monkeypatch.setenv("R1QUANT_CACHE", "another")
    layers.clear()
    counted: Any = vars(sensitivity)["backward"]  # of the fixture

    def interrupted(*given: Any) -> Any:
        if layers:
            raise KeyboardInterrupt
        return counted(*given)

    with monkeypatch.context() as patch, pytest.raises(AssertionError, match="interrupted"):
        patch.setattr(sensitivity, "backward", interrupted)
        export("again")
    assert not Path("again").exists() and len(layers) == 1
    assert export("again")["imatrix"] == whole["imatrix"] and len(layers) == models.LAYERS
    for before in Path("whole").glob("*.gguf"):
        assert Path("again", before.name).read_bytes() == before.read_bytes()


def test_any_source_of_floats_will_do(
    run: Run, copied: Path, export: Callable[..., dict[str, Any]], layers: list[int]
) -> None:
    assert run("export", copied, "--to", "gguf", "-o", "floats.gguf").code == 0
    assert run("export", copied, "--to", "onnx", "-o", "onnx").code == 0
    export("folder")
    for source in ("floats.gguf", "onnx"):
        out = f"of-{Path(source).stem}"
        export(out, source=Path(source))
        for name, sums in matrix("folder").sums.items():
            np.testing.assert_allclose(matrix(out).sums[name], sums, rtol=1e-3)
    assert len(layers) == 3 * models.LAYERS
