"""Which tensors a GGUF file will have, in which types: decided before anything is written.

A type is taken from the options and from the LinearSpec of a quantized linear. Nothing is read but what artifact and
configuration say at once. It does not know how tensors are turned into bytes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from r1quant.arch.tables import Architecture, is_tied
from r1quant.checkpoint.artifact import Artifact, quantized
from r1quant.checkpoint.gguf.source import gguf_names, heads_of
from r1quant.checkpoint.tensorfile import TensorSpec
from r1quant.core import blocktypes
from r1quant.core.floats import FLOAT_DTYPES
from r1quant.errors import CheckpointError, RecipeError
from r1quant.formats.gguf.container import Entry
from r1quant.formats.gguf.options import BLOCK, BLOCK_TYPES, FILE_TYPES, FLOAT_TYPES, GgufOptions, problem, smallest
from r1quant.formats.gguf.read import GgufArtifact

# The number of each type, as ggml has it.
KINDS = {"f32": 0, "f16": 1, "bf16": 30, **{name.lower(): of.number for name, of in blocktypes.BLOCK_TYPES.items()}}
ITEM_BYTES = {"f32": 4, "f16": 2, "bf16": 2}


@dataclass(frozen=True)
class Target:
    """One tensor of the file to be.

    name    in the checkpoint; entry has that of the file
    linear  the quantized linear it is written from, None for a float tensor
    stored  the dtype in the checkpoint
    type    a key of KINDS
    heads   how many heads its rows are reordered in, None if they keep their order
    offset  what is added to it: if a norm multiplies by its weight and one, the file has their sum
    """

    name: str
    entry: Entry
    linear: str | None
    stored: str
    type: str
    heads: int | None
    offset: int = 0


def plan(artifact: Artifact, arch: Architecture, options: GgufOptions) -> list[Target]:
    """Every tensor in the order of the file: embedding, layers, final norm, head.

    Raises RecipeError naming a linear that cannot be held exactly, and CheckpointError if tensors are missing,
    superfluous, of the wrong shape or of a dtype that is not a float.
    """
    shapes = arch.shapes(artifact.config)
    names = gguf_names(arch, artifact.config["num_hidden_layers"])
    tied = is_tied(artifact.config)
    superfluous = {name for name in artifact.tensors if not name.endswith(arch.tensors.ignored)}
    heads = heads_of(arch, artifact.config, shapes) if arch.gguf.interleaved_rope else {}
    (attention_out,) = arch.layer.stage("attention_out").linears
    targets = []
    for name in _order(arch, list(shapes)):
        spec = artifact.tensors.get(name)
        superfluous.discard(name)
        if name == arch.tensors.head and tied:
            continue
        if spec is None and name.endswith(".bias"):
            continue
        if spec is None:
            raise CheckpointError(f"{artifact.source}: tensor {name} is missing", "download the model again")
        if spec.shape != shapes[name]:
            raise CheckpointError(
                f"{name} has the shape {list(spec.shape)}, config.json implies {list(shapes[name])}",
                "restore the model's own config.json",
            )
        if name.endswith(f"{attention_out}.bias") and arch.gguf.architecture != "llama":
            raise CheckpointError(
                f"{name}: llama.cpp has no bias there in {arch.model_class}", "run this model from safetensors"
            )
        targets.append(_target(artifact, arch, spec, names[name], options, heads.get(name)))
    if superfluous:
        raise CheckpointError(
            f"{artifact.source}: the tensor {min(superfluous)} has no place in {arch.model_class}",
            "use the original checkpoint",
        )
    return targets


def _order(arch: Architecture, names: list[str]) -> list[str]:
    last = [arch.tensors.final_norm, arch.tensors.head]
    return [name for name in names if name not in last] + last


def _target(
    artifact: Artifact, arch: Architecture, spec: TensorSpec, stored_name: str, options: GgufOptions, heads: int | None
) -> Target:
    linear = quantized(artifact, spec.name)
    if linear is None and spec.dtype not in FLOAT_DTYPES:
        raise CheckpointError(f"{spec.name}: dtype {spec.dtype} cannot be written", "use a BF16, F16 or F32 checkpoint")
    chosen = "f32" if len(spec.shape) == 1 else _type(artifact, arch, spec, linear, options)
    entry = Entry(stored_name, spec.shape, KINDS[chosen], _nbytes(spec.shape, chosen))
    return Target(spec.name, entry, linear, spec.dtype, chosen, heads, arch.offset_of(spec.name))


def _type(artifact: Artifact, arch: Architecture, spec: TensorSpec, linear: str | None, options: GgufOptions) -> str:
    """The type of a matrix."""
    kind = options.type
    if spec.name in (arch.tensors.embedding, arch.tensors.head):
        kind = options.embedding if spec.name == arch.tensors.embedding else options.head
        if kind == "auto" and options.type in FLOAT_TYPES:
            kind = options.type
        kind = "auto" if kind == "exact" else kind
    if linear is not None:
        linear_spec = artifact.linear_specs[linear]
        reason = problem(linear_spec, kind)
        if reason:
            what, _, remedy = reason.partition(": ")
            raise RecipeError(f"{linear} cannot be written to GGUF exactly: {what}", remedy)
        return kind if kind != "auto" else smallest(linear_spec) or "f32"
    held = artifact.table_type(spec.name) if isinstance(artifact, GgufArtifact) else None
    if held is not None and kind in ("auto", held.lower()):
        return held.lower()
    if kind in BLOCK_TYPES and spec.shape[1] % BLOCK:
        raise RecipeError(
            f"{spec.name}: its {spec.shape[1]} columns are not a multiple of 32, the block of {kind.upper()}",
            "choose f16, bf16 or f32",
        )
    return spec.dtype.lower() if kind == "auto" else kind


def _nbytes(shape: tuple[int, ...], kind: str) -> int:
    of = blocktypes.BLOCK_TYPES.get(kind.upper())
    if of is not None:
        return math.prod(shape[:-1]) * of.row_bytes(shape[-1])
    return math.prod(shape) * ITEM_BYTES[kind]


def file_type(targets: Sequence[Target], mixture: str | None) -> int:
    """general.file_type: that of the mixture, if it is known, else of the type that most numbers of the matrices
    inside layers have. It is for people; programs read the types of the tensors.

    If llama.cpp has several mixtures of a type, it is S for nothing but the type, and M for any other.
    """
    if mixture is not None:
        return FILE_TYPES[mixture]
    sizes: dict[str, int] = {}
    for target in targets:
        if len(target.entry.shape) == 2 and target.entry.name.startswith("blk."):
            sizes[target.type] = sizes.get(target.type, 0) + target.entry.shape[0] * target.entry.shape[1]
    main = max(sizes, key=lambda kind: sizes[kind]).upper()
    return FILE_TYPES[main if main in FILE_TYPES else f"{main}_S" if len(sizes) == 1 else f"{main}_M"]


def parts(targets: Sequence[Target], limit: int | None) -> list[list[Target]]:
    """The targets in order, as many a file as fit into `limit` bytes, at least one."""
    files: list[list[Target]] = [[]]
    filled = 0
    for target in targets:
        if limit is not None and files[-1] and filled + target.entry.padded > limit:
            files.append([])
            filled = 0
        files[-1].append(target)
        filled += target.entry.padded
    return files
