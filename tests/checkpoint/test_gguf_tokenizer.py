"""Tokenizers rebuilt from GGUF: token for token what llama.cpp makes of the same metadata."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer

from r1quant.checkpoint.gguf.header import GgufHeader, read_gguf_header
from r1quant.checkpoint.gguf.source import open_gguf
from r1quant.checkpoint.gguf.tokenizer import PRE_TOKENIZERS, tokenizer_files
from r1quant.errors import CheckpointError

from .gguf_files import TOKENS, metadata, smollm_path, tensors, write

TEXTS = (
    "Hello, world!  It's 1234567 or 3.14159e-10 — don't\n\n\tdef f(x):\n    return x**2  # ok\r\n\r\n  ",
    "naïve café ÀÉÎ 中文字符 日本語テスト 한국어 😀👩‍👩‍👧 Ωμέγα",
    "   leading   spaces\t\ttabs\n \n x",
    "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant",
    "I'LL you'Re WE'VE x'D 'sfoo",
    "١٢٣ ½ Ⅻ ² 1 2  33   444\n5555",
    "a\u00a0b\u2003c\u3000d \u200b e\u0085f\x00\x01\x7f",
    '{"k": [1,2,{}]} <html></html> $x^2+y_1$ `code` ~|~ a/b//c\n/d',
    "camelCaseHTTPServer XMLHttp ñandÚ ǅ ends with spaces   ",
    "".join(map(chr, range(32, 400))),
    "!!!???...\n\n...'''\"\"\" हिन्दी ไทย العربية עברית",
    "\n",
    "  \n  \n\n",
)


@pytest.fixture(scope="module")
def header() -> GgufHeader:
    return read_gguf_header(smollm_path())


def rebuilt(header: GgufHeader, **changes: Any) -> Tokenizer:
    values = {**header.metadata, **{f"tokenizer.ggml.{key}": value for key, value in changes.items()}}
    values = {key: value for key, value in values.items() if value is not None}
    files = tokenizer_files(replace(header, metadata=values))
    return Tokenizer.from_str(files["tokenizer.json"].decode())


def vocabulary_file(path: Path, pre: str, add_bos: bool) -> Path:
    """SmolLM2's metadata without its tensors, under another pre-tokenizer."""
    with smollm_path().open("rb") as file:
        raw = file.read(1_800_000)
    raw = raw[: raw.index(b"token_embd.weight") - 8]
    raw = raw[:8] + bytes(8) + raw[16:]
    old, flag = b"\x06" + bytes(7) + b"smollm", b"tokenizer.ggml.add_bos_token\x07\0\0\0"
    assert raw.count(old) == 1 and raw.count(flag + b"\0") == 1
    raw = raw.replace(old, len(pre).to_bytes(8, "little") + pre.encode()).replace(flag + b"\0", flag + bytes([add_bos]))
    path.write_bytes(raw)
    return path


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "default", "qwen2", "llama-bpe", "tekken"])
def test_tokens_are_those_of_llama_cpp(header: GgufHeader, tmp_path: Path, pre: str) -> None:
    llama_cpp = pytest.importorskip("llama_cpp")
    add_bos = pre == "llama-bpe"
    path = vocabulary_file(tmp_path / "v.gguf", pre, add_bos)
    theirs = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    ours = rebuilt(header, pre=pre, add_bos_token=add_bos)
    for text in TEXTS:
        expected = theirs.tokenize(text.encode(), add_bos=True, special=True)
        assert ours.encode(text).ids == expected, (pre, text)
        assert (expected[0] == 1) is (add_bos or text.startswith("<|im_start|>"))
    theirs.close()


def test_all_texts_survive_the_round_trip(header: GgufHeader) -> None:
    tokenizer = rebuilt(header)
    for text in TEXTS[:3]:
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.decode(tokenizer.encode("<|im_start|>hi<|im_end|>").ids) == "hi"
    assert tokenizer.get_vocab_size() == 49152


def test_names_for_one_rule_agree_and_qwen_composes(header: GgufHeader) -> None:
    assert PRE_TOKENIZERS["deepseek-r1-qwen"] == PRE_TOKENIZERS["qwen2"]
    assert PRE_TOKENIZERS["llama-bpe"] == PRE_TOKENIZERS["llama3"] == PRE_TOKENIZERS["llama-v3"]
    qwen, gpt2 = rebuilt(header, pre="qwen2"), rebuilt(header, pre="gpt-2")
    assert qwen.encode("e\u0301").ids == qwen.encode("é").ids
    assert gpt2.encode("e\u0301").ids != gpt2.encode("é").ids


def test_rules_are_those_of_transformers() -> None:
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    assert PRE_TOKENIZERS["qwen2"].splits == (PRETOKENIZE_REGEX,)
    assert PRE_TOKENIZERS["llama-bpe"].splits == (PRETOKENIZE_REGEX.replace(r"|\p{N}|", r"|\p{N}{1,3}|"),)


@pytest.mark.parametrize(
    ("changes", "around"),
    [
        ({}, ([], [])),
        ({"add_bos_token": None}, ([], [])),
        ({"add_bos_token": True}, ([1], [])),
        ({"add_eos_token": True}, ([], [2])),
        ({"add_bos_token": True, "add_eos_token": True}, ([1], [2])),
        ({"add_bos_token": True, "bos_token_id": None}, ([], [])),
        ({"pre": "llama-bpe", "add_bos_token": None}, ([1], [])),
        ({"pre": "llama-bpe"}, ([], [])),
    ],
)
def test_what_is_put_around_a_text(
    header: GgufHeader, changes: dict[str, Any], around: tuple[list[int], list[int]]
) -> None:
    tokenizer = rebuilt(header, **changes)
    plain = tokenizer.encode("a cat", add_special_tokens=False).ids
    assert tokenizer.encode("a cat").ids == [*around[0], *plain, *around[1]]
    assert tokenizer.encode("a cat", "a cat").ids == 2 * [*around[0], *plain, *around[1]]


def test_transformers_loads_it(header: GgufHeader, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    checkpoint = open_gguf(smollm_path())
    for name, content in checkpoint.side_files.items():
        (tmp_path / name).write_bytes(content)
    (tmp_path / "config.json").write_text(checkpoint.config_text)
    loaded, ours = AutoTokenizer.from_pretrained(tmp_path), rebuilt(header)
    for text in TEXTS:
        assert loaded(text)["input_ids"] == ours.encode(text).ids
    assert (loaded.bos_token, loaded.eos_token, loaded.pad_token) == ("<|im_start|>", "<|im_end|>", "<|im_end|>")
    chat = [{"role": "system", "content": "S"}, {"role": "user", "content": "U"}]
    text = loaded.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n<|im_start|>assistant\n"


def test_kinds_of_tokens(tmp_path: Path) -> None:
    """Control tokens are special, user-defined ones found but not special, unused ones only in the vocabulary."""
    values = metadata("llama", tokenizer__ggml__eot_token_id=TOKENS.index("<think>"))
    checkpoint = open_gguf(write(tmp_path / "m.gguf", "llama", values, tensors("llama")))
    raw = json.loads(checkpoint.side_files["tokenizer.json"])
    added = {entry["content"]: (entry["id"], entry["special"]) for entry in raw["added_tokens"]}
    expected = {"<s>": True, "</s>": True, "<think>": False}
    assert added == {token: (TOKENS.index(token), special) for token, special in expected.items()}
    tokenizer = Tokenizer.from_str(checkpoint.side_files["tokenizer.json"].decode())
    assert tokenizer.get_vocab() == {token: index for index, token in enumerate(TOKENS)}
    ids = tokenizer.encode("<think>the the</s>").ids
    assert [TOKENS[i] for i in ids] == ["<think>", "the", "Ġth", "e", "</s>"]
    assert tokenizer.decode(ids) == "<think>the the"
    config = json.loads(checkpoint.side_files["tokenizer_config.json"])
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 512,
        "bos_token": "<s>",
        "eos_token": "</s>",
        "chat_template": values["tokenizer.chat_template"],
    }
    generation = json.loads(checkpoint.side_files["generation_config.json"])
    assert generation == {
        "bos_token_id": TOKENS.index("<s>"),
        "eos_token_id": [TOKENS.index(t) for t in ("</s>", "<think>")],
    }


def test_sampling_values_become_the_generation_config(tmp_path: Path) -> None:
    sampling = {"general__sampling__temp": 0.6, "general__sampling__top_k": 20}
    checkpoint = open_gguf(write(tmp_path / "m.gguf", "llama", metadata("llama", **sampling), tensors("llama")))
    generation = json.loads(checkpoint.side_files["generation_config.json"])
    assert (generation["do_sample"], generation["temperature"], generation["top_k"]) == (True, 0.6, 20)


def test_a_token_that_a_template_cannot_hold_is_refused(header: GgufHeader) -> None:
    tokens = [*header.metadata["tokenizer.ggml.tokens"]]
    tokens[1] = "<s>:1"
    with pytest.raises(CheckpointError, match="cannot be put around"):
        rebuilt(header, tokens=tokens, add_bos_token=True)
