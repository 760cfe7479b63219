"""The plan is one object: what is shown is what runs, and it knows the place of the result."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

import r1quant
from r1quant.checkpoint import hub
from r1quant.errors import RecipeError, ResumeError
from r1quant.jobs.quantize import run as job
from r1quant.jobs.quantize.prepare import decided
from r1quant.planning.plan import Plan
from r1quant.progress import Progress, Silent
from r1quant.recipe import Recipe, from_values, preset_of
from r1quant.registry import PRESETS
from tests.conftest import QUICK, Run, watch

SMALL: Mapping[str, object] = {"group_size": 32, "samples": 4, "seq_len": 32, "device": "cpu", "dtype": "float32"}
WORDS = (*QUICK, "--method", "rtn")


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def recipe(**values: object) -> Recipe:
    return from_values({**SMALL, **values})


@pytest.mark.parametrize("words", [("--method", "rtn"), ("--method", "gptq"), ("--method", "rtn", "--awq")])
def test_the_command_line_opens_the_model_once(
    run: Run, llama: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    """The plan that it shows is what the run is given."""
    opened, plans = watch(monkeypatch, job, "open_model"), watch(monkeypatch, job, "make_plan")
    ran: list[object] = []
    real = job.run

    def watched(plan: Plan, progress: Progress, resume_anyway: bool) -> job.Quantized:
        ran.append(plan)
        return real(plan, progress, resume_anyway)

    monkeypatch.setattr(job, "run", watched)
    assert run("quantize", llama, "-o", "out", "--calib", text_file, *QUICK, *words).code == 0
    assert len(opened) == len(plans) == 1 and ran[0] is plans[0]


def test_a_model_of_the_hub_is_looked_up_once(
    run: Run, llama: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fetched: list[str] = []

    def fetch(name: str, *_: object) -> Path:
        fetched.append(name)
        return llama

    monkeypatch.setattr(hub, "fetch", fetch)
    ran = run("quantize", "owner/model", "-o", "out", *WORDS)
    assert ran.code == 0, ran.err
    assert fetched == ["owner/model"]


@pytest.mark.parametrize(
    "values", [{"method": "rtn"}, {"method": "rtn", "target_bpw": 6.5}, {"method": "gptq", "target_bpw": 6.5}]
)
def test_a_plan_that_is_run_writes_what_quantize_writes(
    values: dict[str, object], llama: Path, tmp_path: Path, text_file: Path
) -> None:
    """Also if its bits have been decided before."""
    wanted = recipe(**values, calib=str(text_file))
    job.quantize(llama, tmp_path / "straight", wanted)
    plan = job.make_plan(llama, wanted, tmp_path / "planned")
    if plan.budget is not None:
        plan = decided(plan, Silent())
        assert plan.decided and plan.out == tmp_path / "planned"
    done = job.run(plan)
    assert done.out == plan.out == tmp_path / "planned"
    assert files(tmp_path / "planned") == files(tmp_path / "straight")


def test_the_python_api_runs_a_plan(llama: Path, in_tmp: Path) -> None:
    plan = r1quant.plan(llama, "out", method="rtn", group_size=32)
    assert not plan.problems and not plan.complete and plan.out == in_tmp / "out"
    done = r1quant.run(plan)
    assert done.out == plan.out and not done.already_complete
    again = r1quant.plan(llama, "out", method="rtn", group_size=32)
    assert again.complete and r1quant.run(again).already_complete
    assert r1quant.run(plan).already_complete, "the plan is older than the result"


def test_a_plan_names_the_place_and_says_whether_the_result_is_there(run: Run, llama: Path, in_tmp: Path) -> None:
    plan = run("plan", llama, *WORDS, "-o", "out", "--json").json
    assert plan["out"] == str(in_tmp / "out") and plan["complete"] is False
    assert run("quantize", llama, *WORDS, "-o", "out").code == 0
    assert run("plan", llama, *WORDS, "-o", "out", "--json").json["complete"] is True
    shown = run("quantize", llama, *WORDS, "-o", "out")
    assert shown.code == 0 and "is complete already" in shown.err and "complete already" in " ".join(shown.out.split())
    default = run("plan", llama, *WORDS, "--json").json["out"]
    assert Path(default).parent == in_tmp and Path(default).name.startswith("llama-gptq-w4g32")


def test_a_place_that_is_taken_is_a_problem_of_the_plan(run: Run, llama: Path, in_tmp: Path) -> None:
    (in_tmp / "out").mkdir()
    (in_tmp / "out" / "notes.txt").write_text("mine")
    ran = run("plan", llama, *WORDS, "-o", "out", "--json")
    assert ran.code == 2 and "exists and is not empty" in ran.json["problems"][0]["message"]
    with pytest.raises(ResumeError, match="exists and is not empty"):
        r1quant.quantize(llama, "out", method="rtn", group_size=32)


def test_what_a_begun_run_has_written_needs_no_more_space(
    llama: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = recipe(method="rtn")
    needed = job.make_plan(llama, wanted, in_tmp / "out").estimate
    free = needed.output_bytes + needed.run_bytes - 1000

    class Usage:
        def __init__(self, _: object) -> None:
            self.free = free

    monkeypatch.setattr("shutil.disk_usage", Usage)
    (problem,) = job.make_plan(llama, wanted, in_tmp / "out").problems
    assert "not enough disk space" in problem.message
    (in_tmp / "out.run").mkdir()
    (in_tmp / "out.run" / "layer-00000.safetensors").write_bytes(b"\0" * 1000)
    assert not job.make_plan(llama, wanted, in_tmp / "out").problems


def test_a_plan_with_problems_does_not_run(llama: Path, in_tmp: Path) -> None:
    plan = r1quant.plan(llama, "out", method="rtn", group_size=128)
    assert plan.problems
    with pytest.raises(RecipeError, match="does not divide"):
        r1quant.run(plan)
    assert list(in_tmp.iterdir()) == []


@pytest.mark.parametrize("preset", PRESETS)
def test_the_headline_says_the_preset(run: Run, llama: Path, text_file: Path, preset: str) -> None:
    assert preset_of(from_values(dict(SMALL), preset)) == preset
    assert preset_of(from_values({"target_bpw": 5.5}, preset)) == preset
    assert preset_of(from_values({"method": "gptq"})) is None
    ran = run("quantize", llama, "--preset", preset, *QUICK, "--calib", text_file, "-o", "out")
    assert ran.code == 0 and f" -> gptq: {preset}: gptq, 4 bits, group size 32" in ran.err


def test_the_headline_of_a_method_alone(run: Run, llama: Path) -> None:
    ran = run("quantize", llama, *WORDS, "-o", "out")
    assert ran.code == 0 and " -> gptq: rtn, 4 bits, group size 32" in ran.err
