"""A small tokenizer with the chat template of a reasoning model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from r1quant.checkpoint.tokenizer import Tokenizer

BOS, EOS, USER, ASSISTANT = "<bos>", "<eos>", "<user>", "<assistant>"
R1 = (
    "{{ bos_token }}{%- for m in messages %}"
    "{%- if m['role'] == 'user' %}{{ '<user>' + m['content'] }}"
    "{%- elif m['role'] == 'assistant' %}"
    "{{ '<assistant>' + m['content'].split('</think>')[-1] + eos_token }}"
    "{%- else %}{{ raise_exception('unknown role ' + m['role']) }}{%- endif %}"
    "{%- endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def tokenizer_json() -> bytes:
    """A byte-level BPE of 300 entries, special tokens first, `<think>` and `</think>` after the others."""
    from tokenizers import AddedToken, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as Backend
    from tokenizers import decoders as d

    backend = Backend(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = d.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[BOS, EOS, USER, ASSISTANT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(["the answer to the question is the number that the reader wants"] * 9, trainer)
    backend.add_tokens([AddedToken(t, normalized=False, special=False) for t in ("<think>", "</think>")])
    return str(backend.to_str()).encode()


RAW = tokenizer_json()
CONFIG = {"bos_token": BOS, "eos_token": {"content": EOS, "special": True}, "unk_token": None, "chat_template": R1}


def make(config: Mapping[str, Any] = CONFIG, raw: bytes = RAW, **files: str) -> Tokenizer:
    """A tokenizer from tokenizer.json, tokenizer_config.json and other files; `chat_template__jinja` names a file."""
    named = {name.replace("__", "."): text.encode() for name, text in files.items()}
    return Tokenizer.from_files(
        {"tokenizer.json": raw, "tokenizer_config.json": json.dumps(config).encode(), **named}, "toy"
    )
