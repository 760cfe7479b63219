"""Makes the checkpoints of other programs that the tests read, with hashes of what their makers dequantize them to.

    cd scripts && python -m conformance.fixtures

The model is random, of one layer, and as small as the makers take it.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from conformance.environments import HERE, interpreter
from conformance.peers import MAKERS, make
from conformance.readers import READERS, Job, ask

ROOT = HERE.parent.parent
OUT = ROOT / "tests" / "foreign" / "data"
KEPT = ("config.json", "quantize_config.json", "model.safetensors")
HASHES = "dequantized.json"
VOCABULARY = 64
CHOSEN = ("gptq-asym", "gptq-act-order", "gptq-w8", "gptq-v2-asym", "awq", "w4a16-asym", "w8a8")  # of peers.MAKERS
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "head_dim": 16,
    "vocab_size": VOCABULARY,
    "pad_token_id": 1,
}


def tokens() -> np.ndarray:
    return np.random.default_rng(0).integers(2, VOCABULARY, (8, 64), np.int64)


def keep(folder: Path, answer: dict[str, Any], reader: str, place: Path) -> None:
    """Copies a checkpoint, and writes down how its maker dequantizes it."""
    place.mkdir(parents=True)
    for name in KEPT:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, place / name)
    for path in place.glob("*config.json"):  # where the maker put its temporary files is nobody's business
        path.write_text(re.sub(r'"/tmp/[^"]*"', '""', path.read_text("utf-8")), "utf-8")
    found = {"reader": reader, "versions": answer["versions"], "weights": answer["weights"]}
    (place / HASHES).write_text(json.dumps(found, indent=1) + "\n", "utf-8")


def main() -> None:
    sys.path.insert(0, str(ROOT))
    from tests.models import write_model

    for old in OUT.glob("*/"):
        shutil.rmtree(old)
    with tempfile.TemporaryDirectory() as work:
        model = write_model(Path(work) / "model", "llama", tied=True, **SIZES)
        for every in MAKERS:
            maker = replace(every, made={name: how for name, how in every.made.items() if name in CHOSEN})
            folders = make(maker, interpreter(maker.environment), model, Path(work), tokens)
            for name, folder in folders.items():
                if (folder / "error.txt").is_file():
                    print(f"{maker.name} cannot make {name}: {(folder / 'error.txt').read_text('utf-8')}", flush=True)
                    continue
                reader = next(reader for reader in READERS if reader.name == maker.readers[name][0])
                np.save(Path(work) / "tokens.npy", tokens()[0])
                job = Job(f"{maker.name}-{name}", folder, Path(work) / "tokens.npy", [], 0)
                answer = ask(reader, interpreter(reader.environment), [job], Path(work))[0].result
                if "error" in answer:
                    print(f"{reader.name} cannot read {name}: {answer['error']}", flush=True)
                    continue
                keep(folder, dict(answer), reader.name, OUT / f"{maker.name}-{name}")
    print(f"{sum(path.stat().st_size for path in OUT.rglob('*') if path.is_file())} bytes in {OUT}")


if __name__ == "__main__":
    main()
