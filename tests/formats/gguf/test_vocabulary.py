"""Tokenizers: their rule found by structure, SentencePiece scores, and the same tokens in every reader."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from r1quant.arch.tables import architecture_of
from r1quant.checkpoint.gguf.tokenizer import PRE_TOKENIZERS
from r1quant.checkpoint.resolve import embedded_folder, open_model
from r1quant.checkpoint.tokenizer import Tokenizer as ModelTokenizer
from r1quant.errors import CheckpointError, RecipeError
from r1quant.formats.gguf.options import GgufOptions
from r1quant.formats.gguf.pretokenizer import SplitRule, rule_of
from r1quant.formats.gguf.read import open_gguf_artifact
from r1quant.formats.gguf.write import GgufFile, write
from tests.models import text, write_model

from . import llama
from .held import Held, floats

TEXTS = (
    text(8), "What is 12 + 35? I've 3 apples,\n\n  and\tyou DON'T.", "ünïcödé 你好, мир — 1234567 ½", " a  b   c",
    "x\ny", "<|end|> x<|begin|>", "", " ", "\n",
)  # fmt: skip
# The rules as the models' own tokenizer.json have them, written down a second time.
QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split(*patterns: str) -> Any:
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    return pre_tokenizers.Sequence([*steps, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


RULES: dict[str, tuple[Any, bool, bool]] = {  # pre-tokenizer, NFC, ignore_merges
    "gpt-2": (pre_tokenizers.ByteLevel(add_prefix_space=False), False, False),
    "smollm": (
        pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
        ), False, False,
    ),
    "qwen2": (split(QWEN), True, False),
    "llama-bpe": (split(LLAMA3), False, True),
    "tekken": (split(TEKKEN), False, True),
}  # fmt: skip


def byte_level(pre: Any, nfc: bool, whole: bool, specials: tuple[str, ...] = ("<|begin|>", "<|end|>")) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(ignore_merges=whole))
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=list(specials), initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([*text(216).splitlines(), "12 345 6789 I've DON'T it's"] * 2, trainer)
    return tokenizer


def artifact_with(folder: Path, tokenizer: Tokenizer | str, **settings: Any) -> Held:
    """A tiny llama with that tokenizer.json, and changes of tokenizer_config.json."""
    held = floats(write_model(folder, "llama", dtype="float32"))
    config = json.loads(held.side_files["tokenizer_config.json"]) | settings
    raw = tokenizer if isinstance(tokenizer, str) else tokenizer.to_str()
    side_files = {
        **held.side_files,
        "tokenizer.json": raw.encode(),
        "tokenizer_config.json": json.dumps({k: v for k, v in config.items() if v is not None}).encode(),
    }
    return replace(held, checkpoint=replace(held.checkpoint, side_files=side_files))


def export(artifact: Held, path: Path, pre: str | None = None) -> GgufFile:
    return write(artifact, architecture_of(artifact.config), path, GgufOptions(pre=pre))


def key(path: Path, name: str) -> Any:
    return gguf.GGUFReader(path).fields[f"tokenizer.ggml.{name}"].contents()


def check_tokens(artifact: Held, path: Path, *, in_llama_cpp: bool = True) -> None:
    """The file's tokens are the model's in our reader, and in llama.cpp if it knows the rule."""
    ours = ModelTokenizer.from_files(artifact.side_files, "a")
    back = ModelTokenizer.from_files(open_gguf_artifact(path).side_files, "b")
    for special in (False, True):
        expected = [ours.encode(line, special=special) for line in TEXTS]
        assert [back.encode(line, special=special) for line in TEXTS] == expected
        if in_llama_cpp:
            assert llama.tokenize(path, TEXTS, special) == expected


@pytest.mark.parametrize("name", RULES)
def test_the_rule_is_found_and_cuts_alike_everywhere(tmp_path: Path, name: str) -> None:
    tokenizer = byte_level(*RULES[name])
    assert rule_of(json.loads(tokenizer.to_str())) == SplitRule(name, True)
    artifact = artifact_with(tmp_path / "a", tokenizer)
    done = export(artifact, tmp_path / "m.gguf")
    assert key(tmp_path / "m.gguf", "pre") == name and not done.notes
    assert "tokenizer.huggingface.json" not in gguf.GGUFReader(tmp_path / "m.gguf").fields
    check_tokens(artifact, tmp_path / "m.gguf")


def test_the_tokenizer_of_r1_0528_is_qwens_under_deepseeks_name() -> None:
    specials = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>")
    tokenizer = byte_level(*RULES["qwen2"], specials=specials)
    assert rule_of(json.loads(tokenizer.to_str())) == SplitRule("deepseek-r1-qwen", True)


def test_every_known_name_is_found_or_an_alias() -> None:
    aliases = {"deepseek-r1-qwen", "llama3", "llama-v3", "default"}
    assert set(PRE_TOKENIZERS) - aliases == set(RULES)


def test_an_unknown_rule_is_refused_unless_stated(tmp_path: Path) -> None:
    artifact = artifact_with(tmp_path / "a", byte_level(split(r"\p{L}+|\p{N}+"), False, False))
    with pytest.raises(CheckpointError, match="has no name that is known in GGUF") as caught:
        export(artifact, tmp_path / "m.gguf")
    assert "--pre NAME" in caught.value.hint and not (tmp_path / "m.gguf").exists()
    done = export(artifact, tmp_path / "m.gguf", pre="gpt-2")
    assert key(tmp_path / "m.gguf", "pre") == "gpt-2" and "rule gpt-2" in done.notes[0]
    check_tokens(artifact, tmp_path / "m.gguf", in_llama_cpp=False)


def test_a_stated_name_must_not_contradict_the_rule(tmp_path: Path) -> None:
    artifact = artifact_with(tmp_path / "a", byte_level(*RULES["llama-bpe"]))
    with pytest.raises(RecipeError, match="cuts text by the rule llama-bpe, not qwen2"):
        export(artifact, tmp_path / "m.gguf", pre="qwen2")
    assert not export(artifact, tmp_path / "m.gguf", pre="llama-v3").notes
    assert key(tmp_path / "m.gguf", "pre") == "llama-v3"


@pytest.mark.parametrize(
    "pre",
    [
        pre_tokenizers.Whitespace(),
        pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(QWEN), "removed"), pre_tokenizers.ByteLevel()]),
        pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "isolated"), pre_tokenizers.ByteLevel()]),
        pre_tokenizers.ByteLevel(add_prefix_space=True),
        pre_tokenizers.Split(Regex(QWEN), "isolated"),
    ],
)
def test_what_only_looks_like_a_known_rule_is_unknown(pre: Any) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre
    with pytest.raises(CheckpointError, match="has no name"):
        rule_of(json.loads(tokenizer.to_str()))


def test_tiny_r1_goes_under_the_nearest_name_and_keeps_its_own_tokenizer(tmp_path: Path) -> None:
    artifact = Held(open_model(str(embedded_folder())), {})
    done = export(artifact, tmp_path / "m.gguf")
    assert key(tmp_path / "m.gguf", "pre") == "qwen2" and len(done.notes) == 1
    back = open_gguf_artifact(tmp_path / "m.gguf")
    assert back.side_files["tokenizer.json"] == artifact.side_files["tokenizer.json"]
    check_tokens(artifact, tmp_path / "m.gguf", in_llama_cpp=False)


def test_bos_and_eos_around_a_text(tmp_path: Path) -> None:
    def put(number: int, post: Any, **settings: Any) -> tuple[bool, bool]:
        tokenizer = byte_level(*RULES["gpt-2"])
        if post is not None:
            tokenizer.post_processor = post
        artifact = artifact_with(tmp_path / f"a{number}", tokenizer, **settings)
        path = tmp_path / f"{number}.gguf"
        export(artifact, path)
        if not settings:
            check_tokens(artifact, path)
        return key(path, "add_bos_token"), key(path, "add_eos_token")

    def template(single: str) -> Any:
        return processors.TemplateProcessing(single=single, special_tokens=[("<|begin|>", 0), ("<|end|>", 1)])

    assert put(0, None) == (False, False)
    assert put(1, template("<|begin|> $A")) == (True, False)
    assert put(2, template("<|begin|> $A <|end|>")) == (True, True)
    assert put(3, processors.Sequence([processors.ByteLevel(), template("<|begin|> $A")])) == (True, False)
    assert put(4, template("<|begin|> $A"), add_bos_token=False) == (False, False)
    assert put(5, None, add_bos_token=True) == (True, False)
    assert put(6, None, add_bos_token=True, bos_token=None) == (False, False)


def test_kinds_of_tokens_and_named_ones(tmp_path: Path) -> None:
    tokenizer = byte_level(*RULES["gpt-2"], specials=("<|begin|>", "<|end|>", "<|im_end|>"))
    tokenizer.add_tokens([AddedToken("<|tool|>", special=False), AddedToken("<think>", special=False)])
    artifact = artifact_with(tmp_path / "a", tokenizer, pad_token="<|end|>", unk_token="<think>")
    side_files = {**artifact.side_files, "generation_config.json": b'{"eos_token_id": [1, 2]}'}
    artifact = replace(artifact, checkpoint=replace(artifact.checkpoint, side_files=side_files))
    path = tmp_path / "m.gguf"
    export(artifact, path)
    tokens, kinds = key(path, "tokens"), key(path, "token_type")
    assert [kinds[tokens.index(t)] for t in ("<|tool|>", "<think>", "a", "[PAD511]")] == [3, 4, 1, 5]
    think = tokens.index("<think>")
    named = [key(path, f"{name}_token_id") for name in ("bos", "eos", "padding", "unknown", "eot")]
    assert named == [0, 1, 1, think, 2]
    assert json.loads(open_gguf_artifact(path).side_files["generation_config.json"])["eos_token_id"] == [1, 2]


def test_more_tokens_than_rows_are_refused(tmp_path: Path) -> None:
    tokenizer = byte_level(*RULES["gpt-2"])
    tokenizer.add_tokens([f"<extra {n}>" for n in range(40)])
    with pytest.raises(CheckpointError, match=r"token id \d+, the embedding has 512 rows"):
        export(artifact_with(tmp_path / "a", tokenizer), tmp_path / "m.gguf")


def test_other_models_are_refused(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.WordLevel({"<|begin|>": 0, "<|end|>": 1}, unk_token="<|end|>"))
    with pytest.raises(CheckpointError, match="of the type WordLevel has no place in GGUF"):
        export(artifact_with(tmp_path / "a", tokenizer), tmp_path / "m.gguf")


def sentencepiece(metaspace: bool = False) -> Tokenizer:
    """As Llama 2 and Mistral 7B are converted: <unk>, <s>, </s>, 256 bytes, then pieces in the order of their scores,
    and every way to cut a piece into two a merge."""
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained.pre_tokenizer = pre_tokenizers.Split(Regex("(?=▁)"), "isolated")
    trainer = trainers.BpeTrainer(vocab_size=240, show_progress=False)
    trained.train_from_iterator(text(216).splitlines(), trainer)
    raw = json.loads(trained.to_str())["model"]
    joined = list(dict.fromkeys("".join(pair) for pair in raw["merges"]))
    letters = [token for token in raw["vocab"] if len(token) == 1]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokens = [*tokens, *joined[: 512 - len(tokens) - len(letters) - 4], *letters]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    merges = []
    for token in joined:
        if token in vocabulary:
            cuts = [(token[:n], token[n:]) for n in range(1, len(token))]
            held = [cut for cut in cuts if cut[0] in vocabulary and cut[1] in vocabulary]
            merges += sorted(held, key=lambda cut: (-len(cut[0]), -len(cut[1])))
    tokenizer = Tokenizer(
        models.BPE(vocab=vocabulary, merges=merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return tokenizer


PIECES = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


def test_sentencepiece_scores_are_the_order_of_merges(tmp_path: Path) -> None:
    tokenizer = sentencepiece()
    artifact = artifact_with(tmp_path / "a", tokenizer, **PIECES)
    path = tmp_path / "m.gguf"
    done = export(artifact, path)
    assert key(path, "model") == "llama" and key(path, "pre") == "default" and not done.notes
    tokens, kinds, scores = key(path, "tokens"), key(path, "token_type"), key(path, "scores")
    assert kinds[:4] == [2, 3, 3, 6] and kinds[258:260] == [6, 1] and kinds[-1] == 5
    assert scores[:259] == [0.0] * 259 and scores[259:262] == [0.0, -1.0, -2.0]  # as SentencePiece's own
    normal = [score for score, kind in zip(scores, kinds, strict=True) if kind == 1]
    assert normal == sorted(normal, reverse=True) and len(set(normal)) == len(normal)
    assert key(path, "add_space_prefix") is True and key(path, "add_bos_token") is True
    assert len(tokens) == 512
    check_tokens(artifact, path)
    ours = json.loads(tokenizer.to_str())["model"]
    back = json.loads(open_gguf_artifact(path).side_files["tokenizer.json"])["model"]
    assert back["merges"] == ours["merges"]


def test_gemmas_cut_at_spaces_is_none(tmp_path: Path) -> None:
    """Spaces are replaced before anything is cut at them, and none is put in front of a text."""
    tokenizer = sentencepiece()
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence(steps)
    artifact, path = artifact_with(tmp_path / "a", tokenizer, **PIECES), tmp_path / "m.gguf"
    assert not export(artifact, path).notes
    assert key(path, "add_space_prefix") is False and key(path, "model") == "llama"
    back = json.loads(open_gguf_artifact(path).side_files["tokenizer.json"])
    assert not back["pre_tokenizer"]
    check_tokens(artifact, path, in_llama_cpp=False)
    tokenizer.normalizer = normalizers.Prepend("▁")  # and spaces stay, which are then cut at
    with pytest.raises(CheckpointError, match="normalizes text as no GGUF tokenizer does"):
        export(artifact_with(tmp_path / "b", tokenizer, **PIECES), tmp_path / "other.gguf")
    check_tokens(artifact, path)


def test_a_newer_sentencepiece_file_keeps_its_own_tokenizer(tmp_path: Path) -> None:
    """A space goes before the first piece only, and not before another space, which the keys cannot say."""
    artifact = artifact_with(tmp_path / "a", sentencepiece(metaspace=True), **PIECES)
    assert "a space before a text" in export(artifact, tmp_path / "m.gguf").notes[0]
    assert open_gguf_artifact(tmp_path / "m.gguf").side_files["tokenizer.json"] == artifact.side_files["tokenizer.json"]
    check_tokens(artifact, tmp_path / "m.gguf", in_llama_cpp=False)
    plain = [line for line in TEXTS if "<|" not in line and not line.startswith(" ")]
    ours = ModelTokenizer.from_files(artifact.side_files, "a")
    assert llama.tokenize(tmp_path / "m.gguf", plain) == [ours.encode(line) for line in plain]


def test_merges_that_scores_cannot_say_are_refused(tmp_path: Path) -> None:
    raw = json.loads(sentencepiece().to_str())
    merges = raw["model"]["merges"]

    def refused(number: int, message: str, **changes: Any) -> None:
        model = {**raw["model"], **{k: v for k, v in changes.items() if k == "merges"}}
        other = {**raw, **{k: v for k, v in changes.items() if k != "merges"}, "model": model}
        artifact = artifact_with(tmp_path / str(number), json.dumps(other), **PIECES)
        with pytest.raises(CheckpointError, match=message):
            export(artifact, tmp_path / "m.gguf")

    double = next(n for n in range(1, len(merges)) if "".join(merges[n]) == "".join(merges[n - 1]))
    refused(0, "lists only some ways to merge", merges=merges[:double] + merges[double + 1 :])
    moved = merges[:double] + merges[double + 1 :] + [merges[double]]
    refused(1, "not in the order of scores", merges=moved)
    refused(2, "normalizes text as no GGUF tokenizer does", normalizer={"type": "Lowercase"})


def test_arrays_have_the_types_that_llama_cpp_wants(tmp_path: Path) -> None:
    export(artifact_with(tmp_path / "a", sentencepiece(), **PIECES), tmp_path / "m.gguf")
    fields = gguf.GGUFReader(tmp_path / "m.gguf").fields
    kinds = {name: [t.name for t in fields[f"tokenizer.ggml.{name}"].types] for name in ("scores", "token_type")}
    assert kinds == {"scores": ["ARRAY", "FLOAT32"], "token_type": ["ARRAY", "INT32"]}
    assert np.isfinite(key(tmp_path / "m.gguf", "scores")).all()
