"""Numbers as people read them. A missing one is a dash."""

from __future__ import annotations

from collections.abc import Iterable

from r1quant.core.formatting import bytes_text, seconds_text

NONE = "–"


def figure(value: float | None, digits: int = 3) -> str:
    """So many significant digits, without exponents as long as that is readable."""
    if value is None:
        return NONE
    if value == 0:
        return "0"
    if 1e-4 <= abs(value) < 1e9:
        places = max(0, digits - 1 - _magnitude(value))
        return f"{value:,.{places}f}"
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    return f"{mantissa}×10{_raised(int(exponent))}"


def power(value: float) -> str:
    """A tick of a logarithmic axis: powers of ten below a thousandth as such."""
    exponent = _magnitude(value) if value else 0
    return f"10{_raised(exponent)}" if exponent < -3 and f"{value:g}" == f"{10.0**exponent:g}" else f"{value:g}"


def _raised(exponent: int) -> str:
    return str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _magnitude(value: float) -> int:
    return int(f"{abs(value):e}".partition("e")[2])


def interval(bounds: Iterable[float] | None, digits: int = 3, scale: float = 1.0) -> str:
    if bounds is None:
        return NONE
    low, high = (figure(bound * scale, digits) for bound in bounds)
    return f"{low} to {high}"


def percent(share: float | None, sign: str = "") -> str:
    return NONE if share is None else f"{100 * share:{sign}.1f} %"


def nbytes(count: float | None) -> str:
    return NONE if count is None else bytes_text(count)


def tokens(count: float | None) -> str:
    return NONE if count is None else f"{count:,.0f}"


def seconds(value: float | None) -> str:
    return NONE if value is None else seconds_text(value)


def plural(count: int, one: str) -> str:
    return f"{count} {one}" if count == 1 else f"{count} {one}s"
