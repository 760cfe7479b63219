"""tokenizer.json and tokenizer_config.json out of the metadata of a GGUF file.

GGUF has the vocabulary and the merges of a byte-level BPE, but of the rule that cuts text into words only a name.
The rules behind the names are the table below; a name that is not in it is refused, since a wrong rule gives wrong
tokens without a word. Of a BPE over characters (SentencePiece) it has scores, from which the merges follow. A file may
carry tokenizer.json itself, which then is taken. It does not know models.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from typing import Any

from r1quant.checkpoint.gguf.config import SAFETENSORS, TOKENS, token_id
from r1quant.checkpoint.gguf.header import GgufHeader, shown
from r1quant.errors import CheckpointError

WHOLE = "tokenizer.huggingface.json"  # tokenizer.json itself, if the other keys do not say all of it
SPACE = "▁"
SPELLED = 1 << 23  # characters of all tokens together, if merges follow from them; a bound against hostile files
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # kinds of tokens

GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_BLANKS = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_WORDS = rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+[\r\n]*"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut before BPE.

    splits   regular expressions, each applied to the pieces that the one before it left
    nfc      text is put into Unicode's composed form first
    whole    a piece that is a token itself is not taken apart ("ignore_merges")
    add_bos  whether a text begins with the BOS token if the file does not say
    """

    splits: tuple[str, ...]
    nfc: bool = False
    whole: bool = False
    add_bos: bool = False


_QWEN2 = PreTokenizer((rf"{_WORDS}|\p{{N}}|{_SIGNS}|{_BLANKS}",), nfc=True)
_LLAMA3 = PreTokenizer((rf"{_WORDS}|\p{{N}}{{1,3}}|{_SIGNS}|{_BLANKS}",), whole=True, add_bos=True)
PRE_TOKENIZERS = {
    "gpt-2": PreTokenizer((GPT2,)),
    # What llama.cpp does for this name; no Hugging Face tokenizer is behind it.
    "default": PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]")),
    "smollm": PreTokenizer((r"\p{N}", GPT2)),
    "qwen2": _QWEN2,
    "deepseek-r1-qwen": _QWEN2,
    "llama-bpe": _LLAMA3,
    "llama3": _LLAMA3,
    "llama-v3": _LLAMA3,
    "tekken": PreTokenizer(
        (rf"{_CASED}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_BLANKS}",), whole=True, add_bos=True
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """Tokens by id as the file spells them, and the kind of each."""

    tokens: list[str]
    kinds: list[int]


def tokenizer_files(header: GgufHeader) -> dict[str, bytes]:
    """The tokenizer's files by name; none if the file has no tokenizer.

    Raises CheckpointError if the tokenizer is not a BPE of a known kind or is inconsistent.
    """
    model = header.text("tokenizer.ggml.model", "none")
    if model in ("none", "no_vocab"):
        return {}
    if model not in ("gpt2", "llama"):
        raise CheckpointError(
            f"{header.path.name}: a {shown(model)} tokenizer cannot be rebuilt from GGUF; only BPE can", SAFETENSORS
        )
    vocabulary = _vocabulary(header)
    if WHOLE in header.metadata:
        text = _whole(header, vocabulary)
    elif model == "llama":
        text = _sentencepiece_json(header, vocabulary)
    else:
        text = _byte_level_json(header, vocabulary)
    config = _tokenizer_config(header, vocabulary)
    return {
        "tokenizer.json": text,
        "tokenizer_config.json": (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode(),
    }


def _whole(header: GgufHeader, vocabulary: Vocabulary) -> bytes:
    """The tokenizer.json that the file carries, if it is of the same vocabulary."""
    text = header.text(WHOLE)
    try:
        found = json.loads(text)
        ids = {**found["model"]["vocab"], **{token["content"]: token["id"] for token in found["added_tokens"]}}
        fits = all(vocabulary.tokens[index] == token for token, index in ids.items() if index >= 0)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        fits = False
    if not fits:
        raise header.unusable(f"{WHOLE} does not fit tokenizer.ggml.tokens")
    return text.encode()


def _strings(header: GgufHeader, key: str) -> list[str]:
    value = header.metadata.get(key)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise header.unusable(f"{key} is missing or not a list of strings")
    return value


def _vocabulary(header: GgufHeader) -> Vocabulary:
    tokens = _strings(header, "tokenizer.ggml.tokens")
    rows = header.tensors["token_embd.weight"].shape[0]
    if len(tokens) != rows:
        raise header.unusable(f"there are {len(tokens)} tokens, but the embedding has {rows} rows")
    known = set(tokens)
    if len(known) != rows:
        raise header.unusable("a token appears twice in tokenizer.ggml.tokens")
    kinds = header.metadata.get("tokenizer.ggml.token_type", [1] * rows)
    if not isinstance(kinds, list) or len(kinds) != rows:
        raise header.unusable("tokenizer.ggml.token_type is not a list with one entry a token")
    return Vocabulary(tokens, kinds)


def _merges(header: GgufHeader, vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """The pairs to merge, first ones first."""
    known, merges = set(vocabulary.tokens), []
    for merge in _strings(header, "tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if left not in known or right not in known or left + right not in known:
            raise header.unusable(f"the merge {shown(merge)} is not one of two tokens into a third")
        merges.append((left, right))
    return merges


def _around(header: GgufHeader, vocabulary: Vocabulary, add_bos: bool) -> tuple[list[str], list[str]]:
    """The tokens that are put before and behind every text. add_bos: whether BOS is if the file does not say."""
    put: list[list[str]] = []
    for name, default in (("bos", add_bos), ("eos", False)):
        index = token_id(header, TOKENS[name]) if header.flag(f"tokenizer.ggml.add_{name}_token", default) else None
        put.append([] if index is None else [vocabulary.tokens[index]])
    for token in (*put[0], *put[1]):
        if ":" in token or token[:1] in ("", "$"):  # signs of the template language
            raise header.unusable(f"the token {shown(token)} cannot be put around a text")
    return put[0], put[1]


def _byte_level_json(header: GgufHeader, vocabulary: Vocabulary) -> bytes:
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    pre = PRE_TOKENIZERS.get(header.text("tokenizer.ggml.pre", ""))
    if pre is None:
        name = shown(header.metadata.get("tokenizer.ggml.pre"))
        raise CheckpointError(
            f"{header.path.name}: tokenizer.ggml.pre is {name}, and the rule behind it is not known", SAFETENSORS
        )
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=_merges(header, vocabulary), ignore_merges=pre.whole))
    if pre.nfc:
        tokenizer.normalizer = normalizers.NFC()
    splits = [pre_tokenizers.Split(Regex(split), behavior="isolated") for split in pre.splits]
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*splits, as_bytes])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    return _finished(tokenizer, vocabulary, _around(header, vocabulary, pre.add_bos))


def _sentencepiece_json(header: GgufHeader, vocabulary: Vocabulary) -> bytes:
    """BPE over characters: every way to cut a token into two is a merge, in the order of the tokens' scores."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = header.metadata.get("tokenizer.ggml.scores")
    if not isinstance(scores, list) or len(scores) != len(vocabulary.tokens):
        raise header.unusable("tokenizer.ggml.scores is not a list with one entry a token")
    if not all(isinstance(score, float) and math.isfinite(score) for score in scores):
        raise header.unusable("tokenizer.ggml.scores are not all numbers")
    if sum(map(len, vocabulary.tokens)) > SPELLED:
        raise header.unusable("its tokens are longer than those of any tokenizer of this kind")
    named = token_id(header, TOKENS["unk"])
    unknown = vocabulary.kinds.index(UNKNOWN) if named is None and UNKNOWN in vocabulary.kinds else named
    ids = {token: index for index, token in enumerate(vocabulary.tokens)}
    ranked = []
    for token, kind, score in zip(vocabulary.tokens, vocabulary.kinds, scores, strict=True):
        if kind == NORMAL:
            cuts = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
            ranked += [(-score, -len(left), left, right) for left, right in cuts if left in ids and right in ids]
    merges = [(left, right) for _, _, left, right in sorted(ranked)]
    bpe = models.BPE(
        vocab=ids,
        merges=merges,
        unk_token=None if unknown is None else vocabulary.tokens[unknown],
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(bpe)
    prefixed = header.flag("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", SPACE)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), spaces] if prefixed else [spaces])
    steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefixed else steps)
    return _finished(tokenizer, vocabulary, _around(header, vocabulary, True))


def _finished(tokenizer: Any, vocabulary: Vocabulary, around: tuple[list[str], list[str]]) -> bytes:
    """Adds the special tokens and those around a text."""
    from tokenizers import AddedToken, processors

    before, behind = around
    if before or behind:
        template = processors.TemplateProcessing(
            single=[*before, "$A", *behind],
            pair=[*before, "$A", *behind, *(f"{t}:1" for t in before), "$B:1", *(f"{t}:1" for t in behind)],
            special_tokens=[(token, vocabulary.tokens.index(token)) for token in dict.fromkeys(before + behind)],
        )
        earlier = tokenizer.post_processor
        tokenizer.post_processor = template if earlier is None else processors.Sequence([earlier, template])
    added = [
        AddedToken(token, special=kind != USER_DEFINED, normalized=False)
        for token, kind in zip(vocabulary.tokens, vocabulary.kinds, strict=True)
        if kind in (CONTROL, USER_DEFINED, UNKNOWN)
    ]
    tokenizer.add_tokens(added)
    return str(tokenizer.to_str()).encode()


def _tokenizer_config(header: GgufHeader, vocabulary: Vocabulary) -> dict[str, Any]:
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": header.whole(f"{header.text('general.architecture')}.context_length", least=1),
    }
    for name, key in TOKENS.items():
        index = token_id(header, key)
        if index is not None:
            config[f"{name}_token"] = vocabulary.tokens[index]
    if "tokenizer.chat_template" in header.metadata:
        config["chat_template"] = header.text("tokenizer.chat_template")
    return config
