"""r1quant report as it is used: after quantize and verify, with --check, and where there is nothing to report."""

from __future__ import annotations

import importlib.util
import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from r1quant.cli import cli
from r1quant.cli.options import given_of
from r1quant.cli.settings import pick_recipe
from r1quant.recipe import Recipe
from r1quant.reporting import plots
from tests.cli.test_help import imported_by
from tests.conftest import QUICK, Ran, Run
from tests.reporting import records

FILES = ["report.html", "report.md", "report.json"]


def written(folder: Path, *bits: int) -> Path:
    """A folder of records as files."""
    folder.mkdir()
    for number, (_, record) in enumerate(records.everything(*bits)):
        (folder / f"{number}.json").write_text(json.dumps(record), "utf-8")
    return folder


def test_from_quantize_to_report(run: Run, llama: Path, text_file: Path) -> None:
    """The records that the commands themselves leave; and the commands in the report are ones that they take."""
    assert run("quantize", llama, "-o", "out", "--calib", text_file, *QUICK, "--guided", "--record", "q.json").code == 0
    asked = ("--text", text_file, "--windows", "3", "--seq-len", "32", "--gate", "kl.mean<9", "--record", "v.json")
    assert run("verify", "out", *asked).code == 0
    ran = run("report", "--png", "--json")
    assert ran.code == 0 and [Path(file["path"]).name for file in ran.json["files"]] == [*FILES, "report.png"]
    assert all(Path(file["path"]).stat().st_size == file["bytes"] > 0 for file in ran.json["files"])
    assert ran.json["records"] == 4 and ran.json["verdict"].startswith(
        "Use out"
    )  # out/ tells of itself, and of its size

    found = json.loads(Path("report/report.json").read_text("utf-8"))
    (each,) = found["variants"]
    verified, made = json.loads(Path("v.json").read_text("utf-8")), json.loads(Path("q.json").read_text("utf-8"))
    assert each["quality"]["kl"]["mean"] == verified["kl"]["mean"]
    assert each["bytes"] == sum(p.stat().st_size for p in Path("out").iterdir() if p.name != "r1quant.json")
    assert each["predictions"][0]["measured"] == made["output_bytes"]
    assert {row["what"] for row in each["predictions"]} >= {"KL divergence", "time to quantize"}
    assert found["hardware"]["names"][1:] == ["out"]
    for line in each["commands"]:
        _, name, *words = shlex.split(line)
        context = cli.commands[name].make_context(name, words)
        assert context.params["out" if name == "verify" else "model"]
    page = Path("report/report.html").read_text("utf-8")
    assert page.count("<svg ") >= 5 and str(Path.cwd()) not in page


def test_commands_state_what_is_not_a_default(run: Run, llama: Path, text_file: Path) -> None:
    assert run("quantize", llama, "-o", "out", "--calib", text_file, *QUICK, "--bits", "8", "--asymmetric").code == 0
    assert run("report", "out").code == 0
    (line,) = json.loads(Path("report/report.json").read_text("utf-8"))["variants"][0]["commands"]
    again, first = recipe_of(shlex.split(line)[2:]), recipe_of([str(llama), "--bits", "8", "--asymmetric", *QUICK])
    assert again == replace(first, calib=text_file.name)


def test_a_gguf_file_has_types_in_place_of_bits(run: Run, in_tmp: Path) -> None:
    """What was measured of the file counts for the folder that quantize wrote; the commands name the type."""
    words = ("tiny-r1", "--method", "rtn", "--format", "gguf", "--type", "Q4_K_M")
    assert run("quantize", *words, "-o", "out", "--record", "q.json").code == 0
    assert run("verify", "out/tiny-r1-Q4_K_M.gguf", "--windows", "3", "--seq-len", "32", "--record", "v.json").code == 0
    assert run("report").code == 0
    found = json.loads(Path("report/report.json").read_text("utf-8"))
    (each,) = found["variants"]
    assert (each["name"], each["bits"], each["format"]) == ("out", None, "gguf")
    assert each["bits_per_weight"] == pytest.approx(4.861, abs=1e-3) and each["quality"]["kl"]["mean"] > 0
    size = sum(path.stat().st_size for path in Path("out").iterdir() if path.name != "r1quant.json")
    assert each["bytes"] == size
    (sizes,) = [row for row in each["predictions"] if row["what"] == "files of the quantized model"]
    assert size - 1000 < sizes["predicted"] == Path("out/tiny-r1-Q4_K_M.gguf").stat().st_size
    assert found["hardware"]["names"][1:] == ["out"]
    stored = found["hardware"]["weights_bytes"]["out"]
    assert 0.6 * size < stored < size  # the rest is the vocabulary, names and keys
    made, verified = (shlex.split(line) for line in each["commands"])
    assert recipe_of(made[2:]) == recipe_of(list(words)) and verified[:3] == ["r1quant", "verify", "out"]
    page = Path("report/report.md").read_text("utf-8")
    assert "None" not in page and "out | 4.861" in page


def recipe_of(words: list[str]) -> Recipe:
    """What a command line of quantize means."""
    context = cli.commands["quantize"].make_context("quantize", words)
    return pick_recipe(context.params["preset"], given_of(context, Recipe))


def test_check_names_what_differs(run: Run, in_tmp: Path) -> None:
    written(in_tmp / "records")
    assert run("report", "records", "-o", "shown").code == 0
    ran = run("report", "records", "-o", "shown", "--check", "--json")
    assert (ran.code, ran.json["differing"], ran.json["note"]) == (0, [], None)
    before = (in_tmp / "shown" / "report.md").read_bytes()
    (in_tmp / "shown" / "report.md").write_bytes(before + b"x")
    (in_tmp / "shown" / "report.html").unlink()
    ran = run("report", "records", "-o", "shown", "--check", "--json")
    assert (ran.code, ran.json["differing"]) == (1, ["report.html", "report.md"])
    assert (in_tmp / "shown" / "report.md").read_bytes() == before + b"x", "--check writes nothing"
    shown = run("report", "records", "-o", "shown", "--check")
    assert shown.code == 1 and "report.md" in shown.out


def test_check_after_a_record_has_changed(run: Run, in_tmp: Path) -> None:
    written(in_tmp / "records")
    assert run("report", "records", "-o", "shown").code == 0
    record = json.loads((in_tmp / "records" / "1.json").read_text("utf-8"))
    record["kl"]["mean"] *= 1.001
    (in_tmp / "records" / "1.json").write_text(json.dumps(record), "utf-8")
    assert run("report", "records", "-o", "shown", "--check", "--json").json["differing"][-1] == "report.json"


def test_check_leaves_charts_of_another_matplotlib_out_and_says_so(
    run: Run, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(in_tmp / "records")
    assert run("report", "records", "-o", "shown", "--png").code == 0
    monkeypatch.setattr(plots, "version", lambda: "99.0")
    monkeypatch.setitem(plots.STYLE, "font.size", 11)
    ran = run("report", "records", "-o", "shown", "--png", "--check", "--json")
    assert (ran.code, ran.json["differing"]) == (0, []) and "charts are not compared" in ran.json["note"]
    page = in_tmp / "shown" / "report.html"
    page.write_text(page.read_text("utf-8").replace("Use tiny", "Use no tiny"), "utf-8")
    assert run("report", "records", "-o", "shown", "--check", "--json").json["differing"] == ["report.html"]


def test_the_order_and_the_names_of_folders_do_not_matter(run: Run, in_tmp: Path) -> None:
    (in_tmp / "b").mkdir()
    first, second = written(in_tmp / "a"), written(in_tmp / "b" / "c")
    assert run("report", first, "-o", "x").code == 0 and run("report", second, "-o", "y").code == 0
    assert run("report", *sorted(first.iterdir(), reverse=True), "-o", "z").code == 0
    for name in FILES:
        contents = {(in_tmp / folder / name).read_bytes() for folder in "xyz"}
        assert len(contents) == 1, name


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        ((), 2, "there are no records in this folder"),
        (("absent",), 2, "there is no file or folder absent"),
        (("other.json",), 2, "other.json is no record that a report knows (schema: something/1)"),
        (("broken.json",), 2, "broken.json is no record that a report knows (schema: none)"),
        (("list.json",), 2, "list.json is no record that a report knows (schema: none)"),
        (("deep.json",), 2, "deep.json is no record that a report knows (schema: none)"),
    ],
)
def test_what_is_no_record(run: Run, in_tmp: Path, words: tuple[str, ...], code: int, says: str) -> None:
    contents = {"other": '{"schema": "something/1"}', "broken": "{", "list": "[1]", "deep": "[" * 100_000}
    for name, content in contents.items():
        (in_tmp / f"{name}.json").write_text(content, "utf-8")
    ran: Ran = run("report", *words)
    assert (ran.code, ran.error[0]) == (code, says) and not (in_tmp / "report").exists()


def test_unfinished_runs_and_the_report_itself_are_no_records(run: Run, in_tmp: Path) -> None:
    for folder in ("out.run", ".hidden"):
        written(in_tmp / folder, 4)
    assert run("report").code == 2
    written(in_tmp / "records", 4)
    assert run("report", "--json").json["records"] == 3
    assert run("report", "--json").json["records"] == 3


def test_without_matplotlib_the_install_line_is_given(run: Run, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "matplotlib" else find(name))
    ran = run("report")
    assert ran.code == 4 and ran.error[1] == "pip install 'r1quant[report]'"


def test_help_loads_no_plotting_and_a_report_no_torch(in_tmp: Path) -> None:
    written(in_tmp / "records", 4)
    assert not imported_by(["report", "--help"], in_tmp) & {"torch", "transformers", "matplotlib", "jinja2"}
    loaded = imported_by(["report", "records", "--json"], in_tmp)
    assert "matplotlib" in loaded and not loaded & {"torch", "transformers", "numba", "tokenizers"}
