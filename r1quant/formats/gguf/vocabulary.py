"""A model's tokenizer as the metadata keys of GGUF, from tokenizer.json and the files beside it.

Two kinds: byte-level BPE ("gpt2") with its merges, and BPE over characters with bytes to fall back on ("llama"),
whose merges llama.cpp derives from scores. The scores are the order of the merges. It does not know weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import numpy as np

from r1quant.arch.tables import size
from r1quant.checkpoint.artifact import generation_config
from r1quant.checkpoint.gguf.config import TOKENS
from r1quant.checkpoint.gguf.tokenizer import CONTROL, NORMAL, PRE_TOKENIZERS, UNUSED, USER_DEFINED, WHOLE
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.core.json import Config, JsonObject
from r1quant.errors import CheckpointError
from r1quant.formats.gguf import sentencepiece
from r1quant.formats.gguf.container import Metadata
from r1quant.formats.gguf.pretokenizer import rule_of

# How a token that ends a turn is spelled, if generation_config.json names several that end a text.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end|>", "<|end_of_turn|>", "<end_of_turn>")
UNSUPPORTED = "run this model from safetensors"
SPACES = (
    "llama.cpp puts a space before a text that begins with one, and after special tokens, as this model's tokenizer "
    "does not: prompts given as token ids are right, prompts given as text may become other tokens"
)


def keys(side_files: Mapping[str, bytes], config: Config, source: str, pre: str | None = None) -> Metadata:
    """All `tokenizer.` keys. Raises CheckpointError if the tokenizer is missing or of a kind GGUF cannot hold."""
    tokenizer = Tokenizer.from_files(side_files, source)
    raw = json.loads(side_files["tokenizer.json"])
    settings = _object(side_files, "tokenizer_config.json")
    tokens, kinds = _tokens(raw, size(config, "vocab_size"), source)
    bpe = raw.get("model") or {}
    if bpe.get("type") != "BPE":
        raise CheckpointError(f"{source}: a tokenizer of the type {bpe.get('type')} has no place in GGUF", UNSUPPORTED)
    entries: Metadata = {}
    if bpe.get("byte_fallback"):
        entries = sentencepiece.keys(raw, tokens, kinds, source)
    else:
        rule = rule_of(raw, pre)
        entries = {
            "model": "gpt2",
            "pre": rule.name,
            "tokens": tokens,
            "token_type": np.array(kinds, np.int32),
            "merges": merges(bpe),
        }
    entries |= _special(tokenizer, config, generation_config(side_files), len(tokens))
    around = puts_around(raw, settings, tokenizer.specials)
    entries |= {f"add_{name}_token": value for name, value in around.items()}
    metadata: Metadata = {f"tokenizer.ggml.{key}": value for key, value in entries.items()}
    if not faithful(raw, pre):
        metadata[WHOLE] = side_files["tokenizer.json"].decode()
    return metadata | ({"tokenizer.chat_template": tokenizer.template} if tokenizer.template else {})


def notes(side_files: Mapping[str, bytes], pre: str | None) -> tuple[str, ...]:
    """What a user should know of the tokenizer in the file."""
    raw = json.loads(side_files["tokenizer.json"])
    if (raw.get("model") or {}).get("byte_fallback"):
        return () if faithful(raw, pre) else (SPACES,)
    rule = rule_of(raw, pre)
    if rule.exact:
        return ()
    return (
        f"llama.cpp will cut text by the rule {rule.name}, which is not always this model's own: prompts given as "
        "token ids are right, prompts given as text may become other tokens",
    )


def faithful(raw: JsonObject, pre: str | None) -> bool:
    """Whether the keys say all that a parsed tokenizer.json does. If not, the file itself goes along (WHOLE)."""
    if (raw.get("model") or {}).get("byte_fallback"):
        return not sentencepiece.cuts_of(raw)
    rule = rule_of(raw, pre)
    composed = [step for step in _normalizers(raw) if step.get("type") != "NFC"] == [] and bool(_normalizers(raw))
    known = PRE_TOKENIZERS.get(rule.name)
    return rule.exact and known is not None and known.nfc == composed and (composed or not _normalizers(raw))


def _normalizers(raw: JsonObject) -> list[JsonObject]:
    normalizer = raw.get("normalizer") or {}
    steps = normalizer.get("normalizers", []) if normalizer.get("type") == "Sequence" else [normalizer]
    return [step for step in steps if step]


def _object(side_files: Mapping[str, bytes], name: str) -> JsonObject:
    content = json.loads(side_files.get(name, b"{}"))
    return content if isinstance(content, dict) else {}


def _tokens(raw: JsonObject, rows: int, source: str) -> tuple[list[str], list[int]]:
    """Text and kind of every token, one a row of the embedding."""
    added = {token["id"]: token for token in raw.get("added_tokens") or ()}
    by_id = {index: token for token, index in (raw.get("model") or {}).get("vocab", {}).items()}
    by_id |= {index: token["content"] for index, token in added.items()}
    if by_id and max(by_id) >= rows:
        raise CheckpointError(
            f"{source}: tokenizer.json has the token id {max(by_id)}, the embedding has {rows} rows",
            "download config.json and tokenizer.json again, both from the same place",
        )
    tokens, kinds = [], []
    for index in range(rows):
        tokens.append(by_id.get(index, f"[PAD{index}]"))
        if index in added:
            special = added[index].get("special") or _looks_special(tokens[-1])
            kinds.append(CONTROL if special else USER_DEFINED)
        else:
            kinds.append(NORMAL if index in by_id else UNUSED)
    return tokens, kinds


def _looks_special(token: str) -> bool:
    """Tokens that models mark as ordinary although they direct the conversation; llama.cpp's converter does this."""
    bars = (token.startswith("<|") and token.endswith("|>")) or (token.startswith("<｜") and token.endswith("｜>"))
    return bars or token in ("<pad>", "<mask>")


def merges(bpe: JsonObject) -> list[str]:
    """The merges as "left right", first ones first. A space inside a token is spelled as in the byte alphabet."""
    pairs = [merge if isinstance(merge, list) else merge.split(" ", 1) for merge in bpe.get("merges") or ()]
    return [f"{left.replace(' ', 'Ġ')} {right.replace(' ', 'Ġ')}" for left, right in pairs]


def _special(tokenizer: Tokenizer, config: Config, generation: JsonObject, count: int) -> dict[str, int]:
    """The ids of named tokens: as the tokenizer names them, else as config.json does."""
    ids: dict[str, int] = {}
    for name, key in TOKENS.items():
        text = tokenizer.specials.get(f"{name}_token")
        index = tokenizer.backend.token_to_id(text) if text is not None else config.get(f"{name}_token_id")
        if isinstance(index, int) and not isinstance(index, bool) and 0 <= index < count:
            ids[f"{key}_token_id"] = index
    ends = generation.get("eos_token_id")
    others = [i for i in ends if i != ids.get("eos_token_id")] if isinstance(ends, list) else []
    turns = [i for i in others if isinstance(i, int) and tokenizer.backend.id_to_token(i) in TURN_ENDS]
    return ids | ({"eot_token_id": turns[0]} if turns else {})


def puts_around(raw: JsonObject, settings: JsonObject, specials: Mapping[str, str]) -> dict[str, bool]:
    """Whether the tokens bos and eos are put around a text, by name: a template or a flag says so."""
    put = {"bos": False, "eos": False}
    post = raw.get("post_processor") or {}
    for step in post.get("processors", [post]):
        single = step.get("single") if step.get("type") == "TemplateProcessing" else None
        if isinstance(single, list) and len(single) > 1:
            for name, item in (("bos", single[0]), ("eos", single[-1])):
                text = (item.get("SpecialToken") or {}).get("id")
                put[name] = text is not None and text == specials.get(f"{name}_token")
    for name in put:
        flag = settings.get(f"add_{name}_token")
        put[name] = (flag if isinstance(flag, bool) else put[name]) and f"{name}_token" in specials
    return put
