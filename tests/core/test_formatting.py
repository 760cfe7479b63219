"""Sizes and durations for people: the rounding and the units, at their edges."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from r1quant.core.formatting import bytes_text, seconds_text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (4_831_838_208, "4.83 GB"),
        (999_499_999, "999 MB"),
        (999_700_000, "1,000 MB"),
        (12.5e9, "12.5 GB"),
        (1.5e12, "1.5 TB"),
        (2.5e15, "2,500 TB"),
    ],
)
def test_bytes(count: float, text: str) -> None:
    assert bytes_text(count) == text


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [
        (0.0123, 3, "12.3 ms"),
        (1.0, 3, "1 s"),
        (45.26, 3, "45.3 s"),
        (119.9, 3, "120 s"),
        (120, 3, "2 minutes"),
        (560, 3, "9.33 minutes"),
        (7199, 2, "120 minutes"),
        (7200, 3, "2 hours"),
        (32_400, 2, "9 hours"),
        (200_000, 2, "2.3 days"),
    ],
)
def test_seconds(value: float, digits: int, text: str) -> None:
    assert seconds_text(value, digits) == text


UNITS = {"ms": 1e-3, "s": 1.0, "minutes": 60.0, "hours": 3600.0, "days": 86400.0}
SIZES = {"B": 1.0, "kB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12}


@given(st.floats(1e-3, 1e9))
def test_a_duration_reads_back_within_its_digits(value: float) -> None:
    number, unit = seconds_text(value).split()
    assert float(number.replace(",", "")) * UNITS[unit] == pytest.approx(value, rel=5.1e-3)


@given(st.integers(1, 10**18))
def test_a_size_reads_back_within_three_digits(count: int) -> None:
    number, unit = bytes_text(count).split()
    assert float(number.replace(",", "")) * SIZES[unit] == pytest.approx(count, rel=5.1e-3)
