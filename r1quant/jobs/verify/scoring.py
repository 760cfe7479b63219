"""Scores a text with the baseline, or takes its stored predictions, then with the quantized model: one at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from r1quant.backends import Runtime
from r1quant.backends.distance import Given, Projected, distance, under_one_head
from r1quant.backends.openai import OpenAI
from r1quant.backends.topk_logprobs import KEPT, TopKLogprobs, against
from r1quant.backends.torch import TorchModel
from r1quant.data import windows
from r1quant.jobs.artifacts import predicted_kl
from r1quant.jobs.quantize.calibration import default_text
from r1quant.jobs.verify import predictions
from r1quant.jobs.verify.baselines import load_or_make
from r1quant.jobs.verify.pair import Pair
from r1quant.jobs.verify.predictions import Step, StoredStates, Text
from r1quant.metrics import tokenclass
from r1quant.metrics.divergence import TokenScores, summary
from r1quant.progress import Progress
from r1quant.records.text import EXACT, TextScores, TextSource
from r1quant.storage.cache import cache_folder

FORM = f"states, expected outputs 2; {KEPT}"  # of what is stored of a baseline
SIDES = ("the baseline", "the quantized model")


@dataclass(frozen=True, eq=False)
class ScoredText:
    """scores, how exact the divergence is, whether the baseline's predictions were stored, and which of the targets
    (bool [n]) the scores are of: some servers leave out the first of a window."""

    scores: TokenScores
    estimator: str
    cached: bool
    known: npt.NDArray[np.bool_]


def measure(pair: Pair, progress: Progress) -> TextScores:
    """Both models on the text that the options name."""
    options, tokenizer = pair.options, pair.tokenizer
    vocabulary = int(pair.baseline.config["vocab_size"])
    text = windows.evaluation_text(
        options.text or default_text(pair.baseline), tokenizer, options.windows, options.seq_len, vocabulary=vocabulary
    )
    scored = score(pair, Text(text.tokens), text.sha256, progress)
    opening, closing = tokenizer.thinking_marks
    classes = tokenclass.classes(text.tokens, opening, closing, pair.stop)
    measured = summary(scored.scores, text.windows, {name: kind[scored.known] for name, kind in classes.items()})
    kl = None if measured.kl is None else replace(measured.kl, predicted=predicted_kl(pair.quantized))
    source = TextSource(text.source, text.sha256, text.windows, options.seq_len, scored.cached)
    return replace(measured, kl=kl, kl_estimator=scored.estimator, text=source)


def score(pair: Pair, text: Text, sha256: str, progress: Progress) -> ScoredText:
    """Two models on a text with that hash, window by window or layer by layer."""
    targets, step = text.targets, partial(progress.advance, 1)

    def opened(which: int) -> Runtime:
        runtime = pair.opened(which, text.tokens.shape[1], note=progress.note)
        steps = runtime.layers if isinstance(runtime, TorchModel) else len(text.tokens)
        progress.begin(f"scoring with {SIDES[which]}", steps)
        return runtime

    identity = pair.identity(0) | predictions.environment_of(pair) | {"tokens": sha256, "kept": FORM}
    arrays, cached = load_or_make(cache_folder(), identity, lambda: predictions.predict(opened(0), text, step))
    baseline = predictions.restored(arrays, lambda: pair.opened(0, 1))
    quantized = opened(1)
    whole = np.ones(len(targets), np.bool_)
    if isinstance(quantized, OpenAI) or isinstance(baseline, np.ndarray):
        theirs = predictions.nll(quantized, text, step)
        return _without_distributions(predictions.nll_of(baseline), theirs, text, cached)
    if isinstance(baseline, TopKLogprobs):
        estimator = EXACT if int(baseline.top) == baseline.ids.shape[1] else f"{KEPT} of each distribution"
        scores = against(baseline, predictions.logit_pieces(quantized, text, step), targets)
        return ScoredText(scores, estimator, cached, whole)
    if isinstance(quantized, TorchModel):
        states = predictions.predicting_states(quantized, text, step)
        scores = _between_heads(baseline, quantized.projected(states), targets)
    else:
        scores = _joined(_by_window(baseline.projected, quantized, text, step))
    return ScoredText(scores, EXACT, cached, whole)


def _without_distributions(
    baseline: predictions.Values, quantized: predictions.Values, text: Text, cached: bool
) -> ScoredText:
    """Positions of a window at which some window has no probability are left out of all."""
    by_position = ~np.isnan((baseline + quantized).reshape(len(text.tokens), -1)).any(0)
    known = np.tile(by_position, len(text.tokens))
    scores = TokenScores(baseline[known], quantized[known], None, None)
    return ScoredText(scores, "none: a server gives no distributions", cached, known)


def _between_heads(baseline: StoredStates, quantized: Projected, targets: npt.NDArray[np.int64]) -> TokenScores:
    if torch.equal(baseline.projected.head, quantized.head):
        return under_one_head(baseline.expected, baseline.projected.hidden, quantized, targets)
    return distance(baseline.projected, quantized, targets)


def _by_window(baseline: Projected, runtime: Runtime, text: Text, step: Step) -> Iterator[TokenScores]:
    for index, logits in enumerate(predictions.logit_pieces(runtime, text, step)):
        window = slice(index * text.width, (index + 1) * text.width)
        yield distance(baseline.part(window), Given(logits, baseline.device), text.targets[window])


def _joined(parts: Iterable[TokenScores]) -> TokenScores:
    columns = [(part.nll_baseline, part.nll_quantized, part.kl, part.same_top1) for part in parts]
    return TokenScores(*(np.concatenate(column) for column in zip(*columns, strict=True)))
