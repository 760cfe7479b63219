"""What choosing bits begins with, as it is found."""

from __future__ import annotations

import pytest

from r1quant.jobs.quantize import loss_prediction
from r1quant.planning.budget import LossPredictions
from tests.conftest import watch


@pytest.fixture
def predictions(monkeypatch: pytest.MonkeyPatch) -> list[LossPredictions]:
    """The predictions that are made from here on, in their order."""
    return watch(monkeypatch, loss_prediction, "predicted")
