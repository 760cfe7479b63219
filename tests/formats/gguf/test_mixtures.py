"""Which type each tensor has in a mixture, held against llama.cpp's own choice where it is installed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from r1quant.arch.tables import architectures
from r1quant.core.blocktypes import BLOCK_TYPES, MIXTURES, TYPES
from r1quant.formats.gguf import kquants, mixtures
from r1quant.formats.gguf.kquants import requantize
from r1quant.formats.gguf.mixtures import kind_of
from tests.llamacpp import HEADS, dequantized, write_floats

ROLES = ("embedding", "head", "query", "key", "value", "out", "down", "linear")


def kinds(mixture: str, role: str, layers: int = 36, grouped: int = 4, columns: int = 4096) -> dict[str, int]:
    """How many layers have which type."""
    return dict(Counter(kind_of(mixture, role, layer, layers, grouped, columns) for layer in range(layers)))


def test_every_name_that_type_takes_is_known() -> None:
    assert set(mixtures.MIXTURES) == set(MIXTURES)
    for name in TYPES:
        for role in ROLES:
            assert set(kinds(name, role)) <= set(BLOCK_TYPES)


def test_q4_k_m_of_the_8b() -> None:
    more = {"Q6_K": 18, "Q4_K": 18}
    assert kinds("Q4_K_M", "value") == kinds("Q4_K_M", "down") == more
    assert {role: kinds("Q4_K_M", role) for role in ("query", "key", "out", "linear")} == {
        role: {"Q4_K": 36} for role in ("query", "key", "out", "linear")
    }
    assert kind_of("Q4_K_M", "head", 0, 36, 4, 4096) == "Q6_K"
    assert kind_of("Q4_K_M", "embedding", 0, 36, 4, 4096) == "Q4_K"


@pytest.mark.parametrize(
    ("mixture", "head", "embedding", "value", "down"),
    [
        ("IQ1_S", "Q5_K", "Q2_K", {"Q4_K": 36}, {"Q2_K": 4, "IQ1_S": 32}),
        ("IQ2_XXS", "Q5_K", "Q2_K", {"Q4_K": 36}, {"Q2_K": 4, "IQ2_XXS": 32}),
        ("IQ2_M", "Q5_K", "IQ3_S", {"Q4_K": 36}, {"IQ3_S": 4, "IQ2_S": 32}),
        ("IQ3_XXS", "Q5_K", "IQ3_S", {"Q4_K": 36}, {"IQ3_XXS": 36}),
        ("IQ4_XS", "Q6_K", "IQ4_XS", {"Q5_K": 36}, {"IQ4_XS": 36}),
        ("Q2_K", "Q6_K", "Q2_K", {"Q4_K": 36}, {"Q3_K": 36}),
        ("Q3_K_M", "Q6_K", "Q3_K", {"Q5_K": 2, "Q4_K": 34}, {"Q5_K": 2, "Q4_K": 34}),
        ("Q4_K_S", "Q6_K", "Q4_K", {"Q5_K": 4, "Q4_K": 32}, {"Q5_K": 4, "Q4_K": 32}),
        ("Q8_0", "Q8_0", "Q8_0", {"Q8_0": 36}, {"Q8_0": 36}),
        ("Q4_K", "Q6_K", "Q4_K", {"Q4_K": 36}, {"Q4_K": 36}),  # no mixture, but a type
    ],
)
def test_tables_values_and_down(
    mixture: str, head: str, embedding: str, value: dict[str, int], down: dict[str, int]
) -> None:
    assert kind_of(mixture, "head", 36, 36, 4, 4096) == head
    assert kind_of(mixture, "embedding", 36, 36, 4, 4096) == embedding
    assert kinds(mixture, "value") == value
    assert kinds(mixture, "down") == down


@pytest.mark.parametrize(
    ("mixture", "value", "query", "out", "linear", "down"),
    [
        ("IQ1_S", {"Q2_K": 36}, "IQ1_S", "IQ2_XXS", {"IQ1_S": 36}, {"Q2_K": 4, "IQ1_S": 32}),
        ("IQ2_XXS", {"Q2_K": 36}, "IQ2_XXS", "IQ2_XXS", {"IQ2_XXS": 36}, {"Q2_K": 4, "IQ2_XXS": 32}),
        ("IQ2_M", {"IQ3_S": 36}, "IQ2_S", "IQ3_S", {"IQ2_S": 36}, {"IQ3_S": 4, "IQ2_S": 32}),
        ("Q2_K", {"Q3_K": 36}, "Q2_K", "Q3_K", {"Q2_K": 36}, {"Q3_K": 36}),
        ("Q2_K_S", {"Q2_K": 36}, "Q2_K", "Q2_K", {"Q2_K": 36}, {"Q4_K": 4, "Q2_K": 32}),
        ("IQ3_XXS", {"IQ3_XXS": 36}, "IQ2_S", "IQ3_S", {"IQ3_XXS": 36}, {"IQ3_XXS": 36}),
        ("IQ3_XS", {"IQ3_S": 36}, "IQ3_XXS", "IQ3_S", {"IQ3_XXS": 27, "IQ3_S": 9}, {"IQ3_S": 36}),
        ("IQ3_S", {"IQ3_S": 36}, "IQ3_S", "IQ3_S", {"IQ3_S": 36}, {"IQ3_S": 36}),
        ("IQ3_M", {"Q4_K": 36}, "IQ3_S", "Q4_K", {"IQ3_S": 36}, {"Q4_K": 4, "IQ3_S": 32}),
        ("IQ4_NL", {"IQ4_NL": 36}, "IQ4_NL", "IQ4_NL", {"IQ4_NL": 36}, {"IQ4_NL": 36}),
        ("Q3_K_L", {"Q5_K": 36}, "Q3_K", "Q5_K", {"Q3_K": 36}, {"Q5_K": 36}),
        ("Q5_K_M", {"Q6_K": 18, "Q5_K": 18}, "Q5_K", "Q5_K", {"Q5_K": 36}, {"Q6_K": 18, "Q5_K": 18}),
    ],
)
def test_every_query_head_with_keys_and_values_of_its_own(
    mixture: str, value: dict[str, int], query: str, out: str, linear: dict[str, int], down: dict[str, int]
) -> None:
    assert kinds(mixture, "value", grouped=1) == value
    assert kinds(mixture, "query", grouped=1) == kinds(mixture, "key", grouped=1) == {query: 36}
    assert kinds(mixture, "out", grouped=1) == {out: 36}
    assert kinds(mixture, "linear", grouped=1) == linear
    assert kinds(mixture, "down", grouped=1) == down


@pytest.mark.parametrize("model_type", architectures())
def test_roles_of_the_architecture_are_those_of_the_names_in_gguf(model_type: str) -> None:
    arch = architectures()[model_type]
    assert {linear: arch.layer.role(linear) for linear in arch.layer.linears} == {
        linear: NAMES[arch.gguf.modules[linear]] for linear in arch.layer.linears
    }


def test_columns_that_do_not_fill_super_blocks_get_blocks_of_32() -> None:
    fallen = {name: kind_of(name, "linear", 0, 30, 3, 576) for name in ("Q2_K", "Q3_K_S", "Q4_K", "Q5_K", "Q6_K")}
    assert fallen == {"Q2_K": "Q4_0", "Q3_K_S": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}
    assert kind_of("IQ2_XXS", "linear", 0, 30, 3, 576) == "IQ4_NL"
    assert kind_of("Q4_K_M", "head", 0, 30, 3, 576) == "Q8_0"


NAMES = {
    "attn_q": "query", "attn_k": "key", "attn_v": "value", "attn_output": "out", "ffn_gate": "linear",
    "ffn_up": "linear", "ffn_down": "down",
}  # fmt: skip


@pytest.mark.usefixtures("llama_cpp")
@pytest.mark.parametrize("mixture", MIXTURES)
@pytest.mark.parametrize("kv_heads", [1, 4])
def test_as_llama_cpp_chooses(mixture: str, kv_heads: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kquants, "REQUANTIZED", MIXTURES)
    layers = 16
    source = write_floats(tmp_path / "floats.gguf", layers=layers, kv_heads=kv_heads)
    columns = {name: weight.shape[1] for name, weight in dequantized(source).items() if weight.ndim == 2}
    importance = {name: np.ones(count, np.float32) for name, count in columns.items() if name.startswith("blk.")}
    made = requantize(source, tmp_path / "made.gguf", mixture, importance, threads=1)
    for name, count in columns.items():
        _, layer, short, *_ = name.split(".") if name.startswith("blk.") else ("", "0", name.split(".")[0])
        role = {"token_embd": "embedding", "output": "head", **NAMES}[short]
        ours = kind_of(mixture, role, int(layer), layers, HEADS // kv_heads, count)
        assert ours == made.tensors[name], f"{name} of {mixture}"
