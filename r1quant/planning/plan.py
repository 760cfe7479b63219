"""Plan: what a quantization will do, as one object that can be shown and then run.

Everything in it follows from headers. It does not know how it is made (planner.py), nor how it is carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from r1quant.arch.tables import Architecture
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.blocktypes import BlockGrid
from r1quant.core.grid import Grids
from r1quant.core.json import JsonObject
from r1quant.formats.codec import Encoder
from r1quant.formats.gguf.overrides import arguments
from r1quant.formats.table import ENCODERS
from r1quant.planning import preflight
from r1quant.planning.budget import Allocation, Budget
from r1quant.planning.estimates import Estimate
from r1quant.planning.layout import Layout, OneFile
from r1quant.planning.linears import LinearPlan, PlanProblem, forms_of
from r1quant.planning.types import stored_types
from r1quant.recipe import Recipe


@dataclass(frozen=True)
class Plan:
    """What is quantized, how, and where the result goes.

    out         the folder that the result becomes, absolute
    linears     all of the layers that may be quantized
    tables      embedding and head, which are quantized if `grids` has them
    grids       what each of them becomes; None if it stays in float
    problems    what stops the run; a plan without problems can be run
    warnings    what the user should know, and what stops nothing
    devices     over how many the result is split when it is served (tensor parallelism)
    budget      what the bits are chosen within; allocation: what was chosen
    complete    whether `out` holds a finished result already, which the run only compares with this plan
    """

    checkpoint: Checkpoint
    arch: Architecture
    recipe: Recipe
    out: Path
    layers: int
    linears: tuple[LinearPlan, ...]
    tables: tuple[LinearPlan, ...]
    grids: Grids
    layout: Layout | OneFile
    problems: tuple[PlanProblem, ...]
    warnings: tuple[str, ...]
    estimate: Estimate
    devices: int = 1
    budget: Budget | None = None
    allocation: Allocation | None = None
    complete: bool = False

    @property
    def decided(self) -> bool:
        """Whether the grids are final: without a budget they are; with one, once losses have been predicted."""
        return self.budget is None or (self.allocation is not None and self.allocation.source is not None)

    @property
    def quantized_parameters(self) -> int:
        return sum(matrix.weights for matrix in self.matrices if self.grids[matrix.name] is not None)

    @property
    def matrices(self) -> tuple[LinearPlan, ...]:
        """All linears, and those of the tables that are quantized."""
        return *self.linears, *self.rounded_tables

    @property
    def bits_per_weight(self) -> float:
        """Stored bits of all linears and quantized tables, with scales, zero points and group maps, per weight."""
        return 8 * sum(map(self.stored, self.matrices)) / max(1, sum(matrix.weights for matrix in self.matrices))

    @property
    def codec(self) -> Encoder:
        return ENCODERS[self.recipe.format]

    @property
    def linear_specs(self) -> dict[str, LinearSpec]:
        """What each quantized linear will be, by name."""
        return forms_of((*self.linears, *self.tables), self.grids)

    @property
    def rounded_tables(self) -> tuple[LinearPlan, ...]:
        """Those of the tables that are quantized."""
        return tuple(table for table in self.tables if self.grids.get(table.name) is not None)

    @property
    def steps(self) -> int:
        """How many layer files a run writes: the tables that are quantized have one after those of the layers."""
        return self.layers + bool(self.rounded_tables)

    @property
    def plain(self) -> tuple[str, ...]:
        """The linears that stay in float, the head among them."""
        floats = [linear.name for linear in self.linears if self.grids[linear.name] is None]
        head = self.arch.tensors.head.removesuffix(".weight")
        return tuple(floats) if self.grids.get(head) is not None else (*floats, head)

    def stored(self, linear: LinearPlan) -> int:
        """The bytes that a linear will take."""
        return linear.stored(self.grids[linear.name], self.codec)

    @property
    def arguments(self) -> tuple[str, ...]:
        """What has llama-quantize give the types that a budget chose; nothing if it chose none."""
        chosen = self.allocation.grids if self.allocation is not None and self.decided else {}
        return arguments(stored_types(self.arch, self.layers, chosen))

    @property
    def runtimes(self) -> list[preflight.Verdict]:
        """Which runtimes will load what this quantization can be exported to."""
        return preflight.runtimes(self.arch, self.checkpoint.config, self.linear_specs, self.devices)

    def require(self) -> None:
        """Raises the problems as one error."""
        if not self.problems:
            return
        first = self.problems[0]
        more = f" (and {len(self.problems) - 1} more; see r1quant plan)" if len(self.problems) > 1 else ""
        raise first.kind(first.message + more, first.hint)

    def _entry(self, linear: LinearPlan) -> JsonObject:
        grid, stored = self.grids[linear.name], self.stored(linear)
        return {
            "name": linear.name,
            "shape": list(linear.shape),
            **({"type": grid.type} if isinstance(grid, BlockGrid) else {}),
            "bits": (8 * stored // linear.weights if grid is None else grid.bits) if self.decided else None,
            "group_size": None if grid is None else grid.group_size,
            "bytes": stored if self.decided else None,
        }

    def _allocation(self) -> JsonObject | None:
        if self.allocation is None or not self.decided:
            return None
        return {**self.allocation.as_dict(), **({"arguments": list(self.arguments)} if self.arguments else {})}

    def as_dict(self) -> JsonObject:
        return {
            "model": self.checkpoint.name,
            "out": str(self.out),
            "complete": self.complete,
            "architecture": self.arch.model_type,
            "recipe": self.recipe.as_dict(),
            "budget": None if self.budget is None else self.budget.as_dict(),
            "allocation": self._allocation(),
            "linears": [self._entry(linear) for linear in self.matrices],
            "bits_per_weight": self.bits_per_weight,
            "quantizable_parameters": sum(linear.weights for linear in self.linears),
            "output_bytes": self.estimate.output_bytes,
            "run_directory_bytes": self.estimate.run_bytes,
            "cache_bytes": self.estimate.cache_bytes,
            "cache_bytes_kept": self.estimate.kept_bytes,
            "predicted_peak_rss_bytes": self.estimate.peak_rss_bytes,
            "predicted_seconds": self.estimate.seconds,
            "formats": preflight.formats(self.arch, self.linear_specs),
            "runtimes": [verdict.as_dict() for verdict in self.runtimes],
            "devices": self.devices,
            "problems": [{"message": p.message, "hint": p.hint} for p in self.problems],
            "warnings": list(self.warnings),
        }
