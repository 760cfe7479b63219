"""Types of GGUF under a budget from end to end: tiny-r1 becomes a file of the chosen types that is no larger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import pytest

import r1quant
from r1quant.checkpoint.gguf.source import gguf_names
from r1quant.checkpoint.resolve import EMBEDDED
from r1quant.jobs.quantize import layer_files
from r1quant.jobs.quantize.run import Quantized, make_plan, quantize
from r1quant.recipe import from_values
from r1quant.records.quantization import ChosenBits, Quantization
from r1quant.records.reading import read
from tests.conftest import Run

WORDS = (EMBEDDED, "--format", "gguf", "--samples", "8", "--seq-len", "64", "--dtype", "float32", "--device", "cpu")


def types_in(path: Path) -> dict[str, str]:
    return {str(tensor.name): str(tensor.tensor_type.name) for tensor in gguf.GGUFReader(path).tensors}


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_budget_of_bits_is_met_and_what_was_chosen_is_in_the_file_and_its_record(
    run: Run, in_tmp: Path, method: str
) -> None:
    words = (*WORDS, "--target-bpw", "4.5", "--method", method)
    made = run("quantize", *words, "--json", "-o", "out")
    assert made.code == 0, made.err
    record = json.loads(Path("out/r1quant.json").read_text("utf-8"))
    types, path = record["allocation"]["types"], Path("out/tiny-r1-4.5bpw.gguf")
    assert 4.3 < record["bits_per_weight"] <= 4.5 and {"model.embed_tokens", "lm_head"} < types.keys()
    assert len(set(types.values())) > 1 and record["recipe"]["type"] is None
    plan = make_plan(EMBEDDED, from_values({"format": "gguf", "method": method, "target_bpw": 4.5}))
    names = gguf_names(plan.arch, plan.layers)
    found = types_in(path)
    assert {name: found[names[f"{name}.weight"]] for name in types} == types
    assert all(found[name] == "F32" for name in found if name.endswith("norm.weight"))
    assert "llama-quantize takes the same types with:" in made.err
    assert all(line in made.err for line in record["allocation"]["arguments"])
    planned = run("plan", *words, "--predict", "--json").json
    assert planned["allocation"] == record["allocation"] and planned["output_bytes"] >= path.stat().st_size
    shown = run("plan", *words, "--predict").out
    for word in ("embed_tokens", "lm_head", "budget of the matrices", *set(types.values())):
        assert word in shown


def test_a_budget_of_bytes_is_that_of_the_file(run: Run, in_tmp: Path) -> None:
    stock = make_plan(EMBEDDED, from_values({"format": "gguf", "type": "Q4_K_M"})).layout.nbytes
    made = run("quantize", *WORDS, "--method", "rtn", "--target-size", str(stock), "--json", "-o", "out")
    assert made.code == 0, made.err
    (path,) = Path("out").glob("*.gguf")
    assert 0.98 * stock < path.stat().st_size <= stock


def test_interrupted_under_a_budget_it_goes_on_with_the_same_types_to_the_same_bytes(
    in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1QUANT_CACHE", str(in_tmp / "cache"))
    little = {"samples": 4, "seq_len": 64, "dtype": "float32", "device": "cpu", "target_size": 1_500_000}
    recipe, write = from_values({"format": "gguf", **little}, "fast"), layer_files.write

    def stopped(path: Path, linears: Any) -> None:
        if "00002" in path.name:
            raise KeyboardInterrupt
        write(path, linears)

    def start(out: str) -> Quantized:
        return quantize(EMBEDDED, Path(out), recipe)

    with monkeypatch.context() as patched:
        patched.setattr(layer_files, "write", stopped)
        with pytest.raises(KeyboardInterrupt):
            start("resumed")
    done = [start("resumed"), start("whole")]
    assert [one.resumed_layers for one in done] == [2, 0]
    assert done[0].record.allocation == done[1].record.allocation is not None
    files = [next(one.out.glob("*.gguf")).read_bytes() for one in done]
    assert files[0] == files[1] and len(files[0]) <= 1_500_000
    assert start("resumed").already_complete


@pytest.mark.usefixtures("llama_cpp")
def test_llama_rounds_to_the_types_of_a_record(run: Run, in_tmp: Path) -> None:
    allowed = ("--allowed-types", "Q3_K,Q4_K,Q6_K,Q8_0")
    assert run("quantize", *WORDS, "--method", "rtn", "--target-bpw", "4.5", *allowed, "-o", "out").code == 0
    (ours,) = Path("out").glob("*.gguf")
    done = r1quant.export(EMBEDDED, "gguf", Path("mix"), type="mix:out/r1quant.json", imatrix="none").written[0]
    assert done.path.is_dir() and types_in(next(Path("mix").glob("*.gguf"))) == types_in(ours)
    refused = run("export", EMBEDDED, "--to", "gguf", "--type", "mix:none.json", "-o", "no")
    assert refused.code == 2 and "the types in none.json cannot be read" in refused.error[0]


def test_records_of_bits_and_of_types_are_read() -> None:
    before = {"allocation": {"bits": {"a": 4}, "source": "s", "predicted_kl": 0.5, "gap": 0.0}}
    assert read(Quantization, before).allocation == ChosenBits({"a": 4}, "s", 0.5, 0.0)
    after = {"allocation": {"bits": {}, "types": {"a": "Q4_K"}, "arguments": ["--tensor-type x=Q4_K"]}}
    assert read(Quantization, after).allocation == ChosenBits(
        types={"a": "Q4_K"}, arguments=("--tensor-type x=Q4_K",)
    )  # fmt: skip


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--target-bpw", "4.5", "--type", "Q4_K_M"), "--type and --target-bpw exclude each other"),
        (("--target-bpw", "1"), "IQ2_XXS everywhere take 2.06"),
        (("--target-bpw", "4.5", "--allowed-types", "Q4_K,Q5_Z"), "allowed-types 'Q5_Z' is not supported"),
        (("--allowed-types", "Q4_K,Q6_K"), "--allowed-types says from which types a budget is met"),
    ],
    ids=str,
)
def test_errors_of_the_command_line(run: Run, in_tmp: Path, words: tuple[str, ...], says: str) -> None:
    assert says in run("quantize", *WORDS, *words).error[0]
