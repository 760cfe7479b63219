"""One artifact into one format: what is asked for, and whether it can be done. It writes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from r1quant.arch.tables import Architecture, is_tied, linears
from r1quant.checkpoint.artifact import Artifact, LinearSpec
from r1quant.errors import RecipeError, ResumeError
from r1quant.formats.codec import table_problem
from r1quant.formats.table import CODECS
from r1quant.planning.targets import ExportOptions, family_problem, fitting, problem
from r1quant.progress import Progress
from r1quant.records.export import ExportDetails


@dataclass(frozen=True)
class ExportTask:
    """One artifact into one format, at one place."""

    artifact: Artifact
    arch: Architecture
    format: str
    place: Path
    options: ExportOptions
    progress: Progress

    @property
    def linear_specs(self) -> dict[str, LinearSpec]:
        """The quantized matrices that stay integers: linears, the head, and the embedding if the format holds it.

        An embedding is else taken as floats, as is one from GGUF, where every file has it quantized: not every runtime
        loads it so from the other formats.
        """
        known = frozenset(linears(self.artifact.config, self.arch))
        embedding = self.arch.tensors.embedding.removesuffix(".weight")
        specs = self.artifact.linear_specs
        kept = embedding in specs and self.artifact.format != "gguf"
        if kept and table_problem(self.format, "embedding", is_tied(self.artifact.config)) is None:
            kept = problem(self.format, specs[embedding], self.options) is None
            known |= {embedding} if kept else set()
        return {name: form for name, form in specs.items() if name in known}

    def require(self) -> None:
        """Raises what would stop the run, before anything is written."""
        place, source = self.place, self.artifact.source
        if place.exists() and not (place.is_dir() and not any(place.iterdir())):
            raise ResumeError(f"{place} exists already", "choose another --out, or delete it first")
        if not place.parent.is_dir() and not place.parent.parent.is_dir():
            raise RecipeError(f"the folder {place.parent} does not exist", "create it, or choose another --out")
        if reason := family_problem(self.format, self.arch):
            raise RecipeError(f"{source}: {reason}", "choose another format")
        if self.format in CODECS and not self.linear_specs:
            hint = f"quantize it first: r1quant quantize {source} --format {self.format}"
            raise RecipeError(f"{source} holds floats, and {self.format} holds quantized weights", hint)
        head = self.arch.tensors.head.removesuffix(".weight")
        for name, form in self.linear_specs.items():
            reason = problem(self.format, form, self.options)
            if reason is None and name == head and self.format in CODECS:
                reason = table_problem(self.format, "head", is_tied(self.artifact.config))
            if reason:
                others = fitting(self.linear_specs.values(), self.options)
                hint = f"export it --to {', '.join(others)}" if others else "quantize with other options"
                raise RecipeError(f"{self.format} cannot hold {name}: {reason}", hint)


@dataclass(frozen=True)
class TaskOutput:
    """What one task has written. inexact: tensors that were rounded, with the reason; details: what to record."""

    inexact: Mapping[str, str]
    details: ExportDetails = field(default_factory=ExportDetails)


def name_of(artifact: Artifact) -> str:
    """A short name for files, without the format that the artifact has now."""
    path = Path(artifact.source.rstrip("/"))
    name = (path.resolve().name if path.name in ("", ".", "..") else path.name).removesuffix(".gguf")
    return name.replace(f"-{artifact.format}-", "-").removesuffix(f"-{artifact.format}")
