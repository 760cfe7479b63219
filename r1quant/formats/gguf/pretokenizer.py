"""The name that llama.cpp has for the rule by which a tokenizer.json cuts text into words.

The rule is compared as a structure with the table that GGUF files are read by (checkpoint/gguf/tokenizer.py), so a
file that is written can be read again. A rule that is not in the table is refused: under a wrong name a model gets
wrong tokens and nobody notices. It does not know vocabularies.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from r1quant.checkpoint.gguf.tokenizer import GPT2, PRE_TOKENIZERS
from r1quant.core.json import JsonObject
from r1quant.errors import CheckpointError, RecipeError

R1_BOS = "<｜begin▁of▁sentence｜>"
PREFERRED = ("gpt-2", "smollm", "qwen2", "llama-bpe", "tekken")
# The embedded tiny-r1 joins a line break with the word after it, as no rule of llama.cpp does. On this project's
# texts 0.4 % of its tokens come out otherwise under this name, 1.0 % under the next best one.
NEAREST = {(r"\p{N}", r"\s?\p{L}+|\s?[^\s\p{L}\p{N}]|\s+"): "qwen2"}


@dataclass(frozen=True)
class SplitRule:
    """The value of `tokenizer.ggml.pre`, and whether it cuts every text as tokenizer.json does."""

    name: str
    exact: bool


def rule_of(tokenizer: JsonObject, pre: str | None = None) -> SplitRule:
    """The rule of a parsed tokenizer.json of byte-level BPE.

    pre: the name that the user gives, which nothing checks if the rule is not in the table. Raises CheckpointError if
    none is given and the rule is unknown, and RecipeError if the rule is known by another name.
    """
    rule = splits(tokenizer.get("pre_tokenizer"))
    whole = bool((tokenizer.get("model") or {}).get("ignore_merges"))
    names = [
        name
        for name in PREFERRED
        if rule is not None and PRE_TOKENIZERS[name].splits == rule and PRE_TOKENIZERS[name].whole == whole
    ]
    if pre is not None:
        known = PRE_TOKENIZERS.get(pre)
        if names and (known is None or (known.splits, known.whole) != (rule, whole)):
            raise RecipeError(
                f"tokenizer.json cuts text by the rule {names[0]}, not {pre}", "leave the pre-tokenizer out"
            )
        return SplitRule(pre, bool(names))
    if rule is not None and rule in NEAREST:
        return SplitRule(NEAREST[rule], False)
    if not names:
        raise CheckpointError(
            "the pre-tokenizer rule of tokenizer.json has no name that is known in GGUF",
            f"state it with --pre NAME if llama.cpp has one; known are {', '.join(PRE_TOKENIZERS)}",
        )
    if names[0] == "qwen2" and any(token.get("content") == R1_BOS for token in tokenizer.get("added_tokens") or ()):
        return SplitRule("deepseek-r1-qwen", True)
    return SplitRule(names[0], True)


def splits(pre_tokenizer: Any) -> tuple[str, ...] | None:
    """The regular expressions by which text is cut, one after the other; None if it is anything else."""
    expressions: list[str] = []
    steps = pre_tokenizer.get("pretokenizers", []) if _kind(pre_tokenizer) == "Sequence" else [pre_tokenizer]
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        if _kind(step) == "Split":
            pattern = step.get("pattern")
            plain = str(step.get("behavior")).lower() == "isolated" and not step.get("invert")
            if last or not plain or not isinstance(pattern, dict) or "Regex" not in pattern:
                return None
            expressions.append(pattern["Regex"])
        elif _kind(step) == "Digits" and step.get("individual_digits") and not last:
            expressions.append(r"\p{N}")
        elif _kind(step) == "ByteLevel" and not step.get("add_prefix_space") and last:
            return tuple([*expressions, GPT2] if step.get("use_regex", True) else expressions)
        else:
            return None
    return None


def _kind(step: Any) -> str:
    return str(step.get("type")) if isinstance(step, dict) else ""
