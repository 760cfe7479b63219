"""BPE over characters (Llama 2, Mistral 7B) as the metadata keys of GGUF, its scores derived from the merges.

llama.cpp joins the two neighbours whose union has the highest score; tokenizer.json lists pairs in the order in which
they are joined. Both agree if every way to cut a token into two is listed, grouped by the token, which is how
SentencePiece models are converted; anything else is refused. The scores count down from 0, as SentencePiece's do.
It does not know byte-level BPE.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from r1quant.checkpoint.gguf.tokenizer import BYTE, NORMAL, UNKNOWN, UNUSED
from r1quant.core.json import JsonObject
from r1quant.errors import CheckpointError
from r1quant.formats.gguf.container import Metadata

SPACE = "▁"
PADDING_SCORE = -10000.0
BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
SPACES_REPLACED = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
UNSUPPORTED = "run this model from safetensors"


def keys(raw: JsonObject, tokens: list[str], kinds: list[int], source: str) -> Metadata:
    """All but the ids of special tokens. Raises CheckpointError if scores cannot say what the merges do."""
    bpe = raw["model"]
    if not _plain(raw):
        raise CheckpointError(f"{source}: tokenizer.json normalizes text as no GGUF tokenizer does", UNSUPPORTED)
    kinds = [_kind(token, kind, bpe.get("unk_token")) for token, kind in zip(tokens, kinds, strict=True)]
    ranks = ranks_of(bpe, source)
    scores = np.zeros(len(tokens), np.float32)
    for index, (token, kind) in enumerate(zip(tokens, kinds, strict=True)):
        if kind == NORMAL:
            scores[index] = -ranks.get(token, len(ranks) + index)
        elif kind == UNUSED:
            scores[index] = PADDING_SCORE
    return {
        "model": "llama",
        "pre": "default",
        "tokens": tokens,
        "scores": scores,
        "token_type": np.array(kinds, np.int32),
        "add_space_prefix": _prefixed(raw),
    }


def _kind(token: str, kind: int, unknown: str | None) -> int:
    if token == unknown:
        return UNKNOWN
    return BYTE if BYTE_TOKEN.fullmatch(token) else kind


def ranks_of(bpe: JsonObject, source: str) -> dict[str, int]:
    """The place of every merged token in the order of merging."""
    known: Mapping[str, int] = bpe["vocab"]
    ranks: dict[str, int] = {}
    listed: set[tuple[str, str]] = set()
    last = ""
    for merge in bpe.get("merges") or ():
        left, right = merge if isinstance(merge, list) else merge.split(" ", 1)
        listed.add((left, right))
        if left + right != last and left + right in ranks:
            raise CheckpointError(f"{source}: the merges of tokenizer.json are not in the order of scores", UNSUPPORTED)
        last = left + right
        ranks.setdefault(last, len(ranks))
    for token in known:
        for cut in range(1, len(token)):
            pair = token[:cut], token[cut:]
            if pair[0] in known and pair[1] in known and pair not in listed and token in ranks:
                raise CheckpointError(
                    f"{source}: tokenizer.json lists only some ways to merge {token!r}, which scores cannot say",
                    UNSUPPORTED,
                )
    return ranks


def _steps(raw: JsonObject, name: str, inner: str) -> list[JsonObject]:
    component = raw.get(name) or {}
    steps = component.get(inner, []) if component.get("type") == "Sequence" else [component]
    return [step for step in steps if step]


def cuts_of(raw: JsonObject) -> list[JsonObject]:
    """The steps that cut text. Gemma's cuts at spaces, and the text has none once they are replaced: it is no step."""
    steps = _steps(raw, "pre_tokenizer", "pretokenizers")
    if SPACES_REPLACED not in _steps(raw, "normalizer", "normalizers"):
        return steps
    return [step for step in steps if step.get("type") != "Split" or step.get("pattern") != SPACES_REPLACED["pattern"]]


def _plain(raw: JsonObject) -> bool:
    """Whether nothing happens to text but that spaces become ▁ and one is put in front."""
    normalizers = _steps(raw, "normalizer", "normalizers")
    allowed = ({"type": "Prepend", "prepend": SPACE}, SPACES_REPLACED)
    cuts = cuts_of(raw)
    metaspace = [step for step in cuts if step.get("type") == "Metaspace"]
    others = len(cuts) - len(metaspace)
    unsplit = all(step.get("split") is False and step.get("replacement") == SPACE for step in metaspace)
    replaced = SPACES_REPLACED in normalizers or len(metaspace) == 1
    return all(step in allowed for step in normalizers) and not others and unsplit and replaced


def _prefixed(raw: JsonObject) -> bool:
    if any(step.get("type") == "Prepend" for step in _steps(raw, "normalizer", "normalizers")):
        return True
    return any(step.get("prepend_scheme", "always") != "never" for step in cuts_of(raw))
