"""The roofline's shares out of measurements: what was put in comes out, and nothing is made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from r1quant.hardware import memory, roofline
from r1quant.hardware.cards import card
from r1quant.hardware.fitting import LIMITS, Point, fitted
from r1quant.hardware.inventory import of_config
from r1quant.hardware.roofline import USUAL, Efficiency
from tests.configs import R1_QWEN3_8B

FLOATS = roofline.sized(of_config(R1_QWEN3_8B), 16_381_470_720, 15_136_811_008)
SMALL = replace(FLOATS, weights_bytes=6_100_000_000, streamed_bytes=4_855_000_000)
TRUE = Efficiency(bandwidth_share=0.61, compute_share=0.37, layer_seconds=45e-6, runtime_bytes=1_234_567_890)


def measured(of: roofline.Sizes, true: Efficiency = TRUE, batch: int = 1, noise: float = 1.0) -> Point:
    """As if a runtime did exactly what the roofline says."""
    on = card("RTX 4090")
    made = roofline.model(of, on, 2048, 64, batch, efficiency=true)
    return Point(of, on, 2048, 64, batch, made.ttft_seconds * noise, batch / made.decode_tokens_per_second * noise,
                 made.total_bytes)  # fmt: skip


def test_what_was_put_in_comes_out() -> None:
    found = fitted([measured(FLOATS), measured(SMALL), measured(SMALL, batch=8)])
    assert found.bandwidth_share == pytest.approx(0.61) and found.layer_seconds == pytest.approx(45e-6)
    assert found.compute_share == pytest.approx(0.37) and found.runtime_bytes == pytest.approx(1_234_567_890, abs=2)


def test_noise_stays_noise() -> None:
    points = [measured(of, batch=b, noise=n) for of, b, n in ((FLOATS, 1, 1.03), (SMALL, 1, 0.97), (SMALL, 4, 1.02))]
    found = fitted(points)
    assert found.bandwidth_share == pytest.approx(0.61, rel=0.1)
    assert max(abs(point.step_seconds / point.predicted(found)[1] - 1) for point in points) < 0.05


def test_one_kind_of_step_leaves_the_launches_as_they_are_and_is_met_exactly() -> None:
    point = measured(FLOATS)
    found = fitted([point, point])
    assert found.layer_seconds == USUAL.layer_seconds and point.predicted(found)[1] == pytest.approx(point.step_seconds)
    without = fitted([replace(point, memory_bytes=None)])
    assert without.runtime_bytes is None


def test_where_reading_explains_nothing_launches_do_and_shares_stay_within_bounds() -> None:
    slow = [replace(measured(of), step_seconds=0.5) for of in (FLOATS, SMALL)]
    found = fitted(slow)
    assert LIMITS[0] <= found.bandwidth_share <= LIMITS[1] and found.layer_seconds >= 0
    for point in slow:
        assert point.predicted(found)[1] == pytest.approx(0.5, rel=0.5)
    tight = fitted([replace(measured(FLOATS), memory_bytes=1)])
    assert tight.runtime_bytes == 0


def test_prompts_that_reading_bounds_say_nothing_of_compute() -> None:
    short = Point(FLOATS, card("RTX 4090"), 1, 8, 1, *roofline.seconds(FLOATS, card("RTX 4090"), 1, 8))
    assert fitted([replace(short, ttft_seconds=1.1 * short.ttft_seconds)]).compute_share == USUAL.compute_share


@pytest.mark.parametrize("kind", ["apple", "cpu", "consumer"])
def test_what_a_card_has_for_a_model(kind: str) -> None:
    on = replace(card("RTX 4090"), kind=kind)
    assert 0.7 * on.memory_bytes < memory.usable(on) < on.memory_bytes
    assert 0 < memory.runtime_bytes(on) <= memory.RUNTIME_BYTES
