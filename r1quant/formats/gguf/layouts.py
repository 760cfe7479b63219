"""Where each block type has its parts, in bytes from the start of a block."""

from __future__ import annotations

from collections.abc import Mapping

from r1quant.formats.gguf import bookbytes
from r1quant.formats.gguf.parts import FourBits, Half, Part, Plane, Planes, SignedBytes, SixBits


def _codes(*planes: Plane) -> Planes:
    return Planes("codes", planes)


def _scales(*planes: Plane, bias: int = 0) -> Planes:
    return Planes("scales", planes, bias)


def _nibbles(at: int) -> Planes:
    """Scales of 4 bits, the first one below."""
    return _scales(Plane(at, 4))


D, DMIN = Half("d", 0), Half("dmin", 2)

LAYOUTS: Mapping[str, tuple[Part, ...]] = {
    "Q4_0": (D, _codes(Plane(2, 4, run=16))),
    "Q4_1": (D, DMIN, _codes(Plane(4, 4, run=16))),
    "Q5_0": (D, _codes(Plane(6, 4, run=16), Plane(2, 1, low=4))),
    "Q5_1": (D, DMIN, _codes(Plane(8, 4, run=16), Plane(4, 1, low=4))),
    "Q8_0": (D, SignedBytes(2)),
    "Q2_K": (FourBits(0), _codes(Plane(16, 2, run=32)), Half("d", 80), Half("dmin", 82)),
    "Q3_K": (
        _codes(Plane(32, 2, run=32), Plane(0, 1, low=2, run=32)),
        _scales(Plane(96, 4, run=8), Plane(104, 2, low=4, run=4), bias=32),
        Half("d", 108),
    ),
    "Q4_K": (D, DMIN, SixBits(4), _codes(Plane(16, 4, run=32))),
    "Q5_K": (D, DMIN, SixBits(4), _codes(Plane(48, 4, run=32), Plane(16, 1, low=4, run=32))),
    "Q6_K": (_codes(Plane(0, 4, run=64), Plane(128, 2, low=4, run=32)), _scales(Plane(192, 8)), Half("d", 208)),
    "IQ4_NL": (D, _codes(Plane(2, 4, run=16))),
    "IQ4_XS": (D, _scales(Plane(4, 4), Plane(2, 2, low=4), bias=32), _codes(Plane(8, 4, run=16))),
    "IQ3_S": (D, bookbytes.IQ3_S, _nibbles(106)),
    "IQ3_XXS": (D, bookbytes.IQ3_XXS),
    "IQ2_S": (D, bookbytes.IQ2_S, _nibbles(74)),
    "IQ2_XS": (D, bookbytes.IQ2_XS, _nibbles(66)),
    "IQ2_XXS": (D, bookbytes.IQ2_XXS),
    "IQ1_M": (bookbytes.IQ1_M,),
    "IQ1_S": (D, bookbytes.IQ1_S),
}
