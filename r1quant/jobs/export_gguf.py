"""Exports an artifact as a GGUF file with an Ollama Modelfile: exact blocks, floats, or llama.cpp's own K-quants.

A K-quant is a requantization: the floats are written to a temporary file first, and llama.cpp rounds them, weighing
errors by how large each input is on calibration text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from r1quant import atomic, calibration
from r1quant.archs import size
from r1quant.cache import cache_folder
from r1quant.formats.gguf.modelfile import modelfile
from r1quant.formats.gguf.options import GgufOptions
from r1quant.formats.gguf.write import write
from r1quant.gguf_source import gguf_names
from r1quant.jobs.export import Job, name_of
from r1quant.jobs.quantize import default_text
from r1quant.targets import GUIDED, MATRICES, NONE
from r1quant.tokenizer import Tokenizer

if TYPE_CHECKING:
    from r1quant.jobs.importance import Importance

FLOATS = {"BF16": "bf16", "F16": "f16"}  # what a K-quant is made from, by the dtype of the model; else f32
K_QUANT_TABLES = {"f16": "F16", "q8_0": "Q8_0"}  # else llama.cpp chooses


def write_gguf(job: Job, folder: Path, stem: str | None = None) -> tuple[dict[str, str], dict[str, Any]]:
    """Writes everything but the record. Returns the tensors that were rounded, with the reason, and what to record."""
    name = stem or name_of(job.artifact)
    make = _requantized if job.options.k_quant else _exact
    path, rounded, details = make(job, folder, name, stem)
    text = modelfile(job.artifact.carried, job.artifact.config, path.name)
    atomic.write_bytes(folder / (f"{stem}.Modelfile" if stem else "Modelfile"), text.encode())
    return rounded, details


def _exact(job: Job, folder: Path, name: str, stem: str | None) -> tuple[Path, dict[str, str], dict[str, Any]]:
    job.progress.begin("writing gguf", sum(spec.nbytes for spec in job.artifact.tensors.values()))
    options = replace(job.options.gguf, name=name)
    done = write(job.artifact, job.arch, folder / f"{name}.gguf", options, job.progress.advance)
    for note in done.notes:
        job.progress.note(note)
    label = max(done.types, key=lambda kind: (kind != "f32", done.types[kind])).upper()
    paths = done.paths
    if stem is None:  # the type of most tensors is part of the name, as is usual for GGUF files
        paths = tuple(path.rename(path.with_name(path.name.replace(name, f"{name}-{label}", 1))) for path in paths)
    return paths[0], dict(done.rounded), {"type": label, "types": dict(done.types)}


def _requantized(job: Job, folder: Path, name: str, stem: str | None) -> tuple[Path, dict[str, str], dict[str, Any]]:
    from r1quant.formats.gguf.kquants import requantize

    kind = job.options.k_quant
    assert kind is not None
    means, origin = _importance(job, folder, name)
    floats = folder / "floats.gguf"
    dtype = "f32" if job.forms else FLOATS.get(job.artifact.tensors[job.arch.tensors.embedding].dtype, "f32")
    job.progress.begin("writing floats", sum(spec.nbytes for spec in job.artifact.tensors.values()))
    write(job.artifact, job.arch, floats, GgufOptions(dtype, name=name, pre=job.options.pre), job.progress.advance)
    path = folder / f"{stem or f'{name}-{kind}'}.gguf"
    embedding, head = (K_QUANT_TABLES.get(table or "") for table in (job.options.embedding, job.options.head))
    job.progress.begin(f"requantizing to {kind}", len(job.artifact.tensors))
    done = requantize(floats, path, kind, means, embedding, head, step=lambda tensor: job.progress.advance(1, tensor))
    floats.unlink()
    names = {stored: name for name, stored in _names(job).items()}
    rounded = {
        names[stored]: f"requantized to {type} by llama.cpp"
        for stored, type in done.tensors.items()
        if type not in ("F32", "F16", "BF16") and stored in names
    }
    details = {"type": kind, "types": done.types, "fallbacks": dict(done.fallbacks), "imatrix": origin}
    return path, rounded, {"requantized": True, **details}


def _importance(
    job: Job, folder: Path, name: str
) -> tuple[Mapping[str, npt.NDArray[np.float32]] | None, dict[str, Any] | None]:
    """The mean of x**2 of every input, by the GGUF name of the weight, and where it is from."""
    from r1quant.formats.gguf import imatrix

    options = job.options
    if options.imatrix == NONE:
        return None, None
    if options.imatrix not in MATRICES:
        return imatrix.read(Path(options.imatrix)).means(), {"file": Path(options.imatrix).name}
    artifact = job.artifact
    tokenizer = Tokenizer.from_files(artifact.carried, artifact.source)
    spec, vocabulary = options.calib or default_text(artifact), size(artifact.config, "vocab_size")
    text = calibration.load(spec, tokenizer, options.samples, options.seq_len, options.seed, vocabulary)
    found = _measured(job, text)
    names = _names(job)
    sums = {names[f"{linear}.weight"]: sums for linear, sums in found.sums.items()}
    path = folder / f"{name}.imatrix.gguf"
    imatrix.write(path, sums, dict.fromkeys(sums, found.tokens), [text.source], *text.tokens.shape)
    origin = {"file": path.name, "tokens": options.imatrix, "source": text.source, "sha256": text.sha256}
    return imatrix.read(path).means(), {**origin, "samples": len(text.tokens), "seq_len": options.seq_len}


def _measured(job: Job, text: calibration.Calibration) -> Importance:
    from r1quant.forward import DTYPES, Decoder, pick_device
    from r1quant.jobs.importance import importance
    from r1quant.jobs.seen import deciding, precision
    from r1quant.jobs.sensitivity import measured

    where = precision("auto", "auto")
    decoder = Decoder(
        job.artifact, job.arch, pick_device(where["device"]), DTYPES[where["dtype"]], text.tokens.shape[1]
    )
    guidance = None
    if job.options.imatrix == GUIDED:
        seen = deciding(job.artifact, text, where, job.progress)
        guidance = measured(decoder, text.tokens, cache_folder(), seen, job.progress)
    return importance(decoder, text.tokens, guidance, job.progress)


def _names(job: Job) -> dict[str, str]:
    """GGUF's name of every tensor."""
    return gguf_names(job.arch, size(job.artifact.config, "num_hidden_layers"))
