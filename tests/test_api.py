"""The Python API: complete, typed, quick to import, and the same options as the command line."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import get_type_hints

import pytest

import r1quant
from r1quant.core.options import options_of
from r1quant.jobs.verify.options import VerifyArguments, VerifyOptions
from r1quant.planning.targets import ExportArguments, ExportOptions
from r1quant.recipe import Recipe, RecipeArguments

VERBS = {
    "bench", "calib_generate", "check", "doctor", "export", "fit", "inspect", "plan", "publish", "pull_check",
    "quantize", "report", "run", "verify",
}  # fmt: skip
WIDER = {"target_size", "allowed_bits", "allowed_types"}  # texts such as 5GB and 4,8 are read too


def test_all_verbs_are_there_with_signatures_and_docstrings() -> None:
    assert set(r1quant.__all__) >= VERBS
    for name in VERBS:
        function = getattr(r1quant, name)
        assert inspect.isfunction(function) and inspect.getdoc(function)
        signature = inspect.signature(function)
        assert signature.return_annotation is not inspect.Signature.empty
        assert all(p.annotation is not inspect.Parameter.empty for p in signature.parameters.values())


def test_modules_that_are_loaded_do_not_hide_the_verbs() -> None:
    code = "import r1quant, r1quant.reporting.sections, r1quant.publishing.card, r1quant.jobs.report.run\n"
    code += "assert all(callable(getattr(r1quant, name)) for name in r1quant.__all__)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_importing_it_loads_no_other_package() -> None:
    code = "import sys; before = set(sys.modules); import r1quant; print(*set(sys.modules) - before)"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert not {name.partition(".")[0] for name in ran.stdout.split()} & {"numpy", "torch", "click", "rich", "tomllib"}


@pytest.mark.parametrize(
    ("kind", "arguments", "beside"),
    [
        (Recipe, RecipeArguments, set()),
        (VerifyOptions, VerifyArguments, {"text"}),
        (ExportOptions, ExportArguments, set()),
    ],
    ids=["Recipe", "VerifyOptions", "ExportOptions"],
)
def test_named_arguments_are_the_fields(kind: type, arguments: type, beside: set[str]) -> None:
    mine, theirs = get_type_hints(kind), get_type_hints(arguments)
    assert set(theirs) == set(mine) - beside == {option.name for option in options_of(kind)} - beside
    for name, hint in theirs.items():
        accepted = (mine[name], mine[name] | None) if kind is Recipe else (mine[name],)
        assert hint in accepted or (kind is Recipe and name in WIDER), name


def test_classes_of_options_are_frozen_and_documented() -> None:
    for name in set(r1quant.__all__) - VERBS:
        kind: type = getattr(r1quant, name)
        assert is_dataclass(kind) and kind.__setattr__ is not object.__setattr__ and inspect.getdoc(kind)
        assert {option.name for option in options_of(kind)} <= {field.name for field in fields(kind)}
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        r1quant.nothing  # noqa: B018


def test_no_signature_takes_anything_under_any_name() -> None:
    """No function of the package that is not private has `**name: Any`."""
    for path in Path(r1quant.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.args.kwarg is not None:
                hint = node.args.kwarg.annotation
                assert node.name.startswith("_") or (hint is not None and ast.unparse(hint) != "Any"), (path, node.name)
