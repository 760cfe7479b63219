"""Types of GGUF: which block type each tensor of a model gets, and how many bytes the file then has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from r1quant.arch.tables import Architecture, is_tied, size
from r1quant.checkpoint.artifact import LinearSpec, PartlyQuantized
from r1quant.checkpoint.gguf.source import gguf_names
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.blocktypes import BLOCK_TYPES, BlockGrid
from r1quant.core.grid import Grids
from r1quant.core.json import Config
from r1quant.core.qlinear import QuantizedLinear
from r1quant.errors import CheckpointError
from r1quant.formats.gguf import write
from r1quant.formats.gguf.mixtures import kind_of
from r1quant.formats.gguf.options import FILE_TYPES, GgufOptions
from r1quant.planning.linears import EMBEDDING, HEAD, LinearPlan


def typed(config: Config, arch: Architecture, matrices: Iterable[LinearPlan], mixture: str) -> Grids:
    """The grids of linears and tables in a mixture; None for a matrix whose columns fit no block, which stays float."""
    layers, heads = size(config, "num_hidden_layers"), size(config, "num_attention_heads")
    grouped = heads // size(config, "num_key_value_heads", heads)
    grids: dict[str, BlockGrid | None] = {}
    for matrix in matrices:
        role = role_of(arch, matrix, tied=is_tied(config))
        type = kind_of(mixture, role, matrix.layer, layers, grouped, matrix.shape[1])
        of = BLOCK_TYPES.get(type)
        grids[matrix.name] = None if of is None or matrix.shape[1] % of.block else BlockGrid(type)
    return grids


def role_of(arch: Architecture, matrix: LinearPlan, tied: bool) -> str:
    """What mixtures call a matrix. An embedding that is the head at the same time counts as the head."""
    if matrix.stage in (EMBEDDING, HEAD):
        return HEAD if tied else matrix.stage
    return arch.layer.role(matrix.name.removeprefix(arch.layer_prefix(matrix.layer)))


def file_bytes(checkpoint: Checkpoint, arch: Architecture, specs: Mapping[str, LinearSpec], mixture: str | None) -> int:
    """Bytes of the file, header and padding included. Raises CheckpointError if GGUF has no place for the model."""

    def unmade(name: str) -> QuantizedLinear:
        raise CheckpointError(f"{name} is not quantized yet", "quantize it first")

    options = GgufOptions(name=checkpoint.name, mixture=mixture if mixture in FILE_TYPES else None)
    return write.size(PartlyQuantized(checkpoint, specs, unmade), arch, options)


def stored_types(arch: Architecture, layers: int, grids: Grids) -> dict[str, str]:
    """The type of each matrix on blocks, by its name in GGUF."""
    names = gguf_names(arch, layers)
    return {names[f"{name}.weight"]: grid.type for name, grid in grids.items() if isinstance(grid, BlockGrid)}
