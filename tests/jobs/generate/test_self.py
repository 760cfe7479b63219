"""`--calib self`: the model writes the text that it is then calibrated on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import prompts, selfcalib, texts
from r1quant.data import windows as calibration
from r1quant.errors import CalibrationError
from r1quant.formats.table import artifact
from r1quant.jobs.generate import selftext
from r1quant.jobs.generate.options import GenerateOptions
from r1quant.jobs.generate.selftext import TextGenerator, continued, own_text
from r1quant.jobs.setup import Setup
from r1quant.planning import planner
from r1quant.progress import Silent
from r1quant.recipe import Recipe
from tests import independent
from tests.conftest import Run

RECIPE = Recipe(calib="self", samples=3, seq_len=64, device="cpu", dtype="float32")
WORDS = ("--bits", "3", "--calib", "self", "--samples", "3", "--seq-len", "64", "--device", "cpu", "--dtype", "float32")


class Heard(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, line: str) -> None:
        self.lines.append(line)


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcalib, "MAX_TOKENS", 40)


def test_quantize_calibrates_on_it(run: Run, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = run("quantize", "tiny-r1", "-o", "out", *WORDS)
    assert ran.code == 0, ran.err
    assert "writes its own calibration text: 192 tokens" in ran.err and "calibrating on" in ran.err
    record = json.loads(Path("out/r1quant.json").read_text("utf-8"))
    expected = own_text(open_model("tiny-r1"), RECIPE, Silent())
    assert record["recipe"]["calib"] == "self"
    assert record["calibration"]["sha256"] == expected.sha256 and record["calibration"]["samples"] == 3
    assert "own answers" in record["calibration"]["source"]
    monkeypatch.delattr(TextGenerator, "_runtime")  # all that follows finds the text in the cache
    assert run("quantize", "tiny-r1", "-o", "again", *WORDS).code == 0
    weights = [Path(out, "model.safetensors").read_bytes() for out in ("out", "again")]
    assert weights[0] == weights[1]
    assert run("quantize", "tiny-r1", "-o", "out", *WORDS, "--json").json["already_complete"]


def test_the_windows_are_the_first_answers_however_many_are_asked_at_a_time(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A guess of one token a text asks for all prompts at once; one of a million, for one after the other."""
    model = open_model("tiny-r1")
    asked = prompts.load(embedded=True, limit=12)
    monkeypatch.setattr(prompts, "load", lambda **_: asked)
    found = []
    for guess in (1, 1_000_000):
        monkeypatch.setattr(selftext, "TOKENS_GUESSED", guess)
        found.append(own_text(model, RECIPE, Silent()))
    assert np.array_equal(found[0].tokens, found[1].tokens) and found[0].documents < 12
    author = TextGenerator(
        artifact(model),
        GenerateOptions(max_tokens=40, setup=Setup("torch", "cpu", "float32")),
        Silent(),
    )
    texts = author.write((key, messages, 0) for key, messages in asked.prompts.items())
    packed = calibration.pack([text.tokens for text in texts], 3, 64, author.tokenizer.eos_id)
    assert np.array_equal(packed.tokens, found[0].tokens)


def test_prompts_are_asked_again_where_they_are_too_few(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = prompts.load(embedded=True, limit=2)
    monkeypatch.setattr(prompts, "load", lambda **_: asked)
    heard = Heard()
    found = own_text(open_model("tiny-r1"), replace(RECIPE, samples=8), heard)
    assert found.tokens.shape == (8, 64) and found.documents > 4
    (stored,) = own_cache.glob("samples-*.jsonl")
    rows = [json.loads(line) for line in stored.read_text("utf-8").splitlines()[1:]]
    assert {row["key"][-2:] for row in rows} >= {"/0", "/1", "/2"} and len({row["key"] for row in rows}) == len(rows)
    assert "cut off at the most tokens and are kept" in heard.lines[-1]


def test_a_context_that_is_too_short_for_every_prompt(llama: Path, own_cache: Path, tmp_path: Path) -> None:
    model = open_model(llama)
    tight = replace(model, config={**model.config, "max_position_embeddings": 1})
    with pytest.raises(CalibrationError, match="wrote nothing"):
        own_text(tight, replace(RECIPE, seq_len=32), Silent())


@pytest.mark.parametrize("words", [("verify", "tiny-r1", "--text", "self"), ("calib", "show", "self")])
def test_self_is_no_file(run: Run, words: tuple[str, ...]) -> None:
    ran = run(*words)
    assert ran.code in (2, 3) and "Traceback" not in ran.err


class TestContinued:
    """`--continued`: the model writes on from the windows of a text."""

    RECIPE = replace(RECIPE, calib=None, continued=1.5)

    def text(self, windows: int = 4) -> calibration.Calibration:
        model = open_model("tiny-r1")
        return calibration.load(texts.CHAINS, Tokenizer.of(model), windows, 64, 0)

    def test_windows_are_added_that_go_on_from_the_ends_of_others(self, own_cache: Path) -> None:
        text = self.text()
        found = continued(open_model("tiny-r1"), self.RECIPE, text, Silent())
        assert found.tokens.shape == (10, 64) and (found.tokens[:4] == text.tokens).all()
        assert found.sha256 != text.sha256 and "6 windows that the model wrote on" in found.source
        for row, window in zip(found.tokens[4:], (0, 1, 2, 3, 0, 1), strict=True):
            assert (row[:8] == text.tokens[window, -8:]).all()
        assert (found.tokens[4] != found.tokens[8]).any(), "other luck the second time"
        again = continued(open_model("tiny-r1"), self.RECIPE, text, Silent())
        assert again.sha256 == found.sha256

    def test_what_is_written_is_likely_to_the_model(self, own_cache: Path) -> None:
        """Each token is drawn from the distribution that the whole model gives: -log p is its entropy on average."""
        model = open_model("tiny-r1")
        found = continued(model, replace(self.RECIPE, continued=6), self.text(), Silent())
        logits = independent.whole_model(model)(torch.from_numpy(found.tokens[4:])).logits[:, 7:-1].detach().double()
        logp = logits.log_softmax(-1)
        taken = -logp.gather(-1, torch.from_numpy(found.tokens[4:, 8:, None]))[..., 0]
        entropy = -(logp.exp() * logp).sum(-1)
        spread = (taken - entropy).std() / taken.numel() ** 0.5
        assert abs(taken.mean() - entropy.mean()) < 4 * spread

    def test_interrupted_it_goes_on(self, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        text, whole = self.text(), continued(open_model("tiny-r1"), self.RECIPE, self.text(), Silent())
        (kept,) = own_cache.glob("samples-*.jsonl")
        lines = kept.read_bytes().splitlines(keepends=True)
        kept.write_bytes(b"".join(lines[:4]))
        assert continued(open_model("tiny-r1"), self.RECIPE, text, Silent()).sha256 == whole.sha256
        monkeypatch.delattr(TextGenerator, "_runtime")
        assert continued(open_model("tiny-r1"), self.RECIPE, text, Silent()).sha256 == whole.sha256

    def test_quantize_calibrates_on_it(self, run: Run, own_cache: Path, text_file: Path) -> None:
        words = ("--calib", text_file, "--samples", "4", "--seq-len", "64", "--device", "cpu", "--dtype", "float32")
        ran = run("quantize", "tiny-r1", "-o", "out", "--preset", "best", *words)
        assert ran.code == 0 and "writes on from its calibration text: 224 tokens" in ran.err
        record = json.loads(Path("out/r1quant.json").read_text("utf-8"))
        assert record["calibration"]["samples"] == record["calibration"]["requested_samples"] == 8
        assert "4 windows that the model wrote on" in record["calibration"]["source"]
        again = run("quantize", "tiny-r1", "-o", "out", "--preset", "best", *words, "--json")
        assert again.code == 0 and again.json["already_complete"]

    def test_a_plan_counts_it(self) -> None:
        model = open_model("tiny-r1")
        plain, more = (planner.make(model, Recipe(continued=part)).estimate for part in (0.0, 1.0))
        assert more.seconds > 2 * plain.seconds and more.run_bytes > plain.run_bytes
        cost = selfcalib.predict(model, Recipe(continued=1.0, device="cpu"), 8_000_000_000)
        assert cost.tokens == 128 * 896
        assert not selfcalib.writes(Recipe(method="rtn", continued=1.0))
        assert selfcalib.writes(Recipe(method="rtn", continued=1.0, target_bpw=5.0)), "predictions read the text too"
        assert "--continued 0" in selfcalib.foretell(cost, Recipe(continued=1.0, device="cpu"))[-1]


class TestPlan:
    def test_it_says_what_will_happen(self, run: Run) -> None:
        plain, own = (
            run("plan", "tiny-r1", "--device", "cpu", *words, "--json").json for words in ((), ("--calib", "self"))
        )
        (added,) = set(own["warnings"]) - set(plain["warnings"])
        assert "131,072 tokens" in added and "on this machine's processor" in added
        assert own["predicted_seconds"] > plain["predicted_seconds"]
        assert own["output_bytes"] == plain["output_bytes"]
        rounded = run("plan", "tiny-r1", "--method", "rtn", "--calib", "self", "--json").json
        assert not any("calibration text" in warning for warning in rounded["warnings"])

    @pytest.mark.parametrize(("device", "card"), [("cpu", True), ("auto", False), ("auto", True), ("cuda", False)])
    def test_a_large_model_on_a_processor_is_warned_of(
        self, device: str, card: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "card").touch()
        monkeypatch.setattr(selfcalib, "CARD", tmp_path / ("card" if card else "none"))
        recipe = Recipe(calib="self", device=device)
        cost = selfcalib.predict(open_model("tiny-r1"), recipe, 8_000_000_000)
        lines = selfcalib.foretell(cost, recipe)
        slow = device == "cpu" or (device == "auto" and not card)
        assert ("that is long" in lines[-1]) == slow and len(lines) == 1 + slow
        assert any("hours" in line for line in lines) == slow

    def test_memory_counts_the_weights_that_write(self) -> None:
        model = open_model("tiny-r1")
        own, plain = (planner.make(model, Recipe(calib=calib, samples=1)).estimate for calib in ("self", None))
        assert own.peak_rss_bytes >= plain.peak_rss_bytes
        assert selfcalib.predict(model, Recipe(calib="self"), 10**10).memory_bytes > 4 * 10**10


def test_which_prompts_a_model_is_asked(llama: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded model its own problems; any other the bundled prompts."""
    asked: list[Any] = []
    monkeypatch.setattr(TextGenerator, "write", lambda self, given: asked.extend(given))
    for model in ("tiny-r1", llama):
        with pytest.raises(CalibrationError):
            own_text(open_model(model), RECIPE, Silent())
    names = [name for name, *_ in asked]
    assert names[0].startswith("tiny-") and names[-1].startswith("prompts-")
