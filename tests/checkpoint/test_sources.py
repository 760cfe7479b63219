"""What a user may name as MODEL, and what each name means."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from r1quant.checkpoint import hub, resolve
from r1quant.checkpoint.gguf.source import GgufCheckpoint
from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import open_folder
from r1quant.errors import CheckpointError

from .gguf_files import metadata, tensors, write


def folder_at(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text('{"model_type": "llama"}')
    header = json.dumps({"x": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
    (path / "model.safetensors").write_bytes(
        len(header).to_bytes(8, "little") + header + np.ones(2, np.float32).tobytes()
    )
    return path


def refused(model: str | Path) -> CheckpointError:
    with pytest.raises(CheckpointError) as caught:
        open_model(model)
    assert caught.value.hint
    return caught.value


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def fetch(repo_id: str) -> Path:
        raise AssertionError(f"asked the Hub for {repo_id}")

    monkeypatch.setattr(hub, "fetch", fetch)


@pytest.mark.usefixtures("no_hub")
def test_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_at(tmp_path / "owner" / "model")
    assert open_model(folder).source == str(folder)
    monkeypatch.chdir(tmp_path)
    for name in ("owner/model", "./owner/model", "owner/model/"):
        assert open_model(name).source == name
        assert list(open_model(name).tensors) == ["x"]


@pytest.mark.usefixtures("no_hub")
def test_a_gguf_file(tmp_path: Path) -> None:
    for name in ("m.gguf", "M.GGUF"):
        path = write(tmp_path / name, "llama", metadata("llama"), tensors("llama"))
        checkpoint = open_model(str(path))
        assert isinstance(checkpoint, GgufCheckpoint) and checkpoint.source == str(path)


@pytest.mark.usefixtures("no_hub")
def test_tiny_r1_is_embedded_unless_a_folder_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve.embedded_folder().parts[-3:] == ("r1quant", "tinyr1", "model")
    monkeypatch.setattr(resolve, "embedded_folder", lambda: folder_at(tmp_path / "package"))
    monkeypatch.chdir(tmp_path)
    checkpoint = open_model("tiny-r1")
    assert checkpoint.folder == tmp_path / "package" and checkpoint.source == checkpoint.name == "tiny-r1"
    folder_at(tmp_path / "tiny-r1")
    assert open_model("tiny-r1").folder == Path("tiny-r1")


def test_a_hub_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(repo_id: str) -> Path:
        asked.append(repo_id)
        return folder_at(tmp_path / "snapshot")

    monkeypatch.setattr(hub, "fetch", fetch)
    checkpoint = open_model("deepseek-ai/DeepSeek-R1-0528-Qwen3-8B")
    assert asked == [checkpoint.source] == ["deepseek-ai/DeepSeek-R1-0528-Qwen3-8B"]
    assert checkpoint.folder == tmp_path / "snapshot" and checkpoint.name == "DeepSeek-R1-0528-Qwen3-8B"


@pytest.mark.usefixtures("no_hub")
@pytest.mark.parametrize("name", ["m.bin", "m.PT", "m.pth", "m.ckpt", "m.pkl"])
def test_a_pickle_is_refused_as_in_a_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError) as in_folder:
        open_folder(tmp_path)
    error = refused(tmp_path / name)
    assert error.hint == in_folder.value.hint
    assert error.message.endswith("pickle checkpoint, which can run code when it is opened")


@pytest.mark.usefixtures("no_hub")
def test_what_is_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "model.safetensors").write_bytes(b"x")
    assert "not a model file" in refused("notes.txt").message
    assert refused(tmp_path / "model.safetensors").hint == f"name its folder: {tmp_path}"
    nothing = [
        "absent",
        "a/b/c",
        "/absent/folder",
        "models/absent.gguf",
        "models/x.bin",
        "a b/c",
        "./absent",
        "../absent",
        "x\0y",
        "n" * 5000,
    ]
    for name in nothing:
        error = refused(name)
        assert "there is no model" in error.message and "owner/name" in error.hint
    assert "there is no model" in refused(Path("owner/name")).message
    assert "no config.json" in refused("").message
