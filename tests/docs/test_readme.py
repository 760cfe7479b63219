"""README.md is true: its commands run, its numbers are those of the records and of plan, its links lead somewhere."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest

import r1quant
from r1quant.checkpoint.resolve import embedded_folder
from r1quant.cli import cli
from tests.conftest import Run
from tests.docs import readme
from tests.headers import NAME, write_headers

SETTINGS = "[quantize]\nsamples = 4\nseq_len = 64\n"  # makes the calibration short
PEERS = {
    "r1quant `--preset fast`": "r1quant-fast",
    "r1quant `--preset balanced`": "r1quant-balanced",
    "r1quant `--preset best`": "r1quant-best",
    "llm-compressor, GPTQ": "llmcompressor-gptq",
    "gptqmodel, GPTQ": "gptqmodel",
    "AutoRound, 200 iterations": "auto-round",
}
FORMATS = {
    "GGUF Q4_K_M": "gguf-q4_k_m",
    "GPTQ 4 bits": "gptq-w4-g128",
    "GPTQ 8 bits": "gptq-w8-g128",
    "FP16": "fp16",
}


@pytest.fixture(scope="module")
def headers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_headers(tmp_path_factory.mktemp("hub"))


@pytest.fixture(scope="module")
def peers() -> dict[str, dict[str, Any]]:
    """What was measured of SmolLM2 at 4 bits in groups of 64, by the name of the row."""
    record = json.loads((readme.ROOT / "reports" / "peers.json").read_text("utf-8"))
    kind = ("SmolLM2-135M-Instruct", 4, 64)
    return {row["name"]: row for row in record["rows"] if (row["model"], row["bits"], row["group_size"]) == kind}


def test_it_is_short() -> None:
    assert len(readme.TEXT.splitlines()) < 130


def test_every_link_leads_somewhere() -> None:
    assert len(readme.links()) >= 10
    for link in readme.links():
        assert (readme.ROOT / link).exists(), link


def test_every_make_target_exists() -> None:
    makefile = (readme.ROOT / "Makefile").read_text("utf-8")
    assert {"demo", "test"} <= set(readme.make_targets())
    for target in readme.make_targets():
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_table_of_commands_has_all_of_them() -> None:
    named = {name for row in readme.rows("Commands") for name in re.findall(r"`([\w-]+)`", row[0])}
    assert named == set(cli.commands)


def test_the_first_commands_run(run: Run) -> None:
    Path("r1quant.toml").write_text(SETTINGS, "utf-8")
    for words in readme.commands(readme.blocks("sh")[0]):
        assert words[0] == "r1quant"
        ran = run(*words[1:])
        assert ran.code == 0, ran.err
    assert Path("report/report.html").is_file()


def test_your_model_in_five_commands(run: Run) -> None:
    """The folder is called like the model on the Hub; what is on the disk goes first. The last command, which is of
    another program, is one of those that r1quant prints."""
    shutil.copytree(embedded_folder(), NAME)
    Path("r1quant.toml").write_text(SETTINGS, "utf-8")
    *ours, serve = readme.commands(readme.blocks("sh")[1])
    assert len(ours) == 4
    printed: list[str] = []
    for words in ours:
        assert words[0] == "r1quant"
        ran = run(*words[1:], "--json")
        assert ran.code == 0, ran.err
        printed += [command for step in ran.json.get("next", []) for command in step["commands"]]
    assert any(line.startswith(" ".join(serve)) for line in printed), printed
    for program in ("llama-server -m r1-8b-gguf/", "ollama create r1-8b-gguf -f Modelfile", "ollama run r1-8b-gguf"):
        assert any(program in line for line in printed), (program, printed)
        assert f"`{program}" in readme.TEXT.replace("\n", " "), program
    assert Path("r1-8b-gguf/Modelfile").is_file()


def test_fit_runs_for_the_8b(headers: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(headers.parents[1])
    (words,) = readme.commands(readme.blocks("sh")[2])
    ran = run(*words[1:])
    assert ran.code == 0, ran.err


def test_what_the_8b_takes_is_what_plan_says(headers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1}, raising=False)
    plans = {
        "`--preset balanced`, the default": r1quant.plan(headers, bits=4),
        "`--preset fast`": r1quant.plan(headers, preset="fast"),
        "`--method gptq`": r1quant.plan(headers, method="gptq"),
        "`--method rtn`, no calibration": r1quant.plan(headers, method="rtn"),
    }
    table = {row[0]: row[1:] for row in readme.rows("Your model in five commands")}
    assert set(table) == set(plans)
    for name, plan in plans.items():
        cost = plan.estimate
        disk = cost.output_bytes + cost.run_bytes + cost.cache_bytes
        expected = [f"{cost.peak_rss_bytes / 1e9:.1f} GB", f"{disk / 1e9:.1f} GB", f"{cost.seconds / 3600:.1f}"]
        assert table[name] == expected, name


def test_what_to_take_for_a_card_is_what_fit_says(headers: Path, run: Run) -> None:
    for card, take, *figures in readme.rows("I have this card"):
        gpu, kind = card.split(",")[0], take.split(",")[0]
        longest = []
        for bits in (16, 8):
            ran = run("fit", headers, "--gpu", gpu, "--context", "8192", "--kv-bits", bits, "--json")
            row = next(row for row in ran.json["rows"] if row["format"] == FORMATS[kind] and row["gpu"].startswith(gpu))
            assert row["fits"], (card, kind)
            longest.append((f"{row['max_context'] / 1000:.1f}K", f"{row['decode_tokens_per_second']:.0f}"))
            assert take == f"{kind}, {row['weights_bytes'] / 1e9:.1f} GB"
        assert figures == [longest[0][0], longest[1][0], longest[0][1]], card


def test_quality_and_time_are_those_of_the_record(peers: dict[str, dict[str, Any]]) -> None:
    table = {row[0]: row[1:] for row in readme.rows("How good, how fast")}
    assert set(table) == set(PEERS)
    for label, name in PEERS.items():
        quality = peers[name]["quality"]
        expected = [f"{quality[text]['kl']['mean']:.4f}" for text in ("wikitext2-test", "pydoc")]
        assert table[label] == [*expected, f"{peers[name]['median']['wall_seconds']:.0f}"], label


def test_no_number_of_the_prose_is_left_unchecked(headers: Path, peers: dict[str, dict[str, Any]]) -> None:
    weights = sum(path.stat().st_size for path in headers.glob("*.safetensors"))
    row = peers["r1quant-balanced"]
    text = row["calibration"]
    stated = [f"{weights / 1e9:.1f}", row["bits"], row["group_size"], text["windows"], text["seq_len"]]
    assert readme.numbers() == [str(number) for number in stated]


def test_the_python_runs(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    (source,) = readme.blocks("python")
    quick = source.replace("group_size=64", "group_size=64, samples=4, seq_len=64")
    assert quick != source
    exec(compile(quick, "README.md", "exec"), {})
    assert 0 < float(capsys.readouterr().out.splitlines()[-1]) < 1
