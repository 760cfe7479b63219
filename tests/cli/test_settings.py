"""Which model, which recipe, which folder: the argument, the environment, r1quant.toml, the default, in this order."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from r1quant.checkpoint import resolve
from r1quant.recipe import GGUF_DEFAULTS
from tests.conftest import Run

TOML = "r1quant.toml"


def test_the_order_in_which_a_model_is_looked_for(
    run: Run, llama: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("argument", "environment", "toml", "embedded"):
        shutil.copytree(llama, in_tmp / name)
    monkeypatch.setattr(resolve, "embedded_folder", lambda: in_tmp / "embedded")
    Path(TOML).write_text('model = "toml"\n[quantize]\ngroup_size = 32\n')
    monkeypatch.setenv("R1QUANT_MODEL", "environment")
    for command in ("inspect", "plan", "quantize"):
        words = [command, "--json"] + (["--dry-run"] if command == "quantize" else [])
        assert run(*words, "argument").json["model"] == "argument"
        assert run(*words).json["model"] == "environment"
        with monkeypatch.context() as m:
            m.setenv("R1QUANT_MODEL", "")
            assert run(*words).json["model"] == "toml"
            Path(TOML).rename("away")
            assert run(*words, *(["--group-size", "32"] if command != "inspect" else [])).json["model"] == "tiny-r1"
            Path("away").rename(TOML)


def test_flags_over_preset_over_settings_over_defaults(run: Run, llama: Path) -> None:
    Path("mine.txt").write_text("Some text.")
    Path(TOML).write_text('[quantize]\nbits = 3\ngroup_size = 16\nseed = 7\ncalib = "mine.txt"\n')

    def recipe(*words: str) -> dict[str, object]:
        found = run("plan", llama, "--json", *words).json["recipe"]
        assert isinstance(found, dict)
        return found

    assert recipe() | {"bits": 3, "group_size": 16, "seed": 7, "calib": "mine.txt"} == recipe()
    assert recipe()["damping"] == 0.05 and recipe("--method", "gptq")["damping"] == 0.01
    preset = {"guided": True, "corrected": True}
    assert recipe("--preset", "balanced") | preset | {"bits": 3, "seed": 7} == recipe("--preset", "balanced")
    assert recipe("--preset", "fast") | preset == recipe("--preset", "fast", "--guided")
    assert recipe("--preset", "fast")["corrected_share"] == 0.25
    modest = ("--guided-share", "0.25", "--corrected-share", "0.5", "--continued", "0")
    assert recipe("--preset", "best", *modest) == recipe("--preset", "balanced") == recipe()
    assert recipe("--preset", "fast")["calib"] == "mine.txt"
    given = recipe("--preset", "fast", "--bits", "2", "--group-size", "-1", "--asymmetric", "--min-max", "--seed", "1")
    assert given | {"bits": 2, "group_size": -1, "symmetric": False, "scale_search": False, "seed": 1} == given


def test_under_a_budget_presets_use_all_of_the_text(run: Run, llama: Path) -> None:
    """The parts of it that they state hold for bits that are stated too; parts that are told hold always."""

    def shares(*words: str) -> tuple[object, object]:
        recipe = run("plan", llama, "--json", "--group-size", "32", *words).json["recipe"]
        return recipe["guided_share"], recipe["corrected_share"]

    budget = ("--target-bpw", "5.5", "--format", "compressed-tensors")
    assert shares() == (0.25, 0.5) and shares("--preset", "fast") == (1.0, 0.25)
    assert shares(*budget) == shares("--preset", "fast", *budget) == (1.0, 1.0)
    assert shares("--guided-share", "0.5", *budget) == (0.5, 1.0)
    Path(TOML).write_text("[quantize]\nguided_share = 0.75\ncorrected_share = 0.5\n")
    assert shares(*budget) == (0.75, 0.5)


def test_presets_save_no_time_on_little_text(run: Run, llama: Path) -> None:
    """A preset's part of the text leaves 8,192 tokens, or all there are; a part that is told holds always."""

    def shares(samples: int, *words: str) -> tuple[object, object]:
        text = ("--samples", str(samples), "--seq-len", "256")
        recipe = run("plan", llama, "--json", "--group-size", "32", *text, *words).json["recipe"]
        return recipe["guided_share"], recipe["corrected_share"]

    assert shares(16) == shares(32) == shares(16, "--preset", "fast") == (1.0, 1.0)
    assert shares(40) == shares(40, "--corrected-share", "0.8") == (0.8, 0.8)
    assert shares(80) == (0.4, 0.5) and shares(128) == (0.25, 0.5) and shares(256, "--preset", "fast") == (1.0, 0.25)
    assert shares(16, "--guided-share", "0.25") == (0.25, 1.0)


def test_gguf_files_have_regularization_of_their_own(run: Run, in_tmp: Path) -> None:
    def regularization(*words: str) -> tuple[object, object]:
        recipe = run("plan", "tiny-r1", "--json", *words).json["recipe"]
        return recipe["shrinkage"], recipe["correction_ridge"]

    gguf = ("--format", "gguf")
    assert regularization() == regularization("--format", "awq") == (0, 0.3)
    assert regularization(*gguf) == regularization(*gguf, "--preset", "fast") == tuple(GGUF_DEFAULTS.values())
    assert regularization(*gguf, "--target-bpw", "4") == tuple(GGUF_DEFAULTS.values())
    assert regularization(*gguf, "--shrinkage", "0", "--correction-ridge", "0.5") == (0, 0.5)
    assert regularization("--shrinkage", "0.5") == (0.5, 0.3)


def test_gguf_files_are_guided_by_more_of_the_text(run: Run, in_tmp: Path) -> None:
    def share(*words: str) -> object:
        text = ("--samples", "128", "--seq-len", "512")
        return run("plan", "tiny-r1", "--json", *text, *words).json["recipe"]["guided_share"]

    assert share() == 0.25 and share("--format", "gguf") == 0.5
    assert share("--format", "gguf", "--guided-share", "0.25") == 0.25


def test_out_is_where_the_settings_say(run: Run, llama: Path, in_tmp: Path) -> None:
    Path(TOML).write_text('out = "results/x"\n[quantize]\nmethod = "rtn"\ngroup_size = 32\n')
    for command in ("plan", "quantize"):
        ran = run(command, llama)
        assert ran.code == 2 and f"the folder {in_tmp / 'results'} does not exist" in ran.err
    (in_tmp / "results").mkdir()
    assert run("quantize", llama).code == 0
    assert (in_tmp / "results" / "x" / "config.json").is_file()
    assert run("quantize", llama, "-o", "given").code == 0 and Path("given", "config.json").is_file()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("modell = 'x'", "modell is not understood"),
        ("model = 3", "model is 3"),
        ("model = ''", "model is ''"),
        ("out = ['a']", "out is ['a']"),
        ("quantize = 3", "quantize is not understood"),
        ("[quantise]\nbits = 4", "quantise is not understood"),
        ("[quantize]\nbitz = 4", "did you mean bits?"),
        ("[quantize]\npreset = 'fast'", "'preset' is not a recipe option"),
        ("[quantize]\nbits = 4.0", "bits 4.0 is not supported"),
        ("[quantize]\nbits = '4'", "bits '4' is not supported"),
        ("[quantize]\nbits = true", "bits True is not supported"),
        ("[quantize]\ngroup_size = 128.0", "group-size 128.0 is not supported"),
        ("[quantize]\nmethod = ['gptq']", "method ['gptq'] is not supported"),
        ("[quantize]\nformat = {}", "format {} is not supported"),
        ("[quantize]\nsymmetric = 'no'", "symmetric is 'no'"),
        ("[quantize]\nact_order = 1", "act-order is 1"),
        ("[quantize]\nscale_search = 0", "scale-search is 0"),
        ("[quantize]\nsamples = 1.5", "samples is 1.5"),
        ("[quantize]\nseed = -1", "seed is -1"),
        ("[quantize]\ndamping = true", "damping is True"),
        ("[quantize]\ndamping = nan", "damping is nan"),
        ("[quantize]\ncalib = 5", "calib is 5"),
        ("[quantize]\ncalib = ''", "calib is ''"),
        ("[quantize]\ndevice = 0", "device 0 is not supported"),
        ("[quantize]\ndevice = 'gpu'", "device 'gpu' is not supported"),
        ("[quantize]\nscale_dtype = 'float32'", "scale-dtype 'float32' is not supported"),
        ("bits = = 4", "r1quant.toml cannot be read"),
        ("\udcff", "r1quant.toml cannot be read"),
    ],
)
def test_settings_are_strict(run: Run, llama: Path, text: str, says: str) -> None:
    Path(TOML).write_bytes(text.encode("utf-8", "surrogateescape"))
    ran = run("quantize", llama, "--group-size", "32") if "group_size" not in text else run("quantize", llama)
    assert ran.code == 2 and says in " ".join(ran.error)
    assert not list(Path.cwd().glob("*.run"))


def test_settings_are_of_the_current_folder_only(run: Run, llama: Path, in_tmp: Path) -> None:
    Path(TOML).write_text("nonsense")
    (in_tmp / "inner").mkdir()
    with pytest.MonkeyPatch.context() as m:
        m.chdir(in_tmp / "inner")
        assert run("plan", llama, "--group-size", "32").code == 0
