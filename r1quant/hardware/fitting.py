"""What a runtime makes of a card, out of measurements: the shares of the roofline that explain them best. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from r1quant.hardware import roofline
from r1quant.hardware.cards import Card
from r1quant.hardware.roofline import USUAL, Efficiency, Sizes

LIMITS = (1e-4, 10.0)  # of a share; above 1 if caches hold the weights


@dataclass(frozen=True)
class Point:
    """One model at one load, measured.

    of            its sizes as the runtime holds it
    ttft_seconds  until the first token; step_seconds: of a step of all texts after that
    memory_bytes  at the most; None if it was not measured
    """

    of: Sizes
    card: Card
    prompt_tokens: int
    new_tokens: int
    batch: int
    ttft_seconds: float
    step_seconds: float
    memory_bytes: int | None = None

    def predicted(self, efficiency: Efficiency) -> tuple[float, float]:
        """Seconds until the first token, and of a step."""
        return roofline.seconds(
            self.of, self.card, self.prompt_tokens, self.new_tokens, self.batch, efficiency=efficiency
        )


def fitted(points: Sequence[Point]) -> Efficiency:
    """Bandwidth share and seconds a layer by least squares of relative errors over the steps, which reading bounds; the
    compute share as the median over the prompts; the runtime's bytes as the median of what nothing else explains.

    Points must be of one card and runtime, at least one of them. All steps alike leave the seconds a layer as usual.
    """
    bandwidth, layer = _steps(points)
    shares = []
    for point in points:
        (work, read), _ = _demands(point)
        computing = point.ttft_seconds - point.of.layers * layer
        if computing > 1.2 * read / (point.card.bandwidth * bandwidth):  # else reading bounds it
            shares.append(work / (point.card.fp16_flops * computing))
    compute = _within(statistics.median(shares)) if shares else USUAL.compute_share
    beside = [max(0, _unexplained(p)) for p in points if p.memory_bytes is not None]
    return Efficiency(bandwidth, compute, layer, round(statistics.median(beside)) if beside else None)


def _steps(points: Sequence[Point]) -> tuple[float, float]:
    """The bandwidth share and the seconds a layer: t = a x + b y with x = 1 / share, x and y not negative."""
    rows = []
    for point in points:
        _, (_, streamed) = _demands(point)
        rows.append((streamed / point.card.bandwidth / point.step_seconds, point.of.layers / point.step_seconds))
    aa, ab, bb = (sum(row[i] * row[j] for row in rows) for i, j in ((0, 0), (0, 1), (1, 1)))
    a, b = sum(row[0] for row in rows), sum(row[1] for row in rows)
    determinant = aa * bb - ab * ab
    if determinant > 1e-3 * aa * bb:
        x, y = (bb * a - ab * b) / determinant, (aa * b - ab * a) / determinant
        if x > 0 and y >= 0:
            return _within(1 / x), y
        if x <= 0:  # reading explains nothing: the launches do
            return LIMITS[1], b / bb
        return _within(aa / a), 0.0
    y = min(USUAL.layer_seconds, 0.5 / max(row[1] for row in rows))
    return _within(1 / statistics.median((1 - row[1] * y) / row[0] for row in rows)), y


def _demands(point: Point) -> tuple[tuple[float, float], tuple[float, float]]:
    return roofline.demands(point.of, point.prompt_tokens, point.new_tokens, point.batch)


def _unexplained(point: Point) -> float:
    """Bytes beside weights, cache and activations."""
    context = point.prompt_tokens + point.new_tokens
    known = point.of.weights_bytes + point.batch * point.of.cached(context)
    return (point.memory_bytes or 0) - known - point.of.activations.nbytes(context, point.batch)


def _within(share: float) -> float:
    return min(max(share, LIMITS[0]), LIMITS[1])
