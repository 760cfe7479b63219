"""`compare_gguf.py`: one text for all, what is asked of each program, and that the page says what the record says."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import windows

ROOT = Path(__file__).resolve().parents[2]


def program(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    path.chmod(0o755)


def test_the_mixed_text_has_windows_of_every_text_in_turns(tmp_path: Path) -> None:
    from ggufpeers.texts import mixed
    from peers.texts import text

    tokenizer = Tokenizer.of(open_model("tiny-r1"))
    words = tmp_path / "a.txt"
    words.write_text("one and two make three, and so on. " * 400, "utf-8")
    parts = [text(str(words), tmp_path), text("chains", tmp_path)]
    taken = mixed(parts, tokenizer, 6, 64, tmp_path)
    assert taken.spec is not None
    found = windows.load(taken.spec, tokenizer, 6, 64, 0).tokens
    assert found.shape == (6, 64)
    first, second = (windows.load(part.spec, tokenizer, 4, 64, 0).tokens for part in parts)
    np.testing.assert_array_equal(found[0], first[0])
    assert tokenizer.decode(second[0].tolist()[8:56]) in tokenizer.decode(found[:3].reshape(-1).tolist())
    assert mixed(parts[:1], tokenizer, 6, 64, tmp_path) == parts[0]


def test_llamacpp_is_asked_for_the_same_tokens_and_types(tmp_path: Path) -> None:
    from ggufpeers import rows

    given = rows.Given(tmp_path / "m", tmp_path / "f.gguf", tmp_path / "t.txt", tmp_path / "t.npy", 64, 512)
    own = rows.measure(rows.OWN, given, tmp_path / "i", tmp_path, Path("python"))
    assert own[0] == str(tmp_path / "llama-imatrix") and {"--parse-special", "--no-escape"} <= set(own)
    assert own[own.index("-c") + 1] == "512" and own[own.index("--chunks") + 1] == "64"
    assert "--guided" in rows.measure(rows.GUIDED, given, tmp_path / "i", tmp_path, Path("python"))
    pure = rows.requantize("Q4_K", given, tmp_path / "i", tmp_path / "o", tmp_path)
    assert pure[-1] == "Q4_K_S" and pure[pure.index("--token-embedding-type") + 1] == "Q6_K" and "--pure" in pure
    stock = rows.requantize("Q4_K_M", given, None, tmp_path / "o", tmp_path)
    assert stock[1:] == [str(given.floats), str(tmp_path / "o"), "Q4_K_M"]
    by_name = {row.name: row for row in rows.ROWS}
    assert len(by_name) == len(rows.ROWS)
    assert not by_name["llama.cpp"].makes("IQ2_XXS") and by_name["llama.cpp-imatrix"].makes("IQ2_XXS")
    assert by_name["auto-round"].makes("Q4_K_M") and not by_name["auto-round"].makes("IQ4_XS")


def test_only_llamacpp_is_unpacked_of_its_distribution(tmp_path: Path) -> None:
    from ggufpeers.tools import programs, unpack

    archive = tmp_path / "d.tar.gz"
    with tarfile.open(archive, "w:gz") as file:
        for name in ("d-1/setup.py", "d-1/llama.cpp/CMakeLists.txt", "d-1/llama.cpp/src/a.cpp"):
            member = tarfile.TarInfo(name)
            member.size = 1
            file.addfile(member, io.BytesIO(b"x"))
    unpack(archive, tmp_path / "source")
    found = {str(path.relative_to(tmp_path / "source")) for path in (tmp_path / "source").rglob("*") if path.is_file()}
    assert found == {"CMakeLists.txt", "src/a.cpp"}
    with pytest.raises(click.ClickException, match="llama-imatrix"):
        programs(tmp_path)


def entry(name: str, kl: float | None = None, **changed: Any) -> dict[str, Any]:
    """As the driver writes them; one that failed if there is no KL."""
    known = {
        "name": name, "tool": "llama.cpp", "setting": "s", "model": "m", "layers": None, "type": "Q4_K_M",
        "calibration": {"source": "a.txt", "sha256": "0", "windows": 64, "seq_len": 512}, "run": "2026", "machine": {
            "cpu": "C", "cores": 2, "system": "Linux", "python": "3.12", "threads_variable": None, "load_before": 0.1,
        },
    }  # fmt: skip
    if kl is None:
        return known | {"error": "no"} | changed
    quality = {"perplexity": {"baseline": 27.0}, "kl": {"mean": kl}, "top1": 0.9, "text": {"windows": 2, "seq_len": 8}}
    size = {"versions": {"llama.cpp": "7"}, "bytes": 1_500_000, "embedding": "Q6_K", "head": "Q6_K"}
    steps = {"quantize": {"wall_seconds": 2.4}}
    return known | size | {"steps": steps, "quality": {"t": quality}} | changed


def test_the_page_has_the_best_first_and_holds_it_against_llamacpp() -> None:
    from ggufpeers.page import markdown

    lines = markdown(
        [entry("llama.cpp-imatrix", 0.5), entry("a", 0.25), entry("c"), entry("a", 0.125, type="Q2_K")]
    ).splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert rows[2] == "| a 7 | s | 1.50 | Q6_K / Q6_K |  | 2 | 0.25000 | 0.50 | 0.9000 | a | 0.1 |"
    assert rows[3].startswith("| llama.cpp-imatrix 7 ") and "| 1.00 |" in rows[3]
    assert rows[6] == "| a 7 | s | 1.50 | Q6_K / Q6_K |  | 2 | 0.12500 |  | 0.9000 | a | 0.1 |"
    assert "c failed: no" in lines and "* a: 2026, 2 cores, C" in lines


def test_the_page_in_the_repository_is_that_of_the_record() -> None:
    from ggufpeers.page import markdown
    from peers.record import load

    path = ROOT / "reports" / "gguf-peers.json"
    if path.is_file():
        found = load(path)
        assert found and markdown(found) == path.with_suffix(".md").read_text("utf-8")
        assert not any(part in json.dumps(found) for part in ("/home/", "/work/", "/tmp/", "/root/"))


def test_one_command_makes_scores_and_records_and_a_failure_stops_nothing(tmp_path: Path) -> None:
    import compare_gguf
    from peers.record import load

    tools, path = tmp_path / "tools", tmp_path / "record.json"
    program(tools, "llama-imatrix", "exit 3")
    program(tools, "llama-quantize", 'shift $(($# - 3)); cp "$1" "$2"')
    words = ["--model", "tiny-r1", "--layers", "1", "--samples", "2", "--seq-len", "64", "--windows", "1"]
    words += ["--text-eval", "bundled", "--llamacpp", str(tools), "--work", str(tmp_path / "work")]
    words += ["--record", str(path), "--text-calib", "chains", "--text-calib", "pydoc"]
    done = CliRunner().invoke(compare_gguf.main, [*words, *(f"--only={name}" for name in NAMES)])
    assert done.exit_code == 0, done.output
    found = {each["name"]: each for each in load(path)}
    assert set(found) == set(NAMES) and "error" in found["llama.cpp-imatrix"]
    for name in ("llama.cpp", "llama.cpp-plain"):
        assert found[name]["quality"]["bundled"]["kl"]["mean"] == pytest.approx(0, abs=1e-6), "the floats were copied"
        assert found[name]["bytes"] > 0 and found[name]["types"]["BF16"] == 9
    assert set(found["llama.cpp-plain"]["steps"]) == {"importance", "quantize"}
    assert "llama.cpp-imatrix failed:" in path.with_suffix(".md").read_text("utf-8")


NAMES = ("llama.cpp", "llama.cpp-plain", "llama.cpp-imatrix")


def test_files_with_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    import gguf
    from ggufpeers.auto_round_gguf import check

    for name, scale in (("sound", 1.0), ("broken", float("nan"))):
        writer = gguf.GGUFWriter(str(tmp_path / name), "llama")
        blocks = np.zeros((2, 210), np.uint8)
        blocks[1, 208:].view(np.float16)[:] = scale
        writer.add_tensor("w", blocks, raw_dtype=gguf.GGMLQuantizationType.Q6_K)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    check(tmp_path / "sound")
    with pytest.raises(ValueError, match="w holds weights that are not finite"):
        check(tmp_path / "broken")
