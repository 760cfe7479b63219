"""Which tokens of a text stand inside `<think>`, and which in the answer after it. Pure on arrays."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import numpy.typing as npt

from r1quant.records.text import TOKEN_CLASSES


def classes(
    tokens: npt.NDArray[np.int64], opening: int | None, closing: int | None, ends: Collection[int]
) -> dict[str, npt.NDArray[np.bool_]]:
    """For each of TOKEN_CLASSES, which of the predicted tokens of a text belong to it: bool [windows * (seq_len - 1)].

    tokens   int64 [windows, seq_len]: windows that follow one another in one stream; the first token of each is not
             predicted
    opening  the token `<think>`, closing `</think>`; without both, nothing is classified
    ends     tokens that end a document, and with it an answer

    `</think>` itself counts as thinking: to stop in time is part of it.
    """
    if opening is None or closing is None:
        return {}
    kind, current = np.zeros(tokens.size, np.int8), 0
    for place, token in enumerate(tokens.reshape(-1).tolist()):
        kind[place] = current
        if token == opening:
            current = 1
        elif token == closing:
            current = 2
        elif token in ends:
            current = 0
    predicted = kind.reshape(tokens.shape)[:, 1:].reshape(-1)
    return {name: predicted == value for value, name in enumerate(TOKEN_CLASSES)}
