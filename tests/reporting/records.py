"""Records as the commands write them, made by hand: of a model of two layers, at so many bits."""

from __future__ import annotations

from typing import Any

from r1quant.recipe import Recipe
from r1quant.records.record import Record
from r1quant.records.table import read_record
from tests.models import config

KINDS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
         "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")  # fmt: skip


def quantization(bits: int = 4, guided: bool = True) -> dict[str, Any]:
    linears = [
        {
            "name": f"model.layers.{layer}.{kind}",
            "loss": 0.1,
            "relative_loss": 10.0**-bits * (1 + layer + number),
            "predicted_kl": 10.0**-bits / 14 if guided else None,
        }
        for layer in range(2)
        for number, kind in enumerate(KINDS)
    ]
    return {
        "schema": "r1quant.quantization/1",
        "model": "tiny",
        "source": "../tiny",
        "architecture": "llama",
        "weights": {"model.safetensors": "aa" * 32},
        "recipe": Recipe(bits=bits, group_size=32, guided=guided).as_dict(),
        "allocation": None,
        "calibration": {"source": "a text", "sha256": "bb" * 32},
        "environment": {"r1quant": "0.1.0", "machine": "x86_64"},
        "bits_per_weight": bits + 0.5,
        "predicted_kl": 10.0**-bits if guided else None,
        "fallbacks": [],
        "linears": linears,
    }


def run(bits: int = 4, guided: bool = True) -> dict[str, Any]:
    return {
        "schema": "r1quant.quantize/1",
        "out": f"/somebody/home/tiny-{bits}",
        "seconds": 12.0,
        "peak_rss_bytes": 800_000_000,
        "resumed_layers": 0,
        "already_complete": False,
        "output_bytes": 100_000 * bits,
        "predicted": {"output_bytes": 100_000 * bits, "peak_rss_bytes": 700_000_000, "seconds": 10.0},
        "config": config("llama"),
        "record": quantization(bits, guided),
    }


def verification(bits: int = 4, gates: tuple[tuple[str, float, bool], ...] = ()) -> dict[str, Any]:
    """Of 4 problems, two samples each: one right in both, one lost, one gained, one right in neither."""
    mean = 2 * 10.0**-bits
    counts = {"a": (2, 2), "b": (2, 0), "c": (1, 2), "d": (0, 1)}
    table = [
        {
            "key": key,
            "answer": "7",
            "baseline": a,
            "quantized": b,
            "tokens": {"baseline": [10, 20], "quantized": [30, 59]},
        }
        for key, (a, b) in counts.items()
    ]
    accuracy = {"accuracy": 0.625, "ci95": [0.2, 0.9], "maj": 0.5, "pass": 0.75, "problems": 4, "samples": 2}
    habits = {"closed_think": 1.0, "truncated": 0.0, "unparsed": 0.0, "loops": 0.0, "language_mixing": 0.0}
    return {
        "schema": "r1quant.verification/2",
        "model": "tiny",
        "out": f"tiny-{bits}",
        "baseline": "/somebody/home/tiny",
        "tokens": 1022,
        "perplexity": {
            "baseline": 12.0, "baseline_ci95": [10.0, 14.0], "quantized": 12.1, "quantized_ci95": [10.1, 14.1],
            "ratio": 12.1 / 12, "ratio_ci95": [1.0, 1.02],
        },
        "kl": {
            "mean": mean, "mean_ci95": [mean / 2, mean * 1.5], "median": mean / 9, "p99": mean * 9, "max": 1.0,
            "predicted": 10.0**-bits,
            "by_position": [{"from": 1, "to": 255, "mean": mean}, {"from": 256, "to": 511, "mean": mean * 2}],
        },
        "delta_p_rms": 0.01,
        "top1": 0.97,
        "top1_ci95": [0.96, 0.98],
        "by_class": {"thinking": {
            "tokens": 900, "kl": {"mean": mean}, "perplexity": {"baseline": 12.0, "quantized": 12.1}, "top1": 0.97,
        }},
        "text": {"source": "a text", "sha256": "cc" * 32, "windows": 2, "seq_len": 512},
        "aime": {
            "set": "mini", "source": "problems", "sha256": "dd" * 32, "problems": 4, "samples": 2,
            "baseline": accuracy, "quantized": accuracy,
            "delta": 0.0, "delta_ci95": [-0.5, 0.5], "p_value": 1.0, "smallest_detectable": 0.8, "table": table,
        },
        "health": {
            side: habits | {"length": {"mean": 15.0, "median": 15.0, "max": 59}} for side in ("baseline", "quantized")
        } | {"delta": habits, "length_ratio": 1.0, "length_ratio_ci95": [0.9, 1.1]},
        "gates": [{"gate": gate, "value": value, "passed": passed} for gate, value, passed in gates],
        "hashes": {"baseline": "ee" * 32, "quantized": "ff" * 32},
        "options": {"windows": 2, "seq_len": 512, "aime": "mini", "samples": 2, "gate": [gate for gate, _, _ in gates]},
        "environment": {"torch": "2.13.0"},
    }  # fmt: skip


def bench(bits: int = 4) -> dict[str, Any]:
    def side(speed: float) -> dict[str, Any]:
        spread = {"median": speed, "min": speed * 0.9, "max": speed * 1.1}
        return {
            "prefill_tokens_per_second": spread, "decode_tokens_per_second": spread, "ttft_seconds": spread,
            "peak_memory_bytes": 5_000_000, "memory": "rss", "backend": "torch", "device": "cpu", "dtype": "float32",
        }  # fmt: skip

    modelled = {
        "source": "modelled",
        "prefill_tokens_per_second": 9e5,
        "decode_tokens_per_second": 9e3,
        "ttft_seconds": 1e-4,
        "total_bytes": 1e9,
    }
    row = {"prompt_tokens": 64, "new_tokens": 16, "batch": 1}
    return {
        "schema": "r1quant.bench/1",
        "out": f"tiny-{bits}",
        "model": "tiny",
        "rows": [{**row, "baseline": side(100.0), "quantized": side(50.0 + bits),
                  "ratio": {"decode_tokens_per_second": {"median": 0.5}}}],
        "reference": {"card": "A100 40GB", "source": "modelled",
                      "rows": [{**row, "baseline": modelled, "quantized": modelled}]},
        "protocol": {"repeats": 3, "warm_up": 1, "order": "in turn"},
        "environment": {"machine": "x86_64"},
    }  # fmt: skip


def read(*found: tuple[str, dict[str, Any]]) -> list[tuple[str, Record]]:
    """As report reads records, each with the name of its folder."""
    records = [(folder, read_record(record, lenient=True)) for folder, record in found]
    assert all(record is not None for _, record in records)
    return [(folder, record) for folder, record in records if record is not None]


def everything(*bits: int) -> list[tuple[str, dict[str, Any]]]:
    """All four kinds at each number of bits, gates that 3 bits and more pass."""
    found = []
    for width in bits or (8, 4, 2):
        mean = 2 * 10.0**-width
        gates = (("kl.mean<0.005", mean, mean < 0.005),)
        found += [("f", run(width)), ("f", verification(width, gates)), ("f", bench(width))]
    return found
