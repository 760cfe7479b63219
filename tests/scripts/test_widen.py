"""The wider twin of a model computes the same, and its channels were turned only among themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import widen

from r1quant.checkpoint.resolve import open_model
from r1quant.checkpoint.safetensors import Checkpoint
from tests import models

WIDTH, HEADS, KV_HEADS = 96, 6, 3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return open_model(models.write_model(tmp_path_factory.mktemp("narrow") / "m", "llama", tied=True))


@pytest.mark.parametrize("untied", [False, True])
def test_the_wider_model_is_the_same_function(source: Checkpoint, untied: bool, tmp_path: Path) -> None:
    twin = widen.widened(source, WIDTH, HEADS, KV_HEADS, untied)
    tokens = torch.arange(0, models.VOCABULARY, 16)
    before = widen.logits(source.config, {name: source.read(name) for name in source.tensors}, tokens)
    after = widen.logits(twin.config, twin.tensors, tokens)
    assert float((after - before).abs().max()) < 1e-5 * float(before.abs().max())
    assert ("lm_head.weight" in twin.tensors) == untied
    query = twin.tensors["model.layers.1.self_attn.q_proj.weight"]
    assert query.shape == (WIDTH, WIDTH)
    assert not query[models.HIDDEN :].any() and not query[:, models.HIDDEN :].any()
    assert not torch.equal(
        query[: models.HIDDEN, : models.HIDDEN], source.read("model.layers.1.self_attn.q_proj.weight")
    )
    widen.save(twin, source, tmp_path / "wide")
    written = open_model(tmp_path / "wide")
    rounded = widen.rounded(twin.tensors)
    assert all(torch.equal(written.read(name), tensor) for name, tensor in rounded.items())
    assert set(written.tensors) == set(rounded) and set(written.side_files) == set(source.side_files)


def test_only_channels_of_one_gain_turn_into_each_other() -> None:
    gain = torch.tensor([2.0, 1.0, 2.0, 3.0, 1.0, 2.0])
    turn = widen.small_turn(gain)
    torch.testing.assert_close(turn @ turn.T, torch.eye(6, dtype=torch.float64))
    torch.testing.assert_close(turn @ gain.double().diag(), gain.double().diag() @ turn)
    assert turn[3, 3] == 1 and 0 < abs(float(turn[0, 2])) < 0.5
