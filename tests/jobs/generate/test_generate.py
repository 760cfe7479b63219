"""`r1quant calib generate` on the embedded model: what is written, and that a crash changes nothing in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import r1quant
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import prompts, windows
from r1quant.jobs.generate.selftext import TextGenerator
from tests.backends.server.scripted import Text, serving
from tests.conftest import Ran, Run
from tests.independent import whole_model
from tests.jobs.generate.conftest import FEW, lines

Generate = Callable[..., Ran]

KILLED = """
import os, signal, sys
from r1quant.jobs.generate.samples import Samples
add, calls = Samples.add, 0

def killed(self, sample):
    global calls
    add(self, sample)
    calls += 1
    if calls == 2:
        os.kill(os.getpid(), signal.SIGKILL)

Samples.add = killed
from r1quant.cli import main
main(sys.argv[1:])
"""


def test_it_writes_what_the_model_itself_would(generate: Generate, tokenizer: Tokenizer) -> None:
    """The likeliest tokens, against the whole model in transformers' own code."""
    ran = generate("--temperature", "0", "--json")
    assert ran.code == 0, ran.err
    head, *rows = lines(Path("text.jsonl"))
    model = whole_model(open_model("tiny-r1"))
    asked = prompts.load(embedded=True, limit=4)
    for row, messages in zip(rows, asked.prompts.values(), strict=True):
        start = tokenizer.encode(tokenizer.render(messages, add_generation_prompt=True))
        ids = list(start)
        while len(ids) < len(start) + 24 and ids[-1] != tokenizer.eos_id:
            with torch.inference_mode():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert row["tokens"] == ids and row["text"] == tokenizer.decode(ids)
        assert row["finished"] == (ids[-1] == tokenizer.eos_id)
        assert "<think>" in row["text"]
    cut = sum(not row["finished"] for row in rows)
    assert cut and ran.json["finished"] == 4 - cut
    assert ran.json["header"] == head and head["prompts"]["sha256"] == asked.sha256
    assert head["sampling"] == {"temperature": 0.0, "top_p": 0.95, "max_tokens": 24, "seed": 0}
    assert (head["model"], head["backend"], head["dtype"]) == ("tiny-r1", "torch", "float32")


def test_calibration_takes_the_tokens_as_they_were_written(generate: Generate, tokenizer: Tokenizer) -> None:
    assert generate("--samples-per-prompt", "2", "--max-tokens", "120").code == 0
    _, *rows = lines(Path("text.jsonl"))
    assert len({row["key"] for row in rows}) == 8
    ended = [row["text"] for row in rows if row["finished"]]
    assert ended and all("</think>" in text and "\\boxed{" in text for text in ended)
    found = windows.load("text.jsonl", tokenizer, 99, 16, 0)
    assert found.documents == 8
    stream = list(windows.documents("text.jsonl", tokenizer))
    assert stream == [row["tokens"] for row in rows]
    packed = windows.pack(stream, 99, 16, tokenizer.eos_id)
    assert (found.tokens == packed.tokens).all()


def test_a_seed_decides_it(generate: Generate, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hot = ("--temperature", "3", "--samples-per-prompt", "2")
    assert generate(*hot).code == 0
    first = Path("text.jsonl").read_bytes()
    texts = {json.loads(line)["text"] for line in first.splitlines()[1:]}
    assert len(texts) == 8, "the second answer to a prompt is drawn with other luck"
    monkeypatch.setenv("R1QUANT_CACHE", str(tmp_path / "another"))
    Path("text.jsonl").unlink()
    assert generate(*hot).code == 0
    assert Path("text.jsonl").read_bytes() == first
    Path("text.jsonl").unlink()
    assert generate(*hot, "--seed", "1").code == 0
    head, *rows = lines(Path("text.jsonl"))
    assert head["sampling"]["seed"] == 1
    assert not texts & {row["text"] for row in rows}


def test_a_killed_run_goes_on_and_ends_in_the_same_file(
    generate: Generate, own_cache: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    words = ["calib", "generate", "tiny-r1", "-o", "text.jsonl", *FEW]
    environment = {**os.environ, "PYTHONPATH": str(Path(r1quant.__file__).parents[1])}
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, *words], capture_output=True, check=False, env=environment, cwd=tmp_path
    )
    assert killed.returncode == -9, killed.stderr
    assert not Path("text.jsonl").exists()
    asked: list[int] = []
    original = TextGenerator._runtime

    def counting(self: TextGenerator, given: Any) -> Any:
        asked.append(len(given))
        return original(self, given)

    monkeypatch.setattr(TextGenerator, "_runtime", counting)
    (stored,) = own_cache.glob("samples-*.jsonl")
    assert len(lines(stored)) == 3
    assert generate().code == 0 and asked == [4]
    assert len(lines(stored)) == 5
    resumed = Path("text.jsonl").read_bytes()
    Path("text.jsonl").unlink()
    monkeypatch.setenv("R1QUANT_CACHE", str(tmp_path / "another"))
    assert generate().code == 0
    assert Path("text.jsonl").read_bytes() == resumed


def test_what_is_there_is_not_written_again(generate: Generate, monkeypatch: pytest.MonkeyPatch) -> None:
    assert generate().code == 0
    before = Path("text.jsonl").stat()
    monkeypatch.delattr(TextGenerator, "write")
    again = generate("--json")
    assert again.json["already_complete"] and again.json["texts"] == 4
    assert Path("text.jsonl").stat().st_mtime_ns == before.st_mtime_ns
    for words, reason in ((("--seed", "1"), "sampling"), (("--limit", "3"), "prompts")):
        ran = generate(*words)
        assert ran.code == 2 and f"a different {reason}" in ran.error[0]
    Path("text.jsonl").write_text('{"text": "mine"}\n')
    assert generate().code == 2 and Path("text.jsonl").read_text() == '{"text": "mine"}\n'


@pytest.fixture
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OPENAI_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name)


def test_a_server_writes_it(generate: Generate, no_surroundings: None, tokenizer: Tokenizer) -> None:
    """It gives text: reasoning apart is put back, and what was cut off does not end in the eos token."""
    script = [Text("\\boxed{7}", "3+4=7", streams=False), Text("3+4", finish="length", streams=False)]
    with serving(*script) as server:
        ran = generate("--base-url", server.url, "--limit", "2", "--concurrency", "1", "--json")
    assert ran.code == 0, ran.err
    sent = [body for body in server.sent if "messages" in body and body.get("max_tokens") == 24]
    assert [[turn["role"] for turn in body["messages"]] for body in sent] == [["user"]] * 2
    assert all(body["temperature"] == 0.6 and body["top_p"] == 0.95 for body in sent)
    head, *rows = lines(Path("text.jsonl"))
    assert head["backend"] == "openai" and head["server"] == server.url and head["dtype"] == ""
    asked = prompts.load(embedded=True, limit=2).prompts.values()
    start = [tokenizer.render(messages, add_generation_prompt=True) for messages in asked]
    wrote = ["<think>3+4=7</think>\\boxed{7}" + tokenizer.specials["eos_token"], "3+4"]
    assert [row["text"] for row in rows] == [a + b for a, b in zip(start, wrote, strict=True)]
    assert [row["finished"] for row in rows] == [True, False] and not any("tokens" in row for row in rows)
    assert (ran.json["finished"], ran.json["closed_think"]) == (1, 1)


def test_a_mock_says_so(generate: Generate) -> None:
    assert generate("--backend", "mock:0.5").code == 0
    assert lines(Path("text.jsonl"))[0]["backend"] == "mock:0.5"


def refused(ran: Ran, code: int, *said: str) -> None:
    assert ran.code == code
    assert all(part in " ".join(ran.error) for part in said), ran.error
    assert not Path("text.jsonl").exists()


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--limit", "0"), 2, "limit is 0"),
        (("--samples-per-prompt", "0"), 2, "samples-per-prompt"),
        (("--max-tokens", "-1"), 2, "max-tokens"),
        (("--temperature", "nan"), 2, "temperature"),
        (("--top-p", "0"), 2, "top-p"),
        (("--seed", "-3"), 2, "seed"),
        (("--patience", "-1"), 2, "patience is -1.0"),
        (("--concurrency", "0"), 2, "concurrency is 0"),
        (("--backend", "openai"), 2, "base-url"),
        (("--backend", "torch", "--base-url", "http://127.0.0.1:1/v1"), 2, "base-url"),
        (("--backend", "vllm"), 2, "vllm"),
        (("--backend", "llamacpp"), 2, "export"),
        (("--dtype", "int3"), 2, "int3"),
        (("--device", "cuda:99"), 2, "cuda:99"),
        (("--prompts", "absent.jsonl"), 3, "absent.jsonl"),
        (("-o", "text.txt"), 2, ".jsonl"),
        (("-o", "absent/text.jsonl"), 2, "absent"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
def test_what_cannot_be_done_is_said(generate: Generate, words: tuple[str, ...], code: int, said: str) -> None:
    refused(generate(*words), code, said)


def test_a_model_without_a_chat_template_cannot_be_asked(run: Run, own_cache: Path, copied: Any) -> None:
    for file in copied.iterdir():
        if file.name == "tokenizer_config.json":
            file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "chat_template"}))
    refused(run("calib", "generate", copied, "-o", "text.jsonl", *FEW), 3, "no chat template")
    planned = run("plan", copied, "--calib", "self", "--group-size", "32", "--json")
    assert planned.code == 2
    assert any("no chat template" in problem["message"] for problem in planned.json["problems"])
