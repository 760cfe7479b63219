"""Where both models have one head, the divergence needs no logits of the baseline: it is the same all the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from r1quant.backends import distance
from r1quant.backends.distance import Projected, expected, likelihood, under_one_head


@pytest.mark.parametrize("spread", [0.02, 0.3, 2.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_one_head(monkeypatch: pytest.MonkeyPatch, spread: float, dtype: torch.dtype) -> None:
    monkeypatch.setattr(distance, "ROWS", 7)
    monkeypatch.setattr(distance, "COLUMNS", 13)
    random = torch.Generator().manual_seed(1)
    head = torch.randn(101, 24, generator=random).to(dtype)
    states = torch.randn(50, 24, generator=random).to(dtype)
    others = (states.float() + spread * torch.randn(50, 24, generator=random)).to(dtype)
    coming = torch.randint(0, 101, (50,), generator=random).numpy()
    cpu = torch.device("cpu")
    p, q = Projected(states, head, cpu), Projected(others, head, cpu)
    known = expected(p, coming)
    found = under_one_head(known, states, q, coming)

    a, b = ((each.double() @ head.double().T).log_softmax(1).numpy() for each in (states, others))
    probabilities = np.exp(a)
    assert found.kl is not None and found.same_top1 is not None
    np.testing.assert_allclose(found.kl, (probabilities * (a - b)).sum(1), rtol=2e-6, atol=2e-6)
    assert found.kl.mean() == pytest.approx((probabilities * (a - b)).sum(1).mean(), rel=1e-6, abs=2e-7)
    np.testing.assert_allclose(known.output, probabilities @ head.double().numpy(), atol=2e-5)
    np.testing.assert_allclose(found.nll_quantized, -b[np.arange(50), coming], atol=2e-5)
    np.testing.assert_allclose(known.nll, likelihood(p, coming), atol=1e-12)
    assert (found.same_top1 == (a.argmax(1) == b.argmax(1))).all()
