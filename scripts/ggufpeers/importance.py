"""Writes the importance matrix that r1quant measures, as a file that llama-quantize takes.

    python importance.py MODEL TEXT OUT --samples 64 --seq-len 512 [--guided]

Plain: every token counts alike; guided: by its gradient.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from r1quant.arch.tables import architecture_of, size
from r1quant.checkpoint.gguf.source import gguf_names
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import windows
from r1quant.engine.forward import Decoder, pick_device, pick_dtype
from r1quant.formats.gguf import imatrix
from r1quant.jobs.artifacts import open_artifact
from r1quant.jobs.export.importance import importance
from r1quant.jobs.quantize.calibration import calibration_run
from r1quant.jobs.quantize.sensitivity import measured
from r1quant.progress import Silent
from r1quant.storage.cache import cache_folder


def main(model: str, text: str, out: Path, samples: int, seq_len: int, guided: bool) -> None:
    artifact = open_artifact(model)
    arch, device = architecture_of(artifact.config), pick_device("cpu")
    tokenizer = Tokenizer.from_files(artifact.side_files, artifact.source)
    taken = windows.load(text, tokenizer, samples, seq_len, 0)
    decoder = Decoder(artifact, arch, device, pick_dtype("auto", device), seq_len)
    guidance = None
    if guided:
        calibration = calibration_run(artifact, taken, "cpu", "auto", Silent())
        guidance = measured(decoder, calibration, cache_folder(), Silent())
    found = importance(decoder, taken.tokens, guidance)
    names = gguf_names(arch, size(artifact.config, "num_hidden_layers"))
    sums = {names[f"{linear}.weight"]: values for linear, values in found.sums.items()}
    imatrix.write(out, sums, dict.fromkeys(sums, found.tokens), [taken.source], *taken.tokens.shape)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for name in ("model", "text"):
        parser.add_argument(name)
    parser.add_argument("out", type=Path)
    for name in ("--samples", "--seq-len"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--guided", action="store_true")
    given = parser.parse_args()
    main(given.model, given.text, given.out, given.samples, given.seq_len, given.guided)
