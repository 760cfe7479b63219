"""Of a vocabulary too large to keep, a sketch gives the divergence without bias, and says how far it may be off."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch

from r1quant.backends.topk_logprobs import DRAWN, PIECE, TOP, WHOLE, against, sketch
from r1quant.errors import NumericError

VOCABULARY, TOKENS, RUNS = 3001, 150, 12
Float = npt.NDArray[np.float64]


def models(noise: float, vocabulary: int = VOCABULARY, n: int = TOKENS, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Two models whose logits differ by noise, from nearly flat distributions to steep ones: the rest is 0.6 to 0.01
    of the mass."""
    random = torch.Generator().manual_seed(seed)
    p = torch.randn(n, vocabulary, generator=random) * torch.linspace(1, 3.5, n)[:, None] + 40
    return p, p + noise * torch.randn(n, vocabulary, generator=random)


def in_parts(logits: torch.Tensor) -> Iterator[torch.Tensor]:
    """Not of the size that the sketch works in."""
    yield from torch.split(logits, PIECE // 2 + 9)


def exact(p: torch.Tensor, q: torch.Tensor) -> Float:
    logp, logq = p.double().log_softmax(1), q.double().log_softmax(1)
    found: Float = (logp.exp() * (logp - logq)).sum(1).numpy()
    return found


def coming(n: int = TOKENS, vocabulary: int = VOCABULARY) -> npt.NDArray[np.int64]:
    return np.random.default_rng(1).integers(0, vocabulary, n)


@pytest.mark.parametrize("noise", [0.02, 0.3, 1.0])
def test_the_estimate_has_no_bias_and_knows_its_error(noise: float) -> None:
    """The draws are always the same for a text, so other texts stand in for other draws."""
    errors, standard, off = [], [], []
    for seed in range(RUNS):
        p, q = models(noise, seed=seed)
        made = sketch(in_parts(p), coming())
        assert made.ids.shape == (TOKENS, TOP + DRAWN) and int(made.top) == TOP
        found, wanted = against(made, in_parts(q), coming()), exact(p, q)
        assert found.kl is not None and found.kl_variance is not None
        assert (found.kl >= 0).all() and (found.kl_variance > 0).all()
        errors.append((found.kl - wanted) / wanted)
        standard.append((found.kl - wanted) / np.sqrt(found.kl_variance))
        off.append((found.kl.mean() - wanted.mean()) / np.sqrt(found.kl_variance.sum()) * TOKENS)
    every = np.concatenate(errors)
    assert abs(every.mean()) < 4 * every.std() / np.sqrt(every.size)
    assert 0.5 < np.concatenate(standard).var() < 2
    assert np.abs(off).max() < 4, "the error of a mean is what the record calls sampling_error"
    assert every.std() < 0.2


def test_what_is_kept() -> None:
    """The likeliest in their order, the others drawn from the rest by their probability."""
    p, _ = models(0.0, n=40)
    made, logp = sketch(in_parts(p), coming(40)), p.double().log_softmax(1)
    order = p.argsort(1, descending=True)
    np.testing.assert_array_equal(made.ids[:, 0], order[:, 0])
    probabilities = logp.exp()
    for row in range(40):
        likeliest, drawn = set(made.ids[row, :TOP].tolist()), set(made.ids[row, TOP:].tolist())
        assert likeliest == set(order[row, :TOP].tolist()) and not likeliest & drawn
        assert made.rest[row] == pytest.approx(float(probabilities[row, order[row, TOP:]].sum()), rel=1e-5)
    np.testing.assert_allclose(made.logp, logp.gather(1, torch.from_numpy(made.ids).long()), atol=1e-5)
    np.testing.assert_allclose(made.nll, -logp[np.arange(40), coming(40)], atol=1e-5)


def test_the_draws_favour_what_is_likely() -> None:
    """Over many tokens of one distribution, each is drawn as often as its share of the rest says."""
    p = models(0.0, vocabulary=WHOLE + 1, n=1)[0].expand(400, -1)
    made = sketch([p], coming(400, WHOLE + 1))
    rest = p[0].double().softmax(0).numpy().copy()
    rest[made.ids[0, :TOP]] = 0
    wanted = rest / rest.sum() * 400 * DRAWN
    often = np.bincount(made.ids[:, TOP:].reshape(-1), minlength=WHOLE + 1)
    assert (np.abs(often - wanted) < 5 * np.sqrt(wanted) + 1).all()


@pytest.mark.parametrize("vocabulary", [2, 97, WHOLE])
def test_a_small_vocabulary_is_kept_whole(vocabulary: int) -> None:
    p, q = models(0.3, vocabulary, n=60)
    made = sketch(in_parts(p), coming(60, vocabulary))
    assert int(made.top) == vocabulary and not made.rest.any()
    found = against(made, in_parts(q), coming(60, vocabulary))
    assert found.kl is not None and found.kl_variance is not None and not found.kl_variance.any()
    np.testing.assert_allclose(found.kl, exact(p, q), rtol=1e-3, atol=1e-7)
    np.testing.assert_array_equal(found.same_top1, p.argmax(1) == q.argmax(1))
    logq = q.double().log_softmax(1)
    np.testing.assert_allclose(found.nll_quantized, -logq[np.arange(60), coming(60, vocabulary)], atol=1e-5)


@pytest.mark.parametrize("vocabulary", [97, VOCABULARY])
def test_a_model_has_no_distance_from_itself(vocabulary: int) -> None:
    p, _ = models(0.0, vocabulary, n=70)
    found = against(sketch(in_parts(p), coming(70, vocabulary)), in_parts(p), coming(70, vocabulary))
    assert found.kl is not None and found.kl_variance is not None and found.same_top1 is not None
    assert found.kl.max() == 0 and found.kl_variance.max() == 0 and found.same_top1.all()


def test_the_same_logits_give_the_same_sketch_in_any_pieces() -> None:
    p, _ = models(0.0, n=PIECE + 5)
    one, other = sketch([p], coming(PIECE + 5)), sketch(torch.split(p, 1), coming(PIECE + 5))
    for name in ("nll", "ids", "logp", "rest"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("vocabulary", [97, VOCABULARY])
def test_what_is_no_number_is_refused(bad: float, vocabulary: int) -> None:
    p, q = models(0.1, vocabulary, n=20)
    tokens = np.full(20, 3)
    broken = p.clone()
    broken[7, 5] = bad
    made = sketch([p], tokens)
    with pytest.raises(NumericError, match="baseline gives NaN or Inf"):
        sketch([broken], tokens)
    with pytest.raises(NumericError, match="quantized model gives NaN or Inf"):
        against(made, [broken + (q - p)], tokens)
