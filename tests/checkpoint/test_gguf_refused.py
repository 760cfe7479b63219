"""GGUF headers: read as the gguf package reads them, and refused with a message where they cannot be used."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from r1quant.checkpoint.gguf.header import read_gguf_header
from r1quant.checkpoint.gguf.source import open_gguf
from r1quant.errors import CheckpointError

from .gguf_files import HIDDEN, TOKENS, metadata, tensors, write


def test_the_header_is_read_as_the_gguf_package_reads_it(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf", "qwen2", metadata("qwen2", x__alignment_test=[1.5, 2.0]), tensors("qwen2"))
    header, reader = read_gguf_header(path), gguf.GGUFReader(path)
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            ours, theirs = header.metadata[key], field.contents()
            assert ours == (pytest.approx(theirs, rel=1e-7) if isinstance(theirs, float) else theirs), key
    for tensor in reader.tensors:
        stored = header.tensors[tensor.name]
        assert (stored.offset, stored.nbytes, stored.kind) == (tensor.data_offset, tensor.n_bytes, tensor.tensor_type)
        assert list(stored.shape) == tensor.shape.tolist()[::-1]


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "architecture": ({"general__architecture": "gemma2"}, "'gemma2', which is not supported"),
    "experts": ({"ARCH__expert_count": 8}, "mixture of experts"),
    "adapter": ({"general__type": "adapter"}, "'adapter', not a model"),
    "parts": ({"split__count": 3}, "one of 3 parts"),
    "no layers": ({"ARCH__block_count": 0}, "block_count is 0"),
    "too many layers": ({"ARCH__block_count": 4_000_000_000}, "block_count is 4000000000"),
    "missing key": ({"ARCH__embedding_length": None}, "embedding_length is missing"),
    "wrong kind": ({"ARCH__context_length": "long"}, "context_length is 'long'"),
    "per layer": ({"ARCH__attention__head_count": [4, 2]}, "head_count is"),
    "uneven heads": ({"ARCH__attention__head_count_kv": 3}, "cannot share 3 heads"),
    "epsilon": ({"ARCH__attention__layer_norm_rms_epsilon": float("nan")}, "rms_epsilon is nan"),
    "partial rotation": ({"ARCH__rope__dimension_count": 8}, "dimension_count is 8"),
    "other values": ({"ARCH__attention__value_length": 8}, "value_length is 8"),
    "other scaling": ({"ARCH__rope__scaling__type": "longrope"}, "'longrope'"),
    "wrong sizes": ({"ARCH__feed_forward_length": 97}, "shape"),
    "token id": ({"tokenizer__ggml__eos_token_id": 999}, "eos_token_id is 999, beyond"),
    "no scores": ({"tokenizer__ggml__model": "llama"}, "scores is not a list"),
    "odd scores": (
        {"tokenizer__ggml__model": "llama", "tokenizer__ggml__scores": [float("inf")] * len(TOKENS)},
        "scores are not all numbers",
    ),
    "other tokenizer": ({"tokenizer__huggingface__json": "[]"}, "json does not fit"),
    "tokenizer kind": ({"tokenizer__ggml__model": "rwkv"}, "a 'rwkv' tokenizer"),
    "rule": ({"tokenizer__ggml__pre": "martian"}, "pre is 'martian'"),
    "no rule": ({"tokenizer__ggml__pre": None}, "pre is missing"),
    "fewer tokens": ({"tokenizer__ggml__tokens": TOKENS[:-1]}, "but the embedding has"),
    "twice": ({"tokenizer__ggml__tokens": [*TOKENS[:-1], TOKENS[0]]}, "appears twice"),
    "types": ({"tokenizer__ggml__token_type": [1, 2]}, "one entry a token"),
    "merge": ({"tokenizer__ggml__merges": ["t h", "a b"]}, "the merge 'a b'"),
    "merge spelling": ({"tokenizer__ggml__merges": ["th"]}, "the merge 'th'"),
    "template": ({"tokenizer__chat_template": 7}, "chat_template is 7"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_metadata(tmp_path: Path, case: str) -> None:
    changes, message = REFUSED[case]
    values = metadata("llama", **changes)
    arch = values.pop("general.architecture", "llama")
    path = write(tmp_path / "m.gguf", arch, values, tensors("llama"))
    with pytest.raises(CheckpointError, match=message.replace("(", r"\(")) as caught:
        open_gguf(path)
    assert caught.value.hint


def test_refused_tensors(tmp_path: Path) -> None:
    def refused(arch: str, arrays: dict[str, np.ndarray], message: str) -> None:
        with pytest.raises(CheckpointError, match=message):
            open_gguf(write(tmp_path / "m.gguf", arch, metadata(arch), arrays))

    whole = tensors("llama")
    refused("llama", {n: a for n, a in whole.items() if n != "blk.1.ffn_up.weight"}, "blk.1.ffn_up.weight is missing")
    refused("llama", whole | {"blk.0.extra.weight": np.ones(4, np.float32)}, "blk.0.extra.weight' has no place")
    refused("llama", whole | {"blk.0.attn_norm.weight": np.ones((3, HIDDEN), np.float32)}, "shape")
    refused("llama", whole | {"blk.0.attn_norm.weight": np.ones(HIDDEN, np.int32)}, "type I32 cannot be read")
    refused("llama", tensors("llama", biases=("attn_q", "attn_k")), "only some of")
    refused("qwen3", tensors("qwen3", biases=("ffn_gate", "ffn_up", "ffn_down")), "MLP has biases")
    refused("qwen2", tensors("qwen2"), "biases of attn_q, attn_k and attn_v are missing")
    refused("llama", {n: a for n, a in whole.items() if n != "token_embd.weight"}, "token_embd.weight is missing")


def test_damaged_files_cost_a_message_and_no_more(tmp_path: Path) -> None:
    """Cut anywhere, or with any count or byte changed, a file is opened or refused, and at once."""
    good = write(tmp_path / "m.gguf", "llama", metadata("llama"), tensors("llama"))
    whole = good.read_bytes()
    header = min(info.offset for info in open_gguf(good).tensors.values())
    bad = tmp_path / "bad.gguf"
    for cut in [*range(0, header, 61), header, len(whole) - 1]:
        bad.write_bytes(whole[:cut])
        with pytest.raises(CheckpointError):
            open_gguf(bad)
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(400):
        changed = bytearray(whole)
        at, width = int(rng.integers(0, header - 8)), int(rng.choice([1, 4, 8]))
        changed[at : at + width] = bytes([int(rng.integers(0, 256))]) if width == 1 else b"\xff" * width
        bad.write_bytes(changed)
        try:
            open_gguf(bad)
        except CheckpointError as error:
            assert error.hint and "\n" not in error.message
            refused += 1
    assert refused > 200


def test_huge_counts_are_refused_before_they_are_used(tmp_path: Path) -> None:
    def entry(kind: int, rest: bytes) -> bytes:
        key = b"general.x"
        return len(key).to_bytes(8, "little") + key + kind.to_bytes(4, "little") + rest

    huge = (1 << 62).to_bytes(8, "little")
    cases = [
        entry(8, huge), entry(9, (0).to_bytes(4, "little") + huge), entry(9, (8).to_bytes(4, "little") + huge),
        entry(9, (9).to_bytes(4, "little") + huge), entry(13, huge), huge,
    ]  # fmt: skip
    for case in cases:
        path = tmp_path / "m.gguf"
        path.write_bytes(b"GGUF" + (3).to_bytes(4, "little") + huge + huge + case)
        with pytest.raises(CheckpointError):
            open_gguf(path)


@pytest.mark.parametrize(("content", "message"), [(b"", "not a GGUF"), (b"PK\3\4" * 20, "not a GGUF")])
def test_not_gguf(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        open_gguf(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="cannot be read"):
        open_gguf(tmp_path / "absent.gguf")


def test_big_endian_and_version_1_are_refused(tmp_path: Path) -> None:
    for version in (b"\0\0\0\3", b"\1\0\0\0"):
        (tmp_path / "m.gguf").write_bytes(b"GGUF" + version + bytes(32))
        with pytest.raises(CheckpointError, match="version"):
            open_gguf(tmp_path / "m.gguf")
