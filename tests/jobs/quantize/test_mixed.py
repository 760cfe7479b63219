"""Linears of different bits, and some in float, from end to end: written, read back, in every format that can."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file, save_file

import r1quant
from r1quant.checkpoint.safetensors import open_folder
from r1quant.core.qlinear import QLinear
from r1quant.errors import RecipeError, ResumeError
from r1quant.formats.table import artifact
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.quantize import loss_prediction
from r1quant.jobs.quantize import run as job
from r1quant.planning import planner
from r1quant.planning.budget import LossPredictions
from r1quant.planning.choices import Choice
from r1quant.recipe import Recipe, from_values
from tests import models
from tests.conftest import QUICK, Run, watch

# By layer and stage.
STAGES = ("qkv", "attention_out", "gate_up", "down")
PLACES = tuple(itertools.product(range(2), STAGES))
EVERY_BITS = dict(zip(PLACES, (2, 3, 4, 5, 6, 7, 8, 16), strict=True))
FOUR_EIGHT = dict(zip(PLACES, (8, 4, 4, 8, 4, 16, 8, 4), strict=True))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two layers of sizes that GPTQ packs at 3 bits too."""
    return models.write_model(tmp_path_factory.mktemp("mixed") / "model", "qwen2")


def wanting(model: Path, recipe: Recipe, bits: dict[tuple[int, str], int]) -> tuple[Recipe, LossPredictions]:
    """A budget and predictions of which the best choice is exactly these bits."""
    made = planner.make(open_folder(model), replace(recipe, target_bpw=None, allowed_bits=()))
    losses: dict[str, dict[Choice, float]] = {}
    for linear in made.linears:
        asked = bits[linear.layer, linear.stage]
        losses[linear.name] = {b: 0.0 if b >= asked else 1.0 for b in range(2, 9)}
    wanted = {x.name: bits[x.layer, x.stage] for x in made.linears}
    grids = {name: None if b == 16 else replace(recipe.uniform, bits=b) for name, b in wanted.items()}
    exact = planner.make(made.checkpoint, made.recipe, grids=grids)
    total = 8 * sum(map(exact.stored, exact.linears)) / sum(x.weights for x in exact.linears)
    return replace(recipe, target_bpw=total), LossPredictions(losses, "made up")


def mixed(
    model: Path, out: Path, bits: dict[tuple[int, str], int], method: str = "rtn", format: str = "compressed-tensors"
) -> job.Quantized:
    recipe = Recipe(method=method, group_size=32, format=format, samples=4, seq_len=32, dtype="float32", device="cpu")
    recipe = replace(recipe, target_bpw=8.0, allowed_bits=tuple(sorted({*bits.values()})))
    recipe, predictions = wanting(model, recipe, bits)
    return job.run(planner.allocated(job.make_plan(model, recipe, out), predictions))


def widths(folder: Path) -> dict[tuple[int, str], int]:
    """The bits of each layer and stage of a folder, 16 where it is in float; they must agree within a stage."""
    ours, found = open_artifact(folder), {}
    stages = {
        "qkv": ("q_proj", "k_proj", "v_proj"),
        "attention_out": ("o_proj",),
        "gate_up": ("gate_proj", "up_proj"),
        "down": ("down_proj",),
    }
    for layer, (stage, leaves) in itertools.product(range(2), stages.items()):
        parent = "self_attn" if stage in ("qkv", "attention_out") else "mlp"
        names = [f"model.layers.{layer}.{parent}.{leaf}" for leaf in leaves]
        (found[layer, stage],) = {ours.linear_specs[n].bits if n in ours.linear_specs else 16 for n in names}
    return found


@pytest.mark.parametrize(
    ("method", "format", "bits"),
    [
        ("rtn", "compressed-tensors", EVERY_BITS),
        ("gptq", "compressed-tensors", EVERY_BITS),
        ("rtn", "gptq", FOUR_EIGHT),
        ("gptq", "gptq", FOUR_EIGHT),
        ("rtn", "gptq-v2", FOUR_EIGHT | {(0, "qkv"): 3, (1, "qkv"): 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_linear_has_the_bits_that_were_chosen(
    method: str, format: str, bits: dict[tuple[int, str], int], model: Path, tmp_path: Path, text_file: Path
) -> None:
    done = mixed(model, tmp_path / "out", bits, method, format)
    assert widths(tmp_path / "out") == bits
    written, before = artifact(open_folder(tmp_path / "out")), artifact(open_folder(model))
    assert len(done.record.linears) == len(written.linear_specs) == 14 - list(bits.values()).count(16)
    linears = {n.removesuffix(".weight") for n in before.tensors if n.endswith("_proj.weight")}
    assert done.record.allocation is not None and done.record.allocation.bits.keys() == linears
    for name, form in written.linear_specs.items():
        weight = before.read(f"{name}.weight").float().numpy()
        error = np.square(written.qlinear(name).dequantize() - weight).mean() / np.square(weight).mean()
        assert 4.0**-form.bits / 3 < error < 8 * 4.0**-form.bits
    for name in before.tensors:
        if name.removesuffix(".weight") not in written.linear_specs:
            assert written.read(name).equal(before.read(name))


def test_the_plan_is_exact_to_the_byte(model: Path, tmp_path: Path) -> None:
    for format, bits in (("compressed-tensors", EVERY_BITS), ("gptq", FOUR_EIGHT)):
        out = tmp_path / format
        record = mixed(model, out, bits, format=format).record
        files = sum(path.stat().st_size for path in out.glob("*.safetensors"))
        recipe = from_values({k: v for k, v in record.recipe.items() if k != "bits"})
        recipe, predictions = wanting(model, recipe, bits)
        found = planner.allocated(planner.make(open_folder(model), recipe), predictions)
        assert found.layout.nbytes == files and found.bits_per_weight == record.bits_per_weight


def test_exports_of_mixed_bits(model: Path, tmp_path: Path) -> None:
    """Every format holds the same weights, or says why it cannot and which can."""
    out = tmp_path / "out"
    mixed(model, out, EVERY_BITS)
    places = {"out": out}
    for name in ("onnx", "gguf", "compressed-tensors"):
        written = r1quant.export(out, name, tmp_path / name).written[0]
        assert written.as_dict()["exact"]
        places[name] = written.path
    for a, b in itertools.combinations(places.values(), 2):
        assert r1quant.check(a, b).identical
    assert widths(places["onnx"]) == widths(places["compressed-tensors"]) == EVERY_BITS
    for name, says in (("gptq", "not 5"), ("awq", "not 5"), ("compressed-tensors-int", "not 5")):
        with pytest.raises(RecipeError) as refused:
            r1quant.export(out, name, tmp_path / name)
        assert f"{name} cannot hold model.layers.0." in refused.value.message and says in refused.value.message
        assert refused.value.hint == "export it --to compressed-tensors, safetensors, onnx, gguf"


def test_gptq_goes_everywhere_but_to_awq(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    mixed(model, out, FOUR_EIGHT, format="gptq")
    for name in ("gptq-v2", "compressed-tensors", "onnx", "gguf", "gptq"):
        assert r1quant.check(out, r1quant.export(out, name, tmp_path / name).written[0].path).identical
    with pytest.raises(RecipeError, match="AWQ files hold 4 bits, not 8"):
        r1quant.export(out, "awq", tmp_path / "awq")
    stated = json.loads((tmp_path / "gptq" / "config.json").read_text())["quantization_config"]
    assert stated["dynamic"] == json.loads((out / "config.json").read_text())["quantization_config"]["dynamic"]


def test_gptq_is_read_by_its_rules_where_there_are_no_group_maps(model: Path, tmp_path: Path) -> None:
    """As gptqmodel may write it."""
    out = tmp_path / "out"
    mixed(model, out, FOUR_EIGHT, format="gptq")
    before = {name: artifact(open_folder(out)).qlinear(name) for name in artifact(open_folder(out)).linear_specs}
    tensors = load_file(out / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if not n.endswith("g_idx")}, out / "model.safetensors", {"format": "pt"}
    )
    after = artifact(open_folder(out))
    assert widths(out) == FOUR_EIGHT
    for name, q in before.items():
        assert np.array_equal(after.qlinear(name).codes, q.codes) and after.qlinear(name).bits == q.bits


def test_the_same_again_is_complete_and_another_choice_is_refused(model: Path, tmp_path: Path) -> None:
    recipe = Recipe(method="rtn", group_size=32, target_bpw=6.5)
    losses: dict[str, dict[Choice, float]] = {
        x.name: {4: 1.0, 8: 0.1} for x in planner.make(open_folder(model), recipe).linears
    }

    def run(source: str) -> job.Quantized:
        plan = job.make_plan(model, recipe, tmp_path / "out")
        return job.run(planner.allocated(plan, LossPredictions(losses, source)))

    first = run("a")
    assert first.record.allocation is not None and set(first.record.allocation.bits.values()) == {4, 8}
    assert not first.already_complete
    again = run("a")
    assert again.already_complete and again.record == first.record
    with pytest.raises(ResumeError, match="a different allocation"):
        run("b")


@pytest.mark.parametrize("method", ["rtn", "gptq"])
def test_a_budget_is_met_by_what_the_model_itself_says(
    run: Run, llama: Path, method: str, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("R1QUANT_CACHE", str(in_tmp / "cache"))
    Path("text.txt").write_text(models.text(60), "utf-8")
    words = ["quantize", llama, *QUICK, "--calib", "text.txt", "--method", method, "--target-bpw", "6.5", "--json"]
    record = run(*words, "-o", "out").json["record"]
    assert 5.5 < record["bits_per_weight"] <= 6.5
    allocation = record["allocation"]
    assert allocation["source"] == {"gptq": loss_prediction.TRIAL, "rtn": loss_prediction.NEAREST}[method]
    assert allocation["gap"] == 0 and set(allocation["bits"].values()) == {4, 8} and 0 < allocation["predicted_kl"] < 1
    assert (record["predicted_kl"] == allocation["predicted_kl"]) == (method == "rtn")
    files = {path: path.stat().st_mtime_ns for path in Path("cache").rglob("*.json")}
    assert sum("losses" in path.name for path in files) == 2
    monkeypatch.setattr(loss_prediction, "_losses", None)  # not asked again
    planned = run("plan", *words[1:], "--predict").json
    assert planned["allocation"] == allocation and planned["bits_per_weight"] == record["bits_per_weight"]
    shown = run("plan", *words[1:-1], "--predict")
    assert "predicted KL divergence" in shown.out and "bits are decided after" not in shown.err
    assert run(*words, "-o", "again").json["record"]["allocation"] == allocation


def test_options_of_a_budget(run: Run, llama: Path) -> None:
    words = ["plan", llama, "--group-size", "32", "--json"]
    found = run(*words, "--target-bpw", "6.5").json
    assert found["recipe"]["target_bpw"] == 6.5 and found["budget"]["of"] == "linears"
    assert found["bits_per_weight"] <= 6.5 and found["allocation"] is None
    assert run(*words, "--target-size", "0.2MB").json["budget"] == {
        "bytes": 200_000, "of": "files", "choices": [4, 8], "target_size": 200_000,
    }  # fmt: skip
    card = run(*words, "--fit-gpu", "rtx4060", "--context", "2048").json["budget"]
    assert card["card"] == "RTX 4060" and card["kv_bytes"] == 2048 * 2 * 2 * 2 * 16 * 2
    assert card["runtime_bytes"] == 7 * 10**8 + 2048 * (4 * 64 + 2 * 96) * 2 + 512 * 6
    assert card["bytes"] == round(0.92 * 2**33) - card["runtime_bytes"] - card["kv_bytes"]
    assert run(*words, "--target-bpw", "6.5", "--allowed-bits", "3,4,8").json["budget"]["choices"] == [3, 4, 8]
    shown = run(*words[:-1], "--target-bpw", "6.5")
    assert shown.code == 0 and "4, 8" in shown.out and "note: bits are decided after" in shown.err
    refused = run(*words, "--predict")
    assert refused.code == 2 and "no bits to choose" in refused.json["error"]["message"]
    refused = run(*words, "--target-bpw", "4")
    assert refused.code == 2 and "4 bits everywhere take 5." in refused.json["problems"][0]["message"]
    assert run(*words, "--target-bpw", "5", "--bits", "4").code == 2
    assert run(*words, "--fit-gpu", "RTX 9999", "--context", "5").code == 2


def test_flags_replace_bits_and_budgets_of_the_settings(run: Run, llama: Path) -> None:
    def recipe(*words: str) -> tuple[object, ...]:
        found = run("plan", llama, "--json", *words).json["recipe"]
        return tuple(found[key] for key in ("bits", "target_bpw", "target_size", "fit_gpu", "allowed_bits"))

    Path("r1quant.toml").write_text("[quantize]\ngroup_size = 32\ntarget_bpw = 6.5\nallowed_bits = [3, 8]\n")
    assert recipe() == (None, 6.5, None, None, [3, 8])
    assert recipe("--bits", "8") == (8, None, None, None, [])
    assert recipe("--target-size", "1MB") == (None, None, 1_000_000, None, [3, 8])
    Path("r1quant.toml").write_text("[quantize]\ngroup_size = 32\nbits = 8\n")
    assert recipe("--target-bpw", "7") == (None, 7.0, None, None, [])
    assert recipe("--preset", "fast", "--target-bpw", "7", "--group-size", "32") == (None, 7.0, None, None, [])
    Path("r1quant.toml").write_text("[quantize]\ngroup_size = 32\ntarget_bpw = 7\n")
    assert recipe("--preset", "fast", "--group-size", "32") == (None, 7, None, None, [])
    Path("r1quant.toml").write_text('[quantize]\nformat = "gguf"\ntarget_bpw = 7\nallowed_types = ["Q4_K", "Q8_0"]\n')
    assert run("plan", llama, "--json").json["budget"]["choices"] == ["Q4_K", "Q8_0"]
    assert run("plan", llama, "--json", "--type", "Q8_0").json["recipe"]["type"] == "Q8_0"


def test_a_trial_rounds_as_the_run_does(
    model: Path, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, predictions: list[LossPredictions]
) -> None:
    """To the same codes in the first stage, whose inputs no rounding has changed; and it is not rounding to nearest."""
    monkeypatch.setenv("R1QUANT_CACHE", str(tmp_path / "cache"))
    rounded: list[QLinear] = watch(monkeypatch, loss_prediction, "_rounded")
    same = Recipe(group_size=32, format="compressed-tensors", samples=4, seq_len=32, calib=str(text_file), guided=True)
    for method in ("gptq", "rtn"):
        job.quantize(model, tmp_path / method, replace(same, method=method, target_bpw=9.5, allowed_bits=(4, 8)))
    trial, nearest = (each.losses for each in predictions)
    for name in ("q_proj", "k_proj", "v_proj"):
        name = f"model.layers.0.self_attn.{name}"
        assert trial[name].keys() == nearest[name].keys() == {4, 8}
        assert trial[name][4] == 256 * trial[name][8] > 0 and nearest[name][4] > 100 * nearest[name][8] > 0
    assert {q.bits for q in rounded[: len(rounded) // 3]} == {4}  # 8 bits are tried by rounding to nearest alone
    assert sum(loss[4] for loss in trial.values()) < 0.9 * sum(loss[4] for loss in nearest.values())
    job.quantize(model, tmp_path / "all", replace(same, method="gptq", bits=4))
    first = open_artifact(tmp_path / "all")
    names = (f"model.layers.0.self_attn.{name}" for name in ("q_proj", "k_proj", "v_proj"))
    codes = np.concatenate([q.codes for name in names if isinstance(q := first.qlinear(name), QLinear)])
    assert rounded[0].bits == 4 and np.array_equal(rounded[0].codes, codes)
