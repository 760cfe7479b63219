"""Configurations written out: the keys that other programs read, and what they cannot bear."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.core.json import QuantConfig
from r1quant.errors import RecipeError
from r1quant.formats.table import CODECS, codec_of

META = {"quantizer": ["r1quant:0"]}
LAYER = "model.layers.0.mlp.up_proj"
OTHER = "model.layers.0.mlp.down_proj"
SYMMETRIC = LinearSpec((64, 256), 4, 128, (8, 8))
ASYMMETRIC = replace(SYMMETRIC, zeros=(1, 15))


def quant_config_of(
    name: str, linear_specs: Mapping[str, LinearSpec] | None = None, plain: tuple[str, ...] = ()
) -> QuantConfig:
    return CODECS[name].quant_config(linear_specs or {LAYER: SYMMETRIC}, plain, META)


def without_null(value: Any) -> bool:
    if isinstance(value, dict):
        return all(without_null(inner) for inner in value.values())
    return value is not None


@pytest.mark.parametrize("name", CODECS)
def test_a_configuration_leads_back_to_its_format(name: str) -> None:
    linear_specs = {LAYER: replace(SYMMETRIC, bits=8, zeros=(128, 128))} if name.endswith("-int") else None
    assert codec_of(quant_config_of(name, linear_specs)).name == name


@pytest.mark.parametrize(("name", "version"), [("gptq", "gptq"), ("gptq-v2", "gptq_v2")])
def test_gptq(name: str, version: str) -> None:
    assert quant_config_of(name) == {
        "quant_method": "gptq",
        "bits": 4,
        "group_size": 128,
        "desc_act": False,
        "sym": True,
        "lm_head": False,
        "checkpoint_format": version,
        "format": version,
        "method": "gptq",
        "pack_dtype": "int32",
        "meta": META,
    }


def test_gptq_stands_in_two_files_with_the_same_content() -> None:
    for name in ("gptq", "gptq-v2"):
        config = quant_config_of(name)
        assert CODECS[name].side_files(config) == {"quantize_config.json": config}


def test_gptq_says_what_differs() -> None:
    """`dynamic` is there only then. A head in floats needs no rule: `lm_head` says it."""
    linear_specs = {
        LAYER: ASYMMETRIC,
        "model.layers.1.mlp.up_proj": SYMMETRIC,
        OTHER: replace(SYMMETRIC, bits=8, group_size=-1),
    }
    config = quant_config_of("gptq", linear_specs, ("lm_head", "model.layers.1.mlp.down_proj"))
    assert not config["sym"] and not config["lm_head"]
    assert config["dynamic"] == {
        r"+:^model\.layers\.0\.mlp\.down_proj(?:\.|$)": {"bits": 8, "group_size": -1},
        r"-:^model\.layers\.1\.mlp\.down_proj(?:\.|$)": {},
    }
    assert "dynamic" not in quant_config_of("gptq", plain=("lm_head",))
    assert quant_config_of("gptq", {LAYER: SYMMETRIC, "lm_head": SYMMETRIC})["lm_head"]


def test_gptq_says_what_differs_in_the_head() -> None:
    config = quant_config_of("gptq", {LAYER: SYMMETRIC, OTHER: SYMMETRIC, "lm_head": replace(SYMMETRIC, bits=8)})
    assert config["lm_head"] and config["bits"] == 4
    assert config["dynamic"] == {r"+:^lm_head(?:\.|$)": {"bits": 8, "group_size": 128}}


@pytest.mark.parametrize(
    ("name", "table"), [("gptq", "model.embed_tokens"), ("awq", "model.embed_tokens"), ("awq", "lm_head")]
)
def test_tables_that_no_reader_looks_for(name: str, table: str) -> None:
    with pytest.raises(RecipeError, match=f"{table}: {name} holds the (embedding|head) in floats only"):
        quant_config_of(name, {LAYER: SYMMETRIC, table: SYMMETRIC})


def test_gptq_says_act_order() -> None:
    config = quant_config_of("gptq", {LAYER: replace(SYMMETRIC, group_size=None, scattered=2)})
    assert config["desc_act"] and config["group_size"] == 128


def test_a_row_as_long_as_the_groups_is_no_exception() -> None:
    """A linear of 128 columns in groups of 128 has one group, as one with -1 has."""
    linear_specs = {LAYER: SYMMETRIC, OTHER: LinearSpec((64, 128), 4, -1, (8, 8))}
    gptq = quant_config_of("gptq", linear_specs)
    assert "dynamic" not in gptq and gptq["group_size"] == 128
    assert quant_config_of("awq", linear_specs)["group_size"] == 128
    assert len(quant_config_of("compressed-tensors", linear_specs)["config_groups"]) == 1


@pytest.mark.parametrize("spec", [SYMMETRIC, ASYMMETRIC])
def test_awq(spec: LinearSpec) -> None:
    """zero_point is true also if all are 8: kernels for false are not in use."""
    awq = {"quant_method": "awq", "version": "gemm", "bits": 4, "group_size": 128, "zero_point": True}
    config = quant_config_of("awq", {LAYER: spec})
    assert config == {**awq, "meta": META}
    assert quant_config_of("awq", {LAYER: spec}, ("lm_head",)) == config
    assert quant_config_of("awq", {LAYER: spec}, (OTHER,)) == {**awq, "modules_to_not_convert": [OTHER], "meta": META}
    beside = {"zero_point": True, "w_bit": 4, "q_group_size": 128, "version": "GEMM"}
    assert CODECS["awq"].side_files(config) == {"quant_config.json": beside}


def test_awq_has_one_group_size() -> None:
    with pytest.raises(RecipeError, match="one group size"):
        quant_config_of("awq", {LAYER: SYMMETRIC, OTHER: replace(SYMMETRIC, group_size=64)})


@pytest.mark.parametrize(
    ("name", "bits", "layout"),
    [("compressed-tensors", 4, "pack-quantized"), ("compressed-tensors-int", 8, "int-quantized")],
)
@pytest.mark.parametrize(("size", "strategy"), [(128, "group"), (-1, "channel")])
def test_compressed_tensors(name: str, bits: int, layout: str, size: int, strategy: str) -> None:
    spec = LinearSpec((64, 256), bits, size, (1, 9))
    assert quant_config_of(name, {LAYER: spec}) == {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "config_groups": {
            "group_0": {
                "targets": ["Linear"],
                "format": layout,
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": False,
                    "strategy": strategy,
                    "group_size": None if size == -1 else size,
                    "dynamic": False,
                    "actorder": None,
                    "block_structure": None,
                    "observer": "minmax",
                },
                "input_activations": None,
                "output_activations": None,
            }
        },
        "ignore": ["lm_head"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }
    assert CODECS[name].side_files(quant_config_of(name, {LAYER: spec})) == {}


def test_compressed_tensors_name_the_linears_that_differ() -> None:
    config = quant_config_of("compressed-tensors", {LAYER: SYMMETRIC, OTHER: ASYMMETRIC, "lm_head": SYMMETRIC})
    first, second = config["config_groups"].values()
    assert first["targets"] == [r"re:^model\.layers\.0\.mlp\.up_proj$", r"re:^lm_head$"]
    assert second["targets"] == [r"re:^model\.layers\.0\.mlp\.down_proj$"]
    assert first["weights"]["symmetric"] and not second["weights"]["symmetric"]
    assert config["ignore"] == []


def test_compressed_tensors_name_head_and_embedding() -> None:
    """The head by its name, the embedding by its class; the linears of the layers may still be named by theirs."""
    eight, head, embedding = replace(SYMMETRIC, bits=8, zeros=(128, 128)), "lm_head", "model.embed_tokens"

    def targets(**specs: LinearSpec) -> list[list[str]]:
        named = {{"head": head, "embedding": embedding}.get(key, LAYER): spec for key, spec in specs.items()}
        config = quant_config_of("compressed-tensors", named)
        assert config["ignore"] == ([] if "head" in specs else ["lm_head"])
        return [group["targets"] for group in config["config_groups"].values()]

    assert targets(layer=SYMMETRIC, head=SYMMETRIC) == [[r"re:^lm_head$", "Linear"]]
    assert targets(layer=SYMMETRIC, head=eight) == [["Linear"], [r"re:^lm_head$"]]
    assert targets(layer=SYMMETRIC, embedding=eight) == [["Linear"], ["Embedding"]]
    assert targets(embedding=eight, layer=SYMMETRIC, head=eight) == [[r"re:^lm_head$", "Embedding"], ["Linear"]]
    assert targets(layer=eight, head=eight, embedding=eight) == [[r"re:^lm_head$", "Linear", "Embedding"]]


@pytest.mark.parametrize("name", ["gptq", "gptq-v2", "awq"])
def test_no_key_is_null(name: str) -> None:
    for plain in ((), ("lm_head",), (OTHER,)):
        assert without_null(quant_config_of(name, plain=plain))
        assert without_null(CODECS[name].side_files(quant_config_of(name, plain=plain)))
