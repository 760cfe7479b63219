"""What choosing bits begins with, as it is found."""

from __future__ import annotations

import pytest

from r1quant.budget import Predictions
from r1quant.jobs import foresight


@pytest.fixture
def foretold(monkeypatch: pytest.MonkeyPatch) -> list[Predictions]:
    """The predictions that are made from here on, in their order."""
    kept: list[Predictions] = []
    told = foresight.predicted

    def watched(*given: object) -> Predictions:
        kept.append(told(*given))
        return kept[-1]

    monkeypatch.setattr(foresight, "predicted", watched)
    return kept
