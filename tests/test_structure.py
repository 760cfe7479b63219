"""The walls between the rooms: who may import whom, and which third party is let in where."""

from __future__ import annotations

import ast
import graphlib
from dataclasses import dataclass, fields
from functools import cache
from importlib import resources
from pathlib import Path

import pytest

import r1quant
from r1quant.arch import tables as archs

ROOT = Path(r1quant.__file__).parent

# From the ground up. Rooms on one floor are siblings, which do not see each other.
FLOORS: tuple[set[str], ...] = (
    {"errors"},
    {"extras", "progress", "registry", "tinyr1", "core"},
    {"records"},
    {"recipe", "arch", "storage", "metrics"},
    {"checkpoint"},
    {"data", "formats", "hardware", "publishing", "reporting"},
    {"planning", "engine"},
    {"backends"},
    {"jobs"},
    {"cli"},
    {"r1quant", "__main__"},
)
# The same for the verbs, inside jobs.
JOBS: tuple[set[str], ...] = (
    {"identity", "checkpoint_writer", "setup"},
    {"artifacts", "runtimes"},
    {"inspect", "doctor", "check", "generate", "fit", "serving"},
    {"bench", "quantize"},
    {"verify", "export"},
    {"report", "publish"},
)
FENCES = {
    "click": {"cli"},
    "rich": {"cli"},
    "transformers": {"engine.forward"},
    "gguf": {"checkpoint.gguf", "formats.gguf"},
    "onnx": {"formats.onnx"},
    "onnxruntime": {"backends.onnxruntime"},
    "llama_cpp": {"backends.llamacpp", "formats.gguf.kquants"},
    "numba": {"engine.grids"},
    "datasets": {"data.texts", "data.problemsets"},
    "math_verify": {"metrics.grading"},
    "openai": {"backends.openai_client"},
    "lm_eval": {"jobs.verify.lmeval"},
    "pynvml": {"jobs.bench.child"},
    "huggingface_hub": {"checkpoint.hub", "jobs.publish.upload", "publishing.metadata"},
    "tokenizers": {"checkpoint.tokenizer", "checkpoint.gguf.tokenizer"},
    "jinja2": {"checkpoint.tokenizer", "reporting.html"},
    "matplotlib": {"reporting.plots"},
    "safetensors": {"jobs.quantize.layer_files"},
}
# Loaded by what must answer at once: none of these.
SLOW = {
    "torch", "transformers", "numba", "onnx", "onnxruntime", "llama_cpp", "tokenizers", "gguf", "datasets",
    "huggingface_hub", "jinja2", "safetensors", "openai", "math_verify", "lm_eval",
    "pynvml", "matplotlib",
}  # fmt: skip
QUICK = (
    "r1quant.cli", "r1quant.jobs.inspect", "r1quant.jobs.quantize.run", "r1quant.jobs.export.run",
    "r1quant.planning.planner", "r1quant.jobs.verify.options", "r1quant.jobs.report.run", "r1quant.jobs.fit.run",
    "r1quant.recipe",
)  # fmt: skip


@dataclass(frozen=True)
class Import:
    """module imports target (a module of ours, or the name of a package); `loads` if the import runs at once."""

    module: str
    target: str
    loads: bool
    typing_only: bool


@cache
def modules() -> dict[str, Path]:
    found = {}
    for path in sorted(ROOT.rglob("*.py")):
        parts = ("r1quant", *path.relative_to(ROOT).with_suffix("").parts)
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache
def tree(module: str) -> ast.Module:
    return ast.parse(modules()[module].read_text("utf-8"))


def imports(module: str) -> list[Import]:
    found = []

    def visit(node: ast.AST, loads: bool, typing_only: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            typing_only = True
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            loads = False
        targets = []
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative imports are not used"
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [name if name in modules() else str(node.module) for name in inner]
        for target in targets:
            ours = target.startswith("r1quant")
            name = target if ours else target.partition(".")[0]
            found.append(Import(module, name, loads and not typing_only, typing_only))
        for child in ast.iter_child_nodes(node):
            visit(child, loads, typing_only)

    visit(tree(module), True, False)
    return found


def room(module: str, within: str = "r1quant") -> str:
    """The part of `within` that a module belongs to: a package or a file; `within` itself for its __init__."""
    inner = module.removeprefix(within).lstrip(".")
    return inner.split(".")[0] if inner else within.split(".")[-1]


def floor(name: str, floors: tuple[set[str], ...]) -> int:
    return next((i for i, rooms in enumerate(floors) if name in rooms), -1)


HOUSES = [
    *((module, "r1quant", FLOORS) for module in modules()),
    *((module, "r1quant.jobs", JOBS) for module in modules() if module.startswith("r1quant.jobs.")),
]


@pytest.mark.parametrize(
    ("module", "within", "floors"), HOUSES, ids=lambda value: value if isinstance(value, str) else ""
)
def test_imports_point_down(module: str, within: str, floors: tuple[set[str], ...]) -> None:
    mine = room(module, within)
    assert floor(mine, floors) >= 0, f"{module} is on no floor of {within}: which is it on?"
    for found in imports(module):
        if found.target.startswith(f"{within}.") and room(found.target, within) != mine:
            other = room(found.target, within)
            assert floor(other, floors) < floor(mine, floors), f"{module} imports {found.target}, which is not below it"


def test_nothing_stays_loose_at_the_top() -> None:
    loose = sorted(path.name for path in ROOT.iterdir() if path.is_file() and path.suffix == ".py")
    assert len(loose) <= 8, loose


def test_the_tests_mirror_the_rooms() -> None:
    """Whatever folder of tests/ is called like no room is one of those that go across the rooms."""
    across = {"crash", "differential", "docs", "foreign", "golden", "laws", "scripts", "smollm2"}
    rooms = {path.name for path in ROOT.iterdir() if path.is_dir()}
    folders = {path.parent.name for path in Path(__file__).parent.glob("*/__init__.py")}
    assert folders <= rooms | across


@pytest.mark.parametrize("module", modules())
def test_third_parties_stay_behind_their_fences(module: str) -> None:
    inside = module.removeprefix("r1quant.")
    for found in imports(module):
        allowed = FENCES.get(found.target)
        if allowed is not None and not found.typing_only:
            within = any(f"{inside}.".startswith(f"{part}.") for part in allowed)
            assert within, f"{module} imports {found.target}, which belongs to {allowed}"


def test_a_method_grid_or_transform_is_one_file_and_a_format_one_file_or_folder_that_knows_no_other() -> None:
    shared = {
        "engine.methods.method",
        "engine.methods.feedback",
        "engine.grids.rounding",
        "engine.grids.uniform_kernels",
        "engine.grids.level_kernels",
        "engine.grids.block_kernels",
        "engine.grids.codebook",
        "engine.grids.codebook_kernels",
        "engine.grids.codebook_scales",
        "engine.grids.levels",
        "engine.grids.parallel",
        "formats.codec",
        "formats.evenly",
        "formats.names",
        "engine.transforms.folds",
        "engine.transforms.orthogonal",
        "engine.transforms.view",
    }

    def unit(module: str) -> str:
        """engine.methods.gptq, engine.grids.uniform, formats.onnx, ..."""
        return ".".join(module.split(".")[1 : 4 if module.startswith("r1quant.engine") else 3])

    tables = {"formats.table"}  # knows all formats of one kind, and no other module of a format knows it
    for package in ("engine.methods", "engine.grids", "engine.transforms", "formats"):
        for module in modules():
            if module.startswith(f"r1quant.{package}.") and unit(module) not in tables:
                inner = {unit(i.target) for i in imports(module) if i.target.startswith(f"r1quant.{package}.")}
                assert inner <= shared | {unit(module)}, f"{module} imports {inner - shared}"


@pytest.mark.parametrize("module", modules())
def test_only_methods_ask_for_a_method_by_name(module: str) -> None:
    """What the others need to know of it stands in registry.METHODS."""
    if not module.startswith("r1quant.engine.methods"):
        for node in ast.walk(tree(module)):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            named = [side for side in sides if isinstance(side, ast.Attribute) and side.attr == "method"]
            assert not (named and any(isinstance(side, ast.Constant) for side in sides)), ast.unparse(node)


def test_no_import_goes_round_in_a_circle() -> None:
    """Imports inside functions count as well; those for type checkers alone do not."""
    graph = {m: {i.target for i in imports(m) if not i.typing_only and i.target in modules()} - {m} for m in modules()}
    graphlib.TopologicalSorter(graph).prepare()


@pytest.mark.parametrize("start", QUICK)
def test_what_must_be_quick_loads_nothing_slow(start: str) -> None:
    waiting: list[tuple[str, tuple[str, ...]]] = [(start, (start,))]
    seen = set()
    while waiting:
        module, path = waiting.pop()
        if module in seen:
            continue
        seen.add(module)
        for found in imports(module):
            if found.loads:
                assert found.target not in SLOW, f"{' -> '.join(path)} loads {found.target}"
                if found.target in modules():
                    waiting.append((found.target, (*path, found.target)))


KINDS = (archs.Architecture, archs.Tensors, archs.Layer, archs.Stage, archs.Gguf)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_key_of_an_architecture_is_read_by_code(kind: type) -> None:
    """As an attribute, somewhere outside the tables that define the keys."""
    tables = {"Tensors", "Layer", "Stage", "Gguf"}
    read = set()
    for module in modules():
        for node in tree(module).body:
            if isinstance(node, ast.ClassDef) and node.name in tables and module == "r1quant.arch.tables":
                continue
            read |= {inner.attr for inner in ast.walk(node) if isinstance(inner, ast.Attribute)}
    unread = {field.name for field in fields(kind)} - read
    assert not unread, f"no code reads {unread}"


FILES = sorted(f.name for f in resources.files("r1quant").joinpath("arch").iterdir() if f.name.endswith(".toml"))


def text_of(name: str) -> str:
    return resources.files("r1quant").joinpath("arch", name).read_text("utf-8")


@pytest.mark.parametrize("name", FILES)
def test_architectures_are_called_like_their_files(name: str) -> None:
    arch = archs.architectures()[name.removesuffix(".toml")]
    assert arch.model_type == name.removesuffix(".toml") and arch == archs.parse(text_of(name), name)


@pytest.mark.parametrize("name", FILES)
def test_unknown_and_missing_keys_are_errors(name: str) -> None:
    lines = text_of(name).splitlines()
    tried = 0
    for i, line in enumerate(lines):
        if "=" not in line or line.startswith("#"):
            continue
        tried += 1
        for changed in ([*lines[:i], *lines[i + 1 :]], [*lines[:i], line, "unknown = 1", *lines[i + 1 :]]):
            with pytest.raises(ValueError, match="the keys must be exactly"):
                archs.parse("\n".join(changed), name)
    assert tried >= 20
    for table in ("tensors", "layer", "gguf"):
        with pytest.raises(ValueError, match="the keys must be exactly"):
            archs.parse("\n".join(lines).replace(f"[{table}]", "[other]"), name)
