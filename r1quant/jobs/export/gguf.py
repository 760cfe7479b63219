"""Exports an artifact as a GGUF file with an Ollama Modelfile: exact blocks, floats, or llama.cpp's own K-quants.

A K-quant is a requantization: the floats are written to a temporary file first, and llama.cpp rounds them, weighing
errors by how large each input is on calibration text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from r1quant.arch.tables import size
from r1quant.checkpoint.gguf.source import gguf_names
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import windows
from r1quant.formats.gguf import overrides
from r1quant.formats.gguf.modelfile import modelfile
from r1quant.formats.gguf.options import GgufOptions
from r1quant.formats.gguf.write import write
from r1quant.jobs.export.task import ExportTask, TaskOutput, name_of
from r1quant.jobs.quantize.calibration import calibration_run, default_text
from r1quant.planning.targets import GUIDED, MATRICES, NONE
from r1quant.records.export import ExportDetails, GgufTypes, ImportanceFile, Requantization
from r1quant.storage import atomic
from r1quant.storage.cache import cache_folder

if TYPE_CHECKING:
    from r1quant.jobs.export.importance import Importance

FLOATS = {"BF16": "bf16", "F16": "f16"}  # what a K-quant is made from, by the dtype of the model; else f32
BASE_OF_MIX = "Q4_K_M"  # for tensors that a mix does not name
K_QUANT_TABLES = {"f16": "F16", "q8_0": "Q8_0"}  # else llama.cpp chooses


def write_gguf(task: ExportTask, folder: Path, stem: str | None = None) -> TaskOutput:
    """Writes everything but the record."""
    name = stem or name_of(task.artifact)
    write_blocks = _requantized if task.options.k_quant else _exact
    path, written = write_blocks(task, folder, name, stem)
    text = modelfile(task.artifact.side_files, task.artifact.config, path.name)
    atomic.write_bytes(folder / (f"{stem}.Modelfile" if stem else "Modelfile"), text.encode())
    return written


def _exact(task: ExportTask, folder: Path, name: str, stem: str | None) -> tuple[Path, TaskOutput]:
    task.progress.begin("writing gguf", sum(spec.nbytes for spec in task.artifact.tensors.values()))
    options = replace(task.options.gguf, name=name)
    done = write(task.artifact, task.arch, folder / f"{name}.gguf", options, task.progress.advance)
    for note in done.notes:
        task.progress.note(note)
    label = max(done.types, key=lambda kind: (kind != "f32", done.types[kind])).upper()
    paths = done.paths
    if stem is None:  # the type of most tensors is part of the name, as is usual for GGUF files
        paths = tuple(path.rename(path.with_name(path.name.replace(name, f"{name}-{label}", 1))) for path in paths)
    return paths[0], TaskOutput(dict(done.rounded), ExportDetails(GgufTypes(label, dict(done.types))))


def _requantized(task: ExportTask, folder: Path, name: str, stem: str | None) -> tuple[Path, TaskOutput]:
    from r1quant.formats.gguf.kquants import requantize

    kind = task.options.k_quant
    assert kind is not None
    mix = task.options.mix
    types = {} if mix is None else overrides.read(mix, _names(task))
    means, origin = _importance(task, folder, name)
    floats = folder / "floats.gguf"
    dtype = "f32" if task.linear_specs else FLOATS.get(task.artifact.tensors[task.arch.tensors.embedding].dtype, "f32")
    task.progress.begin("writing floats", sum(spec.nbytes for spec in task.artifact.tensors.values()))
    write(task.artifact, task.arch, floats, GgufOptions(dtype, name=name, pre=task.options.pre), task.progress.advance)
    path = folder / f"{stem or f'{name}-{kind}'}.gguf"
    embedding, head = (K_QUANT_TABLES.get(table or "") for table in (task.options.embedding, task.options.head))
    task.progress.begin(f"requantizing to {kind}", len(task.artifact.tensors))
    done = requantize(
        floats,
        path,
        BASE_OF_MIX if types else kind,
        means,
        embedding,
        head,
        step=lambda tensor: task.progress.advance(1, tensor),
        types=types,
    )
    floats.unlink()
    names = {stored: name for name, stored in _names(task).items()}
    rounded = {
        names[stored]: f"requantized to {type} by llama.cpp"
        for stored, type in done.tensors.items()
        if type not in ("F32", "F16", "BF16") and stored in names
    }
    requantization = Requantization(True, dict(done.fallbacks), origin)
    return path, TaskOutput(rounded, ExportDetails(GgufTypes(kind, done.types), requantization))


def _importance(
    task: ExportTask, folder: Path, name: str
) -> tuple[Mapping[str, npt.NDArray[np.float32]] | None, ImportanceFile | None]:
    """The mean of x**2 of every input, by the GGUF name of the weight, and where it is from."""
    from r1quant.formats.gguf import imatrix

    options = task.options
    if options.imatrix == NONE:
        return None, None
    if options.imatrix not in MATRICES:
        return imatrix.read(Path(options.imatrix)).means(), ImportanceFile(Path(options.imatrix).name)
    artifact = task.artifact
    tokenizer = Tokenizer.from_files(artifact.side_files, artifact.source)
    spec, vocabulary = options.calib or default_text(artifact), size(artifact.config, "vocab_size")
    text = windows.load(spec, tokenizer, options.samples, options.seq_len, options.seed, vocabulary)
    found = _measured(task, text)
    names = _names(task)
    sums = {names[f"{linear}.weight"]: sums for linear, sums in found.sums.items()}
    path = folder / f"{name}.imatrix.gguf"
    imatrix.write(path, sums, dict.fromkeys(sums, found.tokens), [text.source], *text.tokens.shape)
    origin = ImportanceFile(path.name, options.imatrix, text.source, text.sha256, len(text.tokens), options.seq_len)
    return imatrix.read(path).means(), origin


def _measured(task: ExportTask, text: windows.Calibration) -> Importance:
    from r1quant.engine.forward import Decoder, pick_device, pick_dtype
    from r1quant.jobs.export.importance import importance
    from r1quant.jobs.quantize.sensitivity import measured

    device, seq_len = pick_device("auto"), text.tokens.shape[1]
    decoder = Decoder(task.artifact, task.arch, device, pick_dtype("auto", device), seq_len)
    guidance = None
    if task.options.imatrix == GUIDED:
        calibration = calibration_run(task.artifact, text, "auto", "auto", task.progress)
        guidance = measured(decoder, calibration, cache_folder(), task.progress)
    return importance(decoder, text.tokens, guidance, task.progress)


def _names(task: ExportTask) -> dict[str, str]:
    """GGUF's name of every tensor."""
    return gguf_names(task.arch, size(task.artifact.config, "num_hidden_layers"))
