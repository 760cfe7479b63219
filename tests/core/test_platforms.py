"""The systems that are refused or not claimed."""

from __future__ import annotations

import json
import platform
import sys

import pytest

from r1quant.cli import main
from r1quant.core.platforms import NO_MPS, check_platform, platform_line
from r1quant.engine.forward import pick_device
from r1quant.errors import PlatformError, RecipeError
from r1quant.recipe import Recipe


@pytest.mark.parametrize("words", [["--help"], ["quantize", "--bits", "4"], []])
def test_native_windows_is_refused_first(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit) as ended:
        main(words)
    shown = capsys.readouterr()
    assert ended.value.code == 3 and shown.out == ""
    assert shown.err == "error: r1quant does not run on native Windows yet\nuse it inside WSL 2\n"


def test_the_refusal_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(SystemExit):
        main(["fit", "--json"])
    assert json.loads(capsys.readouterr().out)["error"]["kind"] == "PlatformError"


@pytest.mark.parametrize("system", ["linux", "darwin"])
def test_others_are_not_refused(system: str) -> None:
    check_platform(system)
    with pytest.raises(PlatformError):
        check_platform("win32")


def test_what_is_not_tested_is_not_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    for system, name, machine in (("linux", "Linux", "aarch64"), ("darwin", "Darwin", "arm64"), ("aix", "AIX", "p9")):
        monkeypatch.setattr(sys, "platform", system)
        monkeypatch.setattr(platform, "system", lambda name=name: name)
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        line = platform_line()
        assert line.startswith(f"{name} {machine}: ") and "not tested" in line
        assert (NO_MPS in line) == (system == "darwin")


def test_mps_is_refused_with_the_reason() -> None:
    for device in ("mps", "mps:0"):
        with pytest.raises(RecipeError) as caught:
            pick_device(device)
        assert caught.value.message == NO_MPS and "--device cpu" in caught.value.hint
        with pytest.raises(RecipeError, match="MPS"):
            Recipe(device=device)
