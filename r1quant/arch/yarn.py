"""YaRN's attention factor: what runtimes make of a configuration that does not state it, and what we state instead.

YaRN multiplies cosine and sine by a factor, so attention logits change by its square. DeepSeek-R1-0528-Qwen3-8B
states `attn_factor`, which some runtimes read and others do not: the same file runs as two models. Sources: the
loaders of transformers 5.23, vLLM 0.33, SGLang 0.5.23, llama.cpp (llama-cpp-python 0.3.36), onnxruntime-genai 0.18.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass

from r1quant.arch import rope
from r1quant.core.json import Config, JsonObject

NEAR = 1e-6


@dataclass(frozen=True)
class Yarn:
    """factor: what every export of ours states; unstated: what each runtime takes from the configuration as it is."""

    factor: float
    stated: str
    unstated: Mapping[str, float]

    @property
    def disagree(self) -> bool:
        """Whether runtimes would run the original configuration as different models."""
        return any(abs(value - self.factor) > NEAR for value in self.unstated.values())

    @property
    def explanation(self) -> str:
        """One paragraph for people."""
        taken = ", ".join(f"{name} {value:.4f}" for name, value in self.unstated.items())
        if not self.disagree:
            return f"attention factor {self.factor:.4f} in every runtime"
        return (
            f"runtimes disagree on the attention factor of this configuration ({taken}); its {self.stated} means "
            f"{self.factor:.4f}, which every file that r1quant writes states in the runtime's own key"
        )

    def as_dict(self) -> JsonObject:
        return {**asdict(self), "disagree": self.disagree, "explanation": self.explanation}


def yarn(config: Config) -> Yarn | None:
    """What there is to say about a configuration; None where its rotary embedding is not YaRN's."""
    found = rope.parameters(config)
    if found["rope_type"] != "yarn":
        return None
    plain = rope.attention_factor(_without(config, "attention_factor", "attn_factor"))
    magnitude = rope.magnitude(float(found.get("factor", 1.0)))
    stated = float(found["attention_factor"]) if "attention_factor" in found else None
    multiplied = float(found.get("attn_factor", 1.0)) * magnitude
    unstated = {
        "transformers": plain if stated is None else stated,
        "vLLM": plain if stated is None else stated,
        "SGLang": multiplied,
        "llama.cpp": magnitude,
    }
    key = next((key for key in ("attention_factor", "attn_factor") if key in found), "rope_type")
    return Yarn(rope.attention_factor(config), key, unstated)


def _without(config: Config, *keys: str) -> Config:
    """The configuration without some of its rotary settings."""
    kept = dict(config)
    for name in ("rope_scaling", "rope_parameters"):
        if isinstance(config.get(name), Mapping):
            kept[name] = {key: value for key, value in config[name].items() if key not in keys}
    return kept
