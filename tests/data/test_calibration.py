from __future__ import annotations

import hashlib
import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.data import texts
from r1quant.data import windows as calibration
from r1quant.data.texts import bundled, check
from r1quant.data.windows import evaluation_text, load, pack
from r1quant.errors import CalibrationError, CheckpointError, MissingDependency, R1QuantError
from tests.toy_tokenizer import make

EOS = 1


def lines(path: Path, *entries: object) -> str:
    path.write_text("".join(json.dumps(e) + "\n" for e in entries), "utf-8")
    return str(path)


def joined(documents: list[list[int]]) -> list[int]:
    """The stream that packing stands for, written down the slow way."""
    stream: list[int] = []
    for document in filter(None, documents):
        if stream and stream[-1] != EOS:
            stream = [*stream, EOS]
        stream = stream + document
    return stream


@given(
    documents=st.lists(st.lists(st.integers(0, 50), max_size=20), max_size=12),
    windows=st.integers(1, 6),
    seq_len=st.integers(1, 17),
)
def test_windows_are_a_prefix_of_the_stream(documents: list[list[int]], windows: int, seq_len: int) -> None:
    packed = pack(iter(documents), windows, seq_len, EOS)
    stream = joined(documents)
    assert packed.tokens.dtype == np.int64
    assert packed.tokens.shape == (min(windows, len(stream) // seq_len), seq_len)
    assert packed.tokens.ravel().tolist() == stream[: packed.tokens.size]  # so nothing is padded either
    assert packed.seen <= len(stream)
    assert packed.seen == len(stream) or packed.seen >= windows * seq_len
    assert packed.documents <= len(documents)


def test_documents_counts_those_with_tokens_in_the_windows() -> None:
    documents = [[5, 5, 5], [], [6, 6, 6], [7, 7, 7]]
    assert pack(documents, 9, 3, EOS).documents == 3
    assert pack(documents, 9, 4, EOS).documents == 2  # the third document is the ragged tail
    assert pack(documents, 1, 4, EOS).documents == 1
    assert pack(documents, 1, 4, None).documents == 2
    assert pack([[5, EOS], [6]], 1, 3, EOS).tokens.tolist() == [[5, EOS, 6]]


@given(words=st.lists(st.sampled_from(["the", "answer", "größer", "\n\n", "  ", "<think>", "4", "😀"]), max_size=400))
def test_a_text_file_gives_its_first_tokens(
    toy: Tokenizer, tmp_path_factory: pytest.TempPathFactory, words: list[str]
) -> None:
    path = tmp_path_factory.mktemp("text") / "a.txt"
    path.write_bytes(" ".join(words).encode())
    stream = toy.encode(" ".join(words))
    if len(stream) < 8:
        with pytest.raises(CalibrationError):
            load(str(path), toy, 3, 8, 0)
        return
    result = load(str(path), toy, 3, 8, seed=5)
    assert result.tokens.ravel().tolist() == stream[: result.tokens.size]
    assert (result.source, result.documents, result.requested) == ("a.txt", 1, 3)


def test_a_long_text_is_read_only_as_far_as_needed_and_gives_the_same_tokens(
    toy: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "the größer answer to the question, 42 times.\n" * 3000
    path = tmp_path / "long.txt"
    path.write_bytes(text.encode())
    encoded: list[int] = []
    encode = toy.encode

    def counting(self: Tokenizer, text: str) -> list[int]:
        encoded.append(len(text))
        return encode(text)

    monkeypatch.setattr(type(toy), "encode", counting)
    result = load(str(path), toy, 4, 64, 0)
    assert result.tokens.ravel().tolist() == encode(text)[:256]
    assert max(encoded) < len(text) / 10


def test_the_hash_covers_tokens_and_shape(toy: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("the answer to the question " * 50)
    a, b = load(str(path), toy, 4, 16, 0), load(str(path), toy, 4, 16, 1)
    assert a.sha256 == b.sha256  # a text file is not shuffled
    assert load(str(path), toy, 8, 8, 0).sha256 != a.sha256
    assert a.sha256 == hashlib.sha256(b"4x16\n" + a.tokens.astype("<i8").tobytes()).hexdigest()
    assert not np.any(a.tokens < 0)


def test_json_lines_are_shuffled_by_the_seed_only_where_there_are_more_than_needed(
    toy: Tokenizer, tmp_path: Path
) -> None:
    path = lines(tmp_path / "a.jsonl", *({"text": f"{i} the answer to question {i}"} for i in range(40)))
    few = [load(path, toy, 2, 16, seed) for seed in (0, 0, 1)]
    assert few[0].sha256 == few[1].sha256 != few[2].sha256
    everything = [load(path, toy, 1000, 16, seed) for seed in (0, 1)]
    assert everything[0].sha256 == everything[1].sha256
    assert everything[0].windows < everything[0].requested == 1000
    assert toy.decode(everything[0].tokens[0]).startswith("0 the answer")
    assert few[0].documents < everything[0].documents <= 40


def test_messages_keep_their_reasoning(toy: Tokenizer, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>\nhm\n</think>\n\n4"}]
    path = lines(tmp_path / "a.jsonl", {"messages": turns}, {"messages": turns})
    result = load(path, toy, 1, len(toy.encode(toy.render_trace(turns))) * 2, 0)
    assert toy.decode(result.tokens[0]) == toy.render_trace(turns) * 2  # one eos between them, not two


def test_empty_lines_are_skipped(toy: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "abcd"}\n\n   \n{"text": "efgh"}', "utf-8")
    assert toy.decode(load(str(path), toy, 1, 9, 0).tokens[0]).count("<eos>") == 1


@pytest.mark.parametrize(
    ("line", "part"),
    [
        (b"{not json}", "is not valid JSON"),
        (b"[" * 100_000, "is not valid JSON"),
        (b'"just a string"', "neither text nor messages"),
        (b'{"content": "x"}', "neither text nor messages"),
        (b'{"text": 7}', "neither a text nor a list of messages"),
        (b'{"messages": []}', "neither a text nor a list of messages"),
        (b'{"messages": [{"role": "user", "content": 4}]}', "neither a text nor a list of messages"),
        (b'{"messages": ["hello"]}', "neither a text nor a list of messages"),
        (b'{"text": "\xff"}', "is not UTF-8"),
    ],
)
def test_bad_lines_are_named(toy: Tokenizer, tmp_path: Path, line: bytes, part: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n' + line + b"\n")
    for attempt in (lambda: load(str(path), toy, 1, 2, 0), lambda: check(str(path))):
        with pytest.raises(CalibrationError) as caught:
            attempt()
        assert f"{path}:2 " in caught.value.message
        assert part in caught.value.message


def test_bad_files(toy: Tokenizer, tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    (tmp_path / "cut.txt").write_bytes("größ".encode()[:-1])
    (tmp_path / "empty.txt").write_bytes(b" \n")
    (tmp_path / "none.jsonl").write_bytes(b"")
    (tmp_path / "one.json").write_bytes(b"[]")
    for name, part in {
        "latin.txt": "not UTF-8",
        "cut.txt": "not UTF-8",
        "none.jsonl": "empty",
        "empty.txt": "empty",
        "one.json": "one JSON value",
        "missing.txt": "does not exist",
        ".": "is a folder",
    }.items():
        with pytest.raises(CalibrationError, match=part) as caught:
            check(str(tmp_path / name))
        assert caught.value.hint
        with pytest.raises(CalibrationError):
            load(str(tmp_path / name), toy, 2, 64, 0)
    for spec in ("data/missing.txt", "hub:", "hub:a:b:c:d"):
        with pytest.raises(CalibrationError):
            check(spec)


def test_too_little_text_names_the_length_that_fits(toy: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcdefgh")
    count = len(toy.encode("abcdefgh"))
    with pytest.raises(CalibrationError) as caught:
        load(str(path), toy, 1, 512, 0)
    assert f"gives {count} tokens" in caught.value.message
    assert f"at most {count}" in caught.value.hint
    assert load(str(path), toy, 1, count, 0).windows == 1
    with pytest.raises(CalibrationError, match="0 windows"):
        load(str(path), toy, 0, 4, 0)


def test_tokens_beyond_the_vocabulary_are_refused(toy: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("abcd<think>efgh")
    assert load(str(path), toy, 1, 9, 0, vocabulary=toy.size).windows == 1
    with pytest.raises(CheckpointError, match="makes token"):
        load(str(path), toy, 1, 9, 0, vocabulary=toy.backend.token_to_id("<think>"))


def test_messages_need_a_template_except_in_the_bundled_set(tmp_path: Path) -> None:
    plain = make({"eos_token": "<eos>"})
    path = lines(tmp_path / "a.jsonl", {"messages": [{"role": "user", "content": "hello"}]})
    with pytest.raises(CalibrationError, match="no chat template"):
        load(path, plain, 1, 2, 0)
    assert load(None, plain, 2, 64, 0).windows == 2


def test_bundled_sets_load_and_their_files_match_the_manifest(toy: Tokenizer) -> None:
    first, second = load(None, toy, 4, 128, 0), evaluation_text(None, toy, 4, 128)
    assert first.windows == second.windows == 4
    assert first.source == "the bundled calib/default.jsonl"
    assert first.sha256 != second.sha256
    manifest = json.loads(bundled("manifest.json").read_text("utf-8"))
    for name, entry in manifest["files"].items():
        raw = bundled(name).read_bytes()
        assert hashlib.sha256(raw).hexdigest() == entry["sha256"]
        assert (len(raw), raw.count(b"\n")) == (entry["bytes"], entry["documents"])
        assert entry["licence"]
        assert entry["source"]
    with pytest.raises(CalibrationError, match="bundled file"):
        bundled("other.jsonl")


def test_bundled_sets_are_disjoint_and_hold_no_held_out_problem() -> None:
    seen: list[set[str]] = []
    for name in (texts.DEFAULT, texts.HELD_OUT):
        rows = [json.loads(line) for line in bundled(name).read_text("utf-8").splitlines()]
        keys = {row.get("text") or row["messages"][0]["content"] for row in rows}
        keys |= {row["prompt"] for row in rows if "prompt" in row}
        assert all("</think>" in row["messages"][1]["content"] for row in rows if "messages" in row)
        seen.append(keys)
    assert not seen[0] & seen[1]
    held = Path(calibration.__file__).parents[1] / "tinyr1" / "heldout.jsonl"
    if held.is_file():
        asked = {json.loads(line)["problem"] for line in held.read_text("utf-8").splitlines()}
        assert not asked & {key.rpartition("\n")[0] for keys in seen for key in keys}


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the datasets package reads without a network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = tmp_path / "set"
    folder.mkdir()
    lines(folder / "train.jsonl", *({"text": f"the answer to question {i}", "n": i} for i in range(30)))
    return folder


def test_a_dataset_is_streamed_in_the_seed_s_order(toy: Tokenizer, dataset: Path) -> None:
    pytest.importorskip("datasets")
    check(f"hub:{dataset}")
    a, b, c = (load(f"hub:{dataset}", toy, 2, 16, seed) for seed in (0, 0, 1))
    assert a.sha256 == b.sha256 != c.sha256
    assert load(f"hub:{dataset}:train:text", toy, 2, 16, 0).sha256 == a.sha256
    assert "question" in toy.decode(a.tokens.ravel())
    for spec, part in {
        f"hub:{dataset}:test": "cannot be read",
        f"hub:{dataset}:train:other": "no column other",
        f"hub:{dataset}:train:n": "column n holds neither",
        f"hub:{dataset}/nowhere": "cannot be read",
    }.items():
        with pytest.raises(CalibrationError, match=part):
            load(spec, toy, 2, 16, 0)


def test_owner_and_name_is_a_dataset_and_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for spec in ("owner/name", "hub:name"):
        with pytest.raises(MissingDependency) as caught:
            check(spec)
        assert caught.value.hint == "pip install 'r1quant[datasets]'"
        assert isinstance(caught.value, R1QuantError)


def test_a_text_keeps_the_tokens_it_was_written_in(toy: Tokenizer, tmp_path: Path) -> None:
    """A model may write other tokens than encoding gives; where they mean something else, the text decides."""
    usual = toy.encode("the answer")
    single = [toy.encode(letter)[0] for letter in "the answer"]
    assert toy.decode(single) == toy.decode(usual) and len(single) > len(usual)
    head = {texts.HEADER: 1, "model": "toy"}
    path = lines(tmp_path / "a.jsonl", head, {"text": "the answer", "tokens": single})
    assert list(calibration.documents(path, toy)) == [single]
    assert texts.header(Path(path)) == head
    foreign: list[dict[str, object]] = [
        {"tokens": single[::-1]},
        {"tokens": [999_999]},
        {"tokens": 12},
        {"tokens": [-1]},
        {"tokens": [True]},
    ]
    path = lines(tmp_path / "b.jsonl", *({"text": "the answer", **other} for other in foreign))
    assert list(calibration.documents(path, toy)) == [usual] * len(foreign)
    assert texts.header(Path(path)) is None
    check(path)
