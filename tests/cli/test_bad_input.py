"""Whatever is wrong with what a user gives is said in one line with a remedy, before any work, and leaves nothing."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest

from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.jobs.quantize import calibrated
from tests.conftest import QUICK, Run

Refused = Callable[..., list[str]]


def forbidden(*_: object, **__: object) -> None:
    raise AssertionError("work was begun")


@pytest.fixture
def refused(run: Run, in_tmp: Path, monkeypatch: pytest.MonkeyPatch) -> Refused:
    """refused(code, model, ...) runs quantize, and checks that it stops at once and leaves nothing behind."""

    def call(code: int, *words: object, planned: bool = True) -> list[str]:
        before = sorted(in_tmp.rglob("*"))
        with monkeypatch.context() as m:
            m.setattr(calibrated, "quantize_layers", forbidden)
            if planned:
                m.setattr(Checkpoint, "survey", forbidden)
            options = [str(word) for word in words]
            ran = run("quantize", *(() if "--preset" in options else QUICK), *options, "-o", "out")
        assert ran.code == code, ran.err
        assert ran.out == ""
        assert sorted(in_tmp.rglob("*")) == before
        return ran.error

    return call


@pytest.fixture
def shards(sharded: Path, in_tmp: Path) -> Path:
    return shutil.copytree(sharded, in_tmp / "sharded")


class Usage(NamedTuple):
    """As shutil.disk_usage gives it, in bytes."""

    total: int
    used: int
    free: int


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))


def test_a_missing_shard(refused: Refused, shards: Path) -> None:
    (shards / "model-00002-of-00003.safetensors").unlink()
    what, remedy = refused(3, shards)
    assert "shard model-00002-of-00003.safetensors is missing" in what and "download" in remedy


@pytest.mark.parametrize("kept", [slice(-1), slice(-1000), slice(100), slice(4)])
def test_a_truncated_shard(refused: Refused, shards: Path, kept: slice) -> None:
    path = shards / "model-00003-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[kept])
    what, remedy = refused(3, shards)
    assert "model-00003-of-00003.safetensors is truncated" in what and "download it again" in remedy


@pytest.mark.parametrize(
    "name", ["../x.safetensors", "/etc/x.safetensors", "a/b.safetensors", "..\\x.safetensors", ".."]
)
def test_an_index_that_leads_out_of_the_folder(refused: Refused, shards: Path, name: str) -> None:
    edit(shards / "model.safetensors.index.json", lambda v: v["weight_map"].update({"lm_head.weight": name}))
    what, _ = refused(3, shards)
    assert "which is not a safetensors file of this folder" in what and repr(name) in what


def test_an_index_that_names_the_wrong_shard(refused: Refused, shards: Path) -> None:
    wrong = "model-00001-of-00003.safetensors"
    edit(shards / "model.safetensors.index.json", lambda v: v["weight_map"].update({"lm_head.weight": wrong}))
    assert "but it does not" in refused(3, shards)[0]


@pytest.mark.parametrize("content", ["[]", '{"weight_map": []}', '{"weight_map": {"a": 1}}', "{", "[" * 100_000])
def test_an_index_that_is_none(refused: Refused, shards: Path, content: str) -> None:
    (shards / "model.safetensors.index.json").write_text(content)
    assert "model.safetensors.index.json" in refused(3, shards)[0]


def test_shards_without_their_index(refused: Refused, shards: Path) -> None:
    (shards / "model.safetensors.index.json").unlink()
    assert "has 3 safetensors files and no model.safetensors.index.json" in refused(3, shards)[0]


def test_a_pickle(refused: Refused, copied: Path) -> None:
    (copied / "model.safetensors").rename(copied / "pytorch_model.bin")
    what, remedy = refused(3, copied)
    assert "holds a pickle checkpoint" in what and "safetensors" in remedy


def test_no_model_at_all(refused: Refused, in_tmp: Path) -> None:
    (in_tmp / "empty").mkdir()
    assert "has no config.json" in refused(3, "empty")[0]
    (in_tmp / "empty" / "config.json").write_text("{}")
    assert "has no safetensors files" in refused(3, "empty")[0]
    assert "there is no model 'absent'" in refused(3, "absent")[0]


@pytest.mark.parametrize("model_type", ["mamba2", None, 3, ["llama"], "llama\nllama"])
def test_an_unknown_architecture(refused: Refused, copied: Path, model_type: object) -> None:
    edit(copied / "config.json", lambda v: v.update(model_type=model_type))
    what, remedy = refused(3, copied)
    assert "is not a supported architecture" in what and "llama" in remedy and "qwen3" in remedy


@pytest.mark.parametrize("config", ["", "{", "[]", "\x00", '{"model_type": "llama"}', "[" * 100_000, "\udcff"])
def test_a_config_that_is_none(refused: Refused, copied: Path, config: str) -> None:
    (copied / "config.json").write_bytes(config.encode("utf-8", "surrogateescape"))
    assert "config.json" in refused(3, copied)[0]


@pytest.mark.parametrize(
    ("key", "value"),
    [("hidden_size", 128), ("intermediate_size", 64), ("num_key_value_heads", 4), ("head_dim", 8), ("vocab_size", 513)],
)
def test_a_config_of_another_size(refused: Refused, copied: Path, key: str, value: int) -> None:
    edit(copied / "config.json", lambda v: v.update({key: value}))
    what, remedy = refused(3, copied)
    assert "config.json implies" in what and remedy == "download the model again"


@pytest.mark.parametrize("value", [0, -1, 1.5, "2", True, None, 10**9, 10**30, []])
@pytest.mark.parametrize("key", ["num_hidden_layers", "vocab_size"])
def test_a_config_with_nonsense_for_a_size(refused: Refused, copied: Path, key: str, value: object) -> None:
    edit(copied / "config.json", lambda v: v.update({key: value}))
    what, _ = refused(3, copied)
    assert key in what or "config.json implies" in what


def test_layers_that_are_not_there(refused: Refused, copied: Path) -> None:
    edit(copied / "config.json", lambda v: v.update(num_hidden_layers=3))
    assert "model.layers.2." in refused(3, copied)[0]
    edit(copied / "config.json", lambda v: v.update(num_hidden_layers=1))
    assert "model.layers.1." in refused(3, copied)[0]


def layered(count: object, config: dict[str, Any]) -> None:
    config["num_hidden_layers"] = count


def test_inspect_does_not_stumble_either(run: Run, copied: Path) -> None:
    for value in (None, "2", 0, 1 << 31):
        edit(copied / "config.json", partial(layered, value))
        ran = run("inspect", copied)
        assert ran.code == 3 and "num_hidden_layers" in ran.error[0]
    edit(copied / "config.json", lambda v: v.update(num_hidden_layers=3))
    assert "is missing" in run("inspect", copied, "--json").json["problems"][0]


@pytest.mark.parametrize(("group", "fits"), [("64", "32, 16, -1"), ("128", "32, 16, -1")])
def test_a_group_size_that_does_not_divide(refused: Refused, llama: Path, group: str, fits: str) -> None:
    what, remedy = refused(2, llama, "--group-size", group)
    assert f"group size {group} does not divide" in what and "input columns of model.layers.0." in what
    assert f"one that does: {fits} (" in remedy


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--bits", "5.5"], "bits '5.5' is not supported"),
        (["--bits", "9"], "bits 9 is not supported"),
        (["--bits", "-4"], "bits -4 is not supported"),
        (["--bits", "²"], "bits '²' is not supported"),
        (["--bits", ""], "bits '' is not supported"),
        (["--group-size", "48"], "group-size 48 is not supported"),
        (["--group-size", "0"], "group-size 0 is not supported"),
        (["--damping", "1.5"], "damping is 1.5"),
        (["--damping", "-0.1"], "damping is -0.1"),
        (["--damping", "nan"], "damping is nan"),
        (["--damping", "much"], "damping is 'much'"),
        (["--samples", "0"], "calibration needs at least one sample of two tokens; samples is 0"),
        (["--guided-share", "0"], "guided-share is 0.0"),
        (["--corrected-share", "0"], "corrected-share is 0.0"),
        (["--guided-share", "1.01"], "guided-share is 1.01"),
        (["--guided-share", "nan"], "guided-share is nan"),
        (["--continued", "-0.1"], "continued is -0.1"),
        (["--continued", "nan"], "continued is nan"),
        (["--continued", "17"], "continued is 17.0"),
        (["--samples", "-3"], "samples is -3"),
        (["--samples", "many"], "samples is 'many'"),
        (["--seq-len", "1"], "calibration needs at least one sample of two tokens; seq-len is 1"),
        (["--seq-len", "2049"], "seq-len 2049 is longer than the model's 2048 positions"),
        (["--seed", "-1"], "seed is -1"),
        (["--method", "awqq"], "method 'awqq' is not supported"),
        (["--format", "pt"], "format 'pt' is not supported"),
        (["--dtype", "int8"], "dtype 'int8' is not supported"),
        (["--device", "tpu"], "device 'tpu' is not supported"),
        (["--scale-dtype", "half"], "scale-dtype 'half' is not supported"),
        (["--preset", "luck"], "preset 'luck' is not supported"),
        (["--calib", ""], "calib is ''"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_value_that_is_not_possible(refused: Refused, llama: Path, options: list[str], says: str) -> None:
    what, remedy = refused(2, llama, *options)
    assert says in what and remedy


def test_a_device_that_is_not_there(refused: Refused, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    what, remedy = refused(2, llama, "--device", "cuda")
    assert "device 'cuda' is not available here" in what and "--device cpu" in remedy


def test_an_output_that_is_not_empty(refused: Refused, llama: Path, in_tmp: Path) -> None:
    (in_tmp / "out").mkdir()
    (in_tmp / "out" / "notes.txt").write_text("mine")
    what, remedy = refused(2, llama)
    assert f"{in_tmp / 'out'} exists and is not empty" in what and "another --out" in remedy
    (in_tmp / "out" / "notes.txt").unlink()
    (in_tmp / "out").rmdir()
    (in_tmp / "out").write_text("a file")
    refused(2, llama)


def test_an_output_folder_that_cannot_be_written(
    refused: Refused, llama: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode, **_: mode != os.W_OK and access(path, mode))
    what, remedy = refused(2, llama)
    assert what == f"the folder {in_tmp} is not writable" and "another --out" in remedy


def test_an_output_in_a_folder_that_is_not_there(run: Run, llama: Path, in_tmp: Path) -> None:
    for out in ("absent/out", "absent/deep/out"):
        ran = run("quantize", llama, *QUICK, "-o", out)
        assert ran.code == 2 and "does not exist" in ran.error[0]
    ran = run("quantize", llama, *QUICK, "-o", "x" * 300)
    assert ran.code == 3 and "File name too long" in ran.error[0]
    assert list(in_tmp.iterdir()) == []


def test_no_disk_space(refused: Refused, llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**6, 10**6 - 1000, 1000))
    what, remedy = refused(3, llama)
    assert "not enough disk space" in what and "1 kB free" in what and "free some space" in remedy


def test_little_space_for_the_cache(
    run: Run, llama: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It may hold already what is needed, so this is no reason to refuse."""
    cache = tmp_path / "not" / "there"
    monkeypatch.setenv("R1QUANT_CACHE", str(cache))
    free = {tmp_path: 1000}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**9, 0, free.get(Path(path), 10**9)))
    ran = run("plan", llama, *QUICK, "--calib", text_file, "--json", "-o", llama.parent / "out")
    assert ran.code == 0 and ran.json["cache_bytes"] > ran.json["cache_bytes_kept"] > 1000
    (note,) = (warning for warning in ran.json["warnings"] if "R1QUANT_CACHE" in warning)
    assert str(cache) in note and "1 kB are free" in note
    ran = run("plan", llama, *QUICK, "--method", "gptq", "--json", "-o", llama.parent / "out")
    assert ran.json["cache_bytes"] == 0 and not any("cache" in warning for warning in ran.json["warnings"])


def test_no_disk_space_left_when_it_begins(
    refused: Refused, llama: Path, in_tmp: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (in_tmp / "out").mkdir()  # the plan looks at the disk only where nothing has been begun
    stat = SimpleNamespace(f_bavail=1, f_bfree=1, f_blocks=100, f_frsize=512)
    monkeypatch.setattr(os, "statvfs", lambda path: stat)
    assert "not enough disk space" in refused(3, llama)[0]


@pytest.mark.parametrize("bits", [0x7FC0, 0x7F80, 0xFF80])
@pytest.mark.parametrize("name", ["model.layers.1.mlp.up_proj.weight", "model.norm.weight"])
def test_a_weight_that_is_not_a_number(refused: Refused, copied: Path, name: str, bits: int) -> None:
    from r1quant.checkpoint.safetensors import read_header

    path = copied / "model.safetensors"
    info, content = read_header(path)[name], bytearray(path.read_bytes())
    content[info.offset + info.nbytes - 2 : info.offset + info.nbytes] = bits.to_bytes(2, "little")
    path.write_bytes(content)
    what, _ = refused(3, copied, planned=False)
    assert what == f"tensor {name} holds NaN or Inf"


@pytest.mark.parametrize(
    ("text", "says"),
    [("Too short.", "fewer than one window of 32"), ("", "is empty"), (None, "does not exist")],
)
def test_a_calibration_text_that_is_too_short(
    refused: Refused, llama: Path, in_tmp: Path, text: str | None, says: str
) -> None:
    if text is not None:
        (in_tmp / "calib.txt").write_text(text)
    what, remedy = refused(3, llama, "--calib", "calib.txt")
    assert says in what and "calib.txt" in what and remedy


def test_a_model_without_a_tokenizer(refused: Refused, copied: Path) -> None:
    (copied / "tokenizer.json").unlink()
    what, remedy = refused(3, copied)
    assert "has no tokenizer.json" in what and "--method rtn" in remedy


def test_a_model_that_is_quantized_already(refused: Refused, run: Run, llama: Path) -> None:
    assert run("quantize", llama, "--method", "rtn", "--group-size", "32", "-o", "first").code == 0
    what, remedy = refused(3, "first")
    assert what.startswith("first is quantized already") and "BF16" in remedy


def test_a_dtype_that_is_not_read(refused: Refused, copied: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(copied / "model.safetensors")
    tensors["model.norm.weight"] = tensors["model.norm.weight"].to(torch.float64)
    save_file(tensors, copied / "model.safetensors")
    assert "tensor model.norm.weight is F64" in refused(3, copied)[0]


def test_a_tensor_too_many_and_one_too_few(refused: Refused, copied: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    tensors = load_file(copied / "model.safetensors")
    for name in ("model.layers.0.mlp.experts.weight", "model.layers.².x", "model.layers." + "9" * 200 + ".x"):
        save_file({**tensors, name: torch.ones(3)}, copied / "model.safetensors")
        assert f"tensor {name} is not part of the llama architecture" in refused(3, copied)[0]
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, copied / "model.safetensors")
    assert refused(3, copied)[0] == "tensor model.layers.1.mlp.up_proj.weight is missing"
