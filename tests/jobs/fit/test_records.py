"""Records of bench beside predictions: matched by model, format and machine, and the roofline fitted to them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from r1quant.errors import CheckpointError
from r1quant.hardware import detect, roofline
from r1quant.hardware.cards import card
from r1quant.hardware.inventory import of_config
from r1quant.hardware.roofline import Efficiency
from r1quant.jobs.fit.options import FitOptions
from r1quant.jobs.fit.run import fit
from r1quant.planning.variants import variants, weigh
from tests.configs import R1_QWEN3_8B
from tests.conftest import Run
from tests.jobs.fit.test_fit import written

TRUE = Efficiency(bandwidth_share=0.5, compute_share=0.3, layer_seconds=30e-6, runtime_bytes=900_000_000)
OTHER = {"weights_bytes": 1, "layers": 4, "layer_weights": 1, "head_weights": 1}
MODEL = of_config(R1_QWEN3_8B)
BYTES = {v.label: weigh(v, MODEL).total for v in variants() if v.label in ("fp16", "gguf-q4_k_m", "gguf-q8_0")}


def side(label: str, prompt: int, new: int, batch: int, on: str | None = "NVIDIA GeForce RTX 4090") -> dict[str, Any]:
    """What bench would have written, had the runtime done exactly what the roofline says."""
    unread = 151936 * 4096 * 2 / 16_381_470_720
    of = roofline.sized(MODEL, BYTES[label], round(BYTES[label] * (1 - unread)))
    made = roofline.model(of, card("RTX 4090"), prompt, new, batch, efficiency=TRUE)

    def spread(value: float) -> dict[str, float]:
        return {"median": value, "min": value, "max": value}

    return {
        "ttft_seconds": spread(made.ttft_seconds),
        "prefill_tokens_per_second": spread(made.prefill_tokens_per_second),
        "decode_tokens_per_second": spread(made.decode_tokens_per_second),
        "peak_memory_bytes": made.total_bytes,
        "memory": "nvml",
        "backend": "llama.cpp",
        "dtype": None,
        "card": on and {"name": on, "memory_bytes": 24 << 30},
    }


def record(label: str = "gguf-q4_k_m", **changed: Any) -> dict[str, Any]:
    stated = {"layers": 36, "layer_weights": 36 * 192_937_984, "head_weights": 151936 * 4096}
    rows = [
        {"prompt_tokens": p, "new_tokens": n, "batch": b, "quantized": side(label, p, n, b), "baseline": None}
        for p, n, b in ((512, 64, 1), (2048, 64, 1), (2048, 64, 8))
    ]
    sizes = {"quantized": {"weights_bytes": BYTES[label], **stated}}
    made = {"schema": "r1quant.bench/1", "format": "gguf", "rows": rows, "sizes": sizes, "machine": {}}
    return made | changed


@pytest.fixture
def r1(tmp_path: Path) -> Path:
    return written(tmp_path / "r1", R1_QWEN3_8B)


def saved(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(json.dumps(content), "utf-8")
    return path


def test_measured_stands_beside_predicted_and_the_shares_are_found_again(r1: Path, tmp_path: Path, run: Run) -> None:
    saved(tmp_path / "a.json", record("gguf-q4_k_m"))
    saved(tmp_path / "b.json", record("gguf-q8_0"))
    saved(tmp_path / "other.json", {"schema": "something else"})
    found = run("fit", r1, "--records", tmp_path, "--json").json
    (fitted,) = found["fitted"]
    assert (fitted["machine"], fitted["backend"], fitted["points"]) == ("RTX 4090", "llama.cpp", 6)
    assert fitted["bandwidth_share"] == pytest.approx(0.5, rel=0.01)
    assert fitted["layer_seconds"] == pytest.approx(30e-6, rel=0.2)
    assert fitted["compute_share"] == pytest.approx(0.3, rel=0.01)
    assert fitted["runtime_bytes"] == pytest.approx(9e8, rel=0.01)
    assert fitted["error"] < 0.01 < 0.2 < fitted["usual_error"]
    measured = {row["format"]: row["measured"] for row in found["rows"] if row["measured"]}
    assert {label: len(ones) for label, ones in measured.items()} == {"gguf-q4_k_m": 3, "gguf-q8_0": 3}
    for one in (one for ones in measured.values() for one in ones):
        assert abs(one["decode_error"]) < 0.01 and abs(one["prefill_error"]) < 0.02
        error = one["predicted_decode_tokens_per_second"] / one["decode_tokens_per_second"] - 1
        assert one["decode_error"] == pytest.approx(error)
    rows = {row["format"]: row for row in found["rows"] if row["gpu"] == "RTX 4090"}
    assert rows["gguf-q4_k_m"]["overhead_bytes"] == fitted["runtime_bytes"]
    assert rows["gptq-w4-g128"]["overhead_bytes"] == 700_000_000  # of another runtime nothing was measured
    shown = run("fit", r1, "--records", tmp_path)
    assert "Measured, and predicted for the same load" in shown.out and "fitted to 6 measurements" in shown.err


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"sizes": {}}, "how large the model is"),
        ({"sizes": {"quantized": OTHER}}, "another model"),
        ({"rows": []}, "no speed was measured"),
        ({"rows": [{"prompt_tokens": 8, "new_tokens": 8, "batch": 1, "baseline": None,
                    "quantized": side("gguf-q8_0", 8, 8, 1, "NVIDIA TITAN V")}]}, "hardware"),
        ({"rows": [{"prompt_tokens": 8, "new_tokens": 8, "batch": 1, "baseline": None,
                    "quantized": side("gguf-q8_0", 8, 8, 1, None)}],
          "machine": {"processor": "Z80", "cores": 1, "memory_bytes": 65536}}, "hardware"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_left_out_and_so_said(r1: Path, tmp_path: Path, changed: dict[str, Any], why: str) -> None:
    found = fit(r1, FitOptions(("RTX 4090",), records=(saved(tmp_path / "a.json", record(**changed)),)))
    assert found.records and not found.records.fitted and not any(row.measured for row in found.rows)
    assert len(found.notes) == 1 and found.notes[0].startswith("a.json is left out: ") and why in found.notes[0]


def test_this_machines_processor_is_known_again(r1: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(detect, "READ_BYTES", 1 << 22)
    rows = [{"prompt_tokens": 8, "new_tokens": 8, "batch": 1, "baseline": None,
             "quantized": side("gguf-q8_0", 8, 8, 1, None)}]  # fmt: skip
    path = saved(tmp_path / "a.json", record("gguf-q8_0", rows=rows, machine=vars(detect.host())))
    found = fit(r1, FitOptions(records=(path,)))
    assert {row.card.name for row in found.rows if row.measured} == {detect.host().name}


def test_a_named_file_must_be_a_record(r1: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no record of bench"):
        fit(r1, FitOptions(records=(saved(tmp_path / "a.json", {"schema": "r1quant.verify/1"}),)))
