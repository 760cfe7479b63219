"""The table of optional packages says what pyproject.toml says."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

import pytest

from r1quant.errors import MissingDependency
from r1quant.extras import EXTRAS, missing, need
from r1quant.jobs.runtimes import EXTRA_OF

PROJECT = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text("utf-8"))["project"]


def test_the_table_and_pyproject_have_the_same_extras() -> None:
    """An extra installs its package first."""
    stated = {
        name: re.split(r"[^\w-]", lines[0])[0]
        for name, lines in PROJECT["optional-dependencies"].items()
        if name != "dev"
    }
    assert {name: extra.package for name, extra in EXTRAS.items()} == stated
    assert set(EXTRA_OF.values()) <= set(EXTRAS)


def test_a_missing_extra_is_named_with_its_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name in EXTRAS:
        with pytest.raises(MissingDependency) as caught:
            need(name)
        assert caught.value.message.startswith(f"{EXTRAS[name].package} is not installed: it ")
        assert caught.value.hint == f"pip install 'r1quant[{name}]'"
    assert missing("llamacpp", "it is broken").message == "it is broken"
