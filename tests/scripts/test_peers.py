"""`make peers`: what rows are given, what becomes of failures, and that the page says what the record says."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st

import r1quant
from r1quant.checkpoint.resolve import embedded_folder, open_model

ROOT = Path(__file__).resolve().parents[2]


def entry(name: str, kl: float | None = None, **changed: Any) -> dict[str, Any]:
    """As the driver writes them; one that failed where there is no KL."""
    known = {
        "name": name, "tool": "gptqmodel", "setting": "GPTQ", "symmetric": True, "model": "m", "layers": None,
        "bits": 4, "group_size": 64, "calibration": {"source": "a.txt", "sha256": "0", "windows": 64, "seq_len": 512},
        "run": "2026-01-01T00:00:00+00:00", "date": "", "machine": {
            "cpu": "C", "cores": 2, "system": "Linux", "python": "3.12", "threads_variable": None, "load_before": 0.1,
        },
    }  # fmt: skip
    if kl is None:
        return known | {"error": "no"} | changed
    quality = {
        "perplexity": {"baseline": 27.0, "quantized": 28.0}, "kl": {"mean": kl}, "top1": 0.9,
        "text": {"windows": 2, "seq_len": 8},
    }  # fmt: skip
    cost = {"wall_seconds": 1.5, "cpu_seconds": 2.5, "peak_rss_bytes": 3e6}
    done = {"versions": {"gptqmodel": "7"}, "runs": [cost], "median": cost, "bits_per_weight": 4.25}
    return known | done | {"quality": {"t": quality}} | changed


def test_a_row_is_kept_unless_one_of_the_same_question_replaces_it(tmp_path: Path) -> None:
    from peers.record import find, load, merge

    path = tmp_path / "new" / "record.json"
    assert load(path) == []
    others = [entry("b", 0.3), entry("a", 0.1, bits=3), entry("a", 0.2, group_size=128), entry("a", 0.4, model="n")]
    for each in (entry("a", 0.5), *others, entry("a", 0.25)):
        merge(path, each)
    assert load(path) == [entry("a", 0.25), *others]
    merge(path, entry("a"))
    merge(path, entry("c"))
    assert find(path, entry("a")) == entry("a", 0.25) and find(path, entry("c")) == entry("c")
    merge(path, entry("c", 0.1))
    assert find(path, entry("c")) == entry("c", 0.1)


def test_the_page_has_the_best_first_and_names_what_failed() -> None:
    from peers.page import markdown

    unscored = entry("d", 0.1, quality={})
    page = markdown(
        [entry("a", 0.5), entry("b", 0.25, symmetric=False), unscored, entry("c"), entry("a", 0.125, bits=3)]
    )
    lines = page.splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert rows[2] == "| a 7 | GPTQ | 2 | 2 | 3 | 4.25 | 0.1250 | 28.000 | 0.9000 | a | 0.1 |"
    assert [row.split("|")[1].strip() for row in rows[3:]] == ["", "---", "d 7", "b* 7", "a 7"]
    assert "c failed: no" in lines and "* a: 2026-01-01T00:00:00+00:00, 2 cores, C" in lines
    assert len({row.count("|") for row in rows}) == 1


def test_the_page_in_the_repository_is_that_of_the_record() -> None:
    from peers.page import markdown
    from peers.record import load

    found = load(ROOT / "reports" / "peers.json")
    assert found and markdown(found) == (ROOT / "reports" / "peers.md").read_text("utf-8")
    assert not any(part in json.dumps(found) for part in ("/home/", "/work/", "/tmp/", "/root/"))


def test_rows_are_chosen_by_name_and_added_by_flags(tmp_path: Path) -> None:
    from peers.rows import PEERS, ROWS, Given, chosen, command, named, ours

    assert len({row.name for row in ROWS}) == len(ROWS)
    for row in ROWS:
        scripts = [name for name in (row.script, row.floats) if name]
        assert all((PEERS / name).is_file() for name in scripts) and bool(row.environment) == bool(row.script)
    (mine,) = named(["mine=--method rtn --asymmetric"], ROWS, ours)
    assert mine.flags == ("--method", "rtn", "--asymmetric") and not mine.symmetric
    (mixed,) = named(["mixed=--target-bpw 4.25"], ROWS, ours)
    given = Given(tmp_path, tmp_path, ("--seq-len", "512"), 4, 64)
    assert "--bits" in command(mine, given, tmp_path, tmp_path)
    assert "--bits" not in command(mixed, given, tmp_path, tmp_path), "a budget takes its place"
    assert [row.name for row in chosen([*ROWS, mine], ["mine", "onnx*"])] == [
        "onnxruntime-rtn",
        "onnxruntime-hqq",
        "mine",
    ]
    assert chosen(ROWS, []) == list(ROWS)
    for wrong in ("gptqmodel=--method rtn", "=--method", "mine"):
        with pytest.raises(click.UsageError):
            named([wrong], ROWS, ours)
    with pytest.raises(click.UsageError, match="no row is called"):
        chosen(ROWS, ["other*"])


def test_texts_are_files_or_made_from_the_standard_library(tmp_path: Path) -> None:
    from peers.texts import text

    (tmp_path / "a.txt").write_text("A", "utf-8")
    given = text(f"{tmp_path / 'a.txt'}@3", tmp_path)
    assert (given.name, given.windows, given.after("--text")) == ("a", 3, ["--text", str(tmp_path / "a.txt")])
    assert text("bundled", tmp_path).after("--text") == []
    assert text("chains@2", tmp_path).after("--calib") == ["--calib", "bundled:chain"]
    named = text("pydoc", tmp_path).spec
    assert named is not None and named == text("pydoc@5", tmp_path).spec
    topics = Path(named).read_text("utf-8")
    assert topics.count('The "assert" statement') == 1 and len(topics) > 300_000
    for wrong in ("other.txt", "pydoc@x"):
        with pytest.raises(click.UsageError):
            text(wrong, tmp_path)


def test_bits_a_weight_count_all_that_a_linear_is_stored_as(tmp_path: Path) -> None:
    from peers.scoring import bits_of, bits_per_weight

    r1quant.quantize("tiny-r1", tmp_path / "out", bits=4, group_size=64, method="rtn")
    shapes = [i.shape for n, i in open_model("tiny-r1").tensors.items() if ".layers." in n and len(i.shape) == 2]
    weights = sum(math.prod(shape) for shape in shapes)
    stored = 0
    for out, columns in shapes:
        groups = columns // 64
        stored += out * columns // 2 + groups * out // 2 + groups * out * 2 + columns * 4
    assert bits_per_weight(tmp_path / "out", embedded_folder()) == pytest.approx(8 * stored / weights, rel=1e-12)
    assert bits_of(stored, embedded_folder()) == pytest.approx(8 * stored / weights, rel=1e-12)


ZEROS = ((2, "packed"), (4, "packed"), (8, "packed"), (4, "float"), (4, "none"), (8, "none"))


@given(st.sampled_from(ZEROS), st.integers(1, 3), st.integers(0, 2**32 - 1))
@settings(max_examples=20, deadline=None)
def test_matmulnbits_weights_are_those_that_onnxruntime_multiplies_with(
    kind: tuple[int, str], groups: int, seed: int
) -> None:
    import onnx
    import onnxruntime
    from peers.onnxruntime_floats import dequantize

    rng, (bits, zeros) = np.random.default_rng(seed), kind
    rows, block = 5, 16
    columns = groups * block
    packed = rng.integers(0, 256, (rows, groups, block * bits // 8), np.uint8)
    scale = rng.standard_normal(rows * groups).astype(np.float32)
    zero = {
        "packed": rng.integers(0, 256, rows * -(-groups * bits // 8), np.uint8),
        "float": rng.uniform(0, 2**bits, rows * groups).astype(np.float32),
    }.get(zeros)
    parts = {"b": packed, "s": scale} | ({} if zero is None else {"z": zero})
    node = onnx.helper.make_node(
        "MatMulNBits", ["x", *parts], ["y"], domain="com.microsoft", K=columns, N=rows, bits=bits, block_size=block
    )
    made = onnx.helper.make_graph(
        [node], "g", [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [columns, columns])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [columns, rows])],
        [onnx.numpy_helper.from_array(part, name) for name, part in parts.items()],
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 21), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(made, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (theirs,) = session.run(None, {"x": np.eye(columns, dtype=np.float32)})
    np.testing.assert_allclose(dequantize(packed, scale, zero, bits, (rows, columns)), theirs.T, rtol=1e-5, atol=1e-5)


def test_one_command_quantizes_scores_and_records_and_a_failure_stops_nothing(tmp_path: Path) -> None:
    import compare_peers
    from peers.record import load

    path = tmp_path / "record.json"
    program = tmp_path / "fails"
    program.write_text("#!/bin/sh\necho reason >&2\nexit 3\n", "utf-8")
    program.chmod(0o755)
    words = ["--model", "tiny-r1", "--layers", "1", "--samples", "2", "--seq-len", "64", "--windows", "1"]
    words += ["--text-eval", "bundled", "--work", str(tmp_path / "work"), "--record", str(path)]
    asked = ["--ours", "plain=--no-act-order", "--only", "plain", "--only", "llmcompressor-rtn"]
    done = CliRunner().invoke(compare_peers.main, [*words, *asked, "--python", f"llmcompressor={program}"])
    assert done.exit_code == 0, done.output
    lost, plain = sorted(load(path), key=lambda found: str(found["name"]))
    assert lost["error"] == "reason" and "runs" not in lost
    own = json.loads((tmp_path / "work" / "tiny-r1-1-layers" / "plain-w4g64" / "r1quant.json").read_text("utf-8"))
    assert own["calibration"]["sha256"] == plain["calibration"]["sha256"]
    assert own["recipe"]["act_order"] is False and len(plain["runs"]) == 1
    assert plain["quality"]["bundled"]["kl"]["mean"] > 0 and plain["quality"]["bundled"]["text"]["windows"] == 1
    assert "llmcompressor-rtn failed: reason" in path.with_suffix(".md").read_text("utf-8")
    tokens = np.load(tmp_path / "work" / "tiny-r1-1-layers" / "tokens.npy")
    assert tokens.shape == (2, 64)

    again = CliRunner().invoke(compare_peers.main, [*words, "--ours", "plain=", "--only", "plain", "--missing"])
    assert again.exit_code == 0 and sorted(load(path), key=lambda found: str(found["name"])) == [lost, plain]
