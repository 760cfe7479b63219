"""Types of single tensors as llama.cpp takes them, and read back from what people keep them in."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1quant.errors import RecipeError
from r1quant.formats.gguf.overrides import arguments, overrides, read

MODULES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
KINDS = ("Q2_K", "Q3_K", "Q4_K", "Q6_K", "IQ4_XS")
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "lm_head.weight": "output.weight",
    "model.layers.0.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    "model.layers.1.self_attn.q_proj.weight": "blk.1.attn_q.weight",
    "model.layers.1.self_attn.q_proj.bias": "blk.1.attn_q.bias",
}


def places(layers: int) -> list[str]:
    return [f"blk.{layer}.{module}.weight" for layer in range(layers) for module in MODULES]


@given(
    st.integers(1, 23).flatmap(lambda n: st.fixed_dictionaries({name: st.sampled_from(KINDS) for name in places(n)}))
)
def test_exactly_one_pattern_is_found_in_each_name_and_has_its_type(types: dict[str, str]) -> None:
    patterns = overrides(types)
    for name, type in types.items():
        assert [one.type for one in patterns if re.search(one.pattern, name)] == [type]
        others = [name.replace("attn_q", "attn_q_norm"), name.replace("weight", "bias"), "output.weight"]
        assert not any(re.search(one.pattern, other) for one in patterns for other in others if other != name)
    assert len(patterns) <= len(MODULES) * len(KINDS)


def test_a_head_that_is_the_embedding_has_its_type() -> None:
    tied = arguments({"token_embd.weight": "Q6_K", "blk.0.attn_q.weight": "Q4_K"})
    assert tied == (
        "--token-embedding-type Q6_K", "--output-tensor-type Q6_K", r"--tensor-type 'blk\.(0)\.attn_q\.weight=Q4_K'",
    )  # fmt: skip
    assert arguments({}) == ()


def test_types_of_a_record_and_of_lines(tmp_path: Path) -> None:
    record, lines = tmp_path / "r1quant.json", tmp_path / "types.txt"
    types = {"model.layers.1.self_attn.q_proj": "Q4_K", "lm_head": "Q6_K", "model.layers.9.mlp.up_proj": "Q2_K"}
    record.write_text(json.dumps({"allocation": {"types": types}}))
    assert read(record, NAMES) == {"blk.1.attn_q.weight": "Q4_K", "output.weight": "Q6_K"}
    lines.write_text("blk.1.attn_q=q8_0 attn_q=IQ4_XS\ntoken_embd.weight=Q6_K\n")
    assert read(lines, NAMES) == {
        "blk.0.attn_q.weight": "IQ4_XS", "blk.1.attn_q.weight": "Q8_0", "token_embd.weight": "Q6_K",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read"),
        ("", "gives no tensor of this model a type"),
        ("ffn_up=Q4_K", "gives no tensor of this model a type"),
        ("attn_q=Q4_K_M", "names the type Q4_K_M"),
        ("attn_q(=Q4_K", "is no regular expression"),
        (json.dumps({"allocation": {"bits": {"lm_head": 4}}}), "gives no tensor of this model a type"),
        (json.dumps({"allocation": {"types": {"lm_head": 4}}}), "names the type 4"),
        (json.dumps([1]), "gives no tensor of this model a type"),
    ],
    ids=str,
)
def test_what_is_no_choice_of_types_is_refused(text: str | None, says: str, tmp_path: Path) -> None:
    path = tmp_path / "types"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RecipeError) as refused:
        read(path, NAMES)
    assert says in refused.value.message and refused.value.hint
