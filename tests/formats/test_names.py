"""Names in configurations: rules take the linears that they are for and no others, fused or not."""

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from r1quant.checkpoint.artifact import LinearSpec
from r1quant.formats.names import patterns, with_fused
from r1quant.formats.table import CODECS

STAGES = {
    "self_attn": (("qkv_proj", ("q_proj", "k_proj", "v_proj")), ("o_proj", ("o_proj",))),
    "mlp": (("gate_up_proj", ("gate_proj", "up_proj")), ("down_proj", ("down_proj",))),
}
# What a runtime calls each layer that it makes, and the linears that it is made of.
LAYERS = {
    f"model.layers.{index}.{parent}.{whole}": tuple(f"model.layers.{index}.{parent}.{part}" for part in parts)
    for index in (0, 1, 11, 21, 111)
    for parent, stages in STAGES.items()
    for whole, parts in stages
} | {"lm_head": ("lm_head",)}
LINEARS = tuple(part for parts in LAYERS.values() for part in parts)


@given(st.sets(st.sampled_from(LINEARS)), st.sampled_from(["$", r"(?:\.|$)"]))
@settings(max_examples=80, deadline=None)
def test_rules_match_what_they_are_for_and_nothing_else(chosen: set[str], end: str) -> None:
    rules = patterns([name for name in LINEARS if name in chosen], end)
    for layer, parts in LAYERS.items():
        for name in {layer, *parts}:
            expected = name in chosen or (name == layer and set(parts) <= chosen)
            tensor = f"{name}.qweight"
            assert sum(re.match(rule, name) is not None for rule in rules) == expected
            assert any(re.match(rule, tensor) for rule in rules) == (expected and end != "$")
            assert not any(re.match(rule, f"{name}s") or re.match(rule, f"x.{name}") for rule in rules)


def test_layers_in_which_the_same_is_named_share_a_rule() -> None:
    names = [f"model.layers.{i}.mlp.{leaf}_proj" for i in range(36) for leaf in ("gate", "up")]
    (rule,) = patterns(names)
    assert rule.endswith(r"\.mlp\.(?:gate_proj|gate_up_proj|up_proj)$")
    assert patterns(reversed(names)) == [rule]
    assert patterns(["lm_head"]) == ["^lm_head$"] and patterns([]) == []


def test_fused_names_come_after_all_their_parts() -> None:
    attention = ["a.q_proj", "a.k_proj", "a.v_proj"]
    assert with_fused([*attention, "a.o_proj"]) == [*attention, "a.o_proj", "a.qkv_proj"]
    assert with_fused(attention[:2]) == attention[:2]
    assert with_fused(["q_proj", "b.k_proj", "c.v_proj"]) == ["q_proj", "b.k_proj", "c.v_proj"]


def by_dynamic(config: dict[str, Any], layer: str) -> int | None:
    """The bits of a layer as vLLM and SGLang find them in a GPTQ configuration; None if it stays in float."""
    for rule, values in config.get("dynamic", {}).items():
        if rule.startswith("-:"):
            if re.match(rule.removeprefix("-:"), layer):
                return None
        elif re.match(rule.removeprefix("+:"), layer):
            return int(values.get("bits", config["bits"]))
    return int(config["bits"])


def by_groups(config: dict[str, Any], layer: str) -> int | None:
    """The same in a configuration of compressed-tensors, by a reader that knows no fused layers."""
    if layer in config["ignore"]:
        return None
    for group in config["config_groups"].values():
        for target in group["targets"]:
            if target == "Linear" or re.match(target.removeprefix("re:"), layer):
                return int(group["weights"]["num_bits"])
    raise AssertionError(f"{layer} is in no group")


@pytest.mark.parametrize(("name", "found"), [("gptq", by_dynamic), ("compressed-tensors", by_groups)])
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_runtimes_find_the_bits_of_every_layer(name: str, found: Any, data: st.DataObject) -> None:
    """Whatever the bits, as long as linears that are fused have the same."""
    layers = [layer for layer in LAYERS if layer != "lm_head"]
    chosen = {layer: data.draw(st.sampled_from([None, 2, 4, 8])) for layer in layers}
    chosen[layers[0]] = 3
    bits = {part: chosen[layer] for layer in layers for part in LAYERS[layer]}
    linear_specs = {n: LinearSpec((64, 128), b, 32, (2 ** (b - 1),) * 2) for n, b in bits.items() if b is not None}
    plain = tuple(n for n, b in bits.items() if b is None)
    config = CODECS[name].quant_config(linear_specs, (*plain, "lm_head"), {})
    for layer in layers:
        assert {found(config, layer), *(found(config, part) for part in LAYERS[layer])} == {chosen[layer]}
    if name == "gptq":
        assert not config["lm_head"]
    else:
        assert found(config, "lm_head") is None
