"""Which type llama.cpp's quantizer gives each tensor of its mixtures (llama-quant.cpp), and the bytes of every type.

It gives more bits to the values and to the second linear of the MLP in some of the layers, and to the output. It does
not know files or names.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

SUPER_BLOCK, BLOCK = 256, 32
# Bytes of a block of 256 weights, or of 32.
SUPER_BLOCK_BYTES: Mapping[str, int] = {
    "Q2_K": 84, "Q3_K": 110, "Q4_K": 144, "Q5_K": 176, "Q6_K": 210, "IQ4_XS": 136,
}  # fmt: skip
BLOCK_BYTES: Mapping[str, int] = {
    "Q4_0": 18, "Q4_1": 20, "Q5_0": 22, "Q5_1": 24, "Q8_0": 34, "IQ4_NL": 18, "F16": 64, "BF16": 64, "F32": 128,
}  # fmt: skip
# The type that a tensor gets instead if its columns are not a multiple of 256.
FALLBACK: Mapping[str, str] = {
    "Q2_K": "IQ4_NL", "Q3_K": "IQ4_NL", "IQ4_XS": "IQ4_NL", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0",
}  # fmt: skip
BASE: Mapping[str, str] = {
    "Q2_K": "Q2_K", "Q3_K_M": "Q3_K", "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K",
    "Q6_K": "Q6_K", "IQ4_NL": "IQ4_NL", "IQ4_XS": "IQ4_XS",
}  # fmt: skip


def kind_of(mixture: str, role: str, layer: int, layers: int, grouped: int, columns: int) -> str:
    """The type of a matrix, made with an importance matrix.

    mixture  a key of BASE
    role     embedding, head (also of an embedding that is the head at the same time), value, out, down, or any other
    grouped  query heads that share keys and values
    columns  in a row
    """
    kind = BASE.get(mixture, mixture)
    if role == "head":
        return "Q6_K" if columns % SUPER_BLOCK == 0 else "Q8_0"
    if role == "value":
        kind = _value(mixture, layer, layers, grouped)
    elif role == "down":
        kind = _down(mixture, layer, layers)
    elif role == "out":
        kind = {"Q2_K": "Q3_K", "Q3_K_M": "Q4_K"}.get(mixture, kind)
    return FALLBACK[kind] if kind in FALLBACK and columns % SUPER_BLOCK else kind


def nbytes(kind: str, rows: int, columns: int) -> int:
    """The bytes of a matrix; a last block that is not full counts whole."""
    if kind in SUPER_BLOCK_BYTES:
        return rows * math.ceil(columns / SUPER_BLOCK) * SUPER_BLOCK_BYTES[kind]
    return rows * math.ceil(columns / BLOCK) * BLOCK_BYTES[kind]


def _more(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between them."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _value(mixture: str, layer: int, layers: int, grouped: int) -> str:
    base = BASE.get(mixture, mixture)
    if mixture == "Q2_K":
        return "Q4_K" if grouped >= 4 else "Q3_K"
    if mixture == "Q3_K_M":
        return "Q5_K" if layer < 2 else "Q4_K"
    if mixture in ("IQ4_NL", "IQ4_XS"):
        return "Q5_K" if grouped >= 4 else base
    if mixture in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _more(layer, layers) else base
    return "Q5_K" if mixture == "Q4_K_S" and layer < 4 else base


def _down(mixture: str, layer: int, layers: int) -> str:
    if mixture == "Q2_K":
        return "Q3_K"
    if mixture == "Q3_K_M":
        return "Q5_K" if layer < layers // 16 else "Q4_K"
    if mixture in ("Q4_K_M", "Q5_K_M"):
        return "Q6_K" if _more(layer, layers) else BASE.get(mixture, mixture)
    return "Q5_K" if mixture == "Q4_K_S" and layer < layers // 8 else BASE.get(mixture, mixture)
