"""LevelLinear: a weight on a code book of numbers, scaled and shifted in each group.

The general case of every grid that rounds one weight at a time: 4-bit and 8-bit floats, normal floats, llama.cpp's
IQ4_NL. A grid whose scales are integers of their own (K-quants, NVFP4) needs a linear of its own, which carries them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class LevelLinear:
    """One quantized linear layer of `out` rows and `in` columns.

        w[o, i] = levels[codes[o, i]] * scale[o, group[i]] + offset[o, group[i]]      in float32, each step rounded

    kind    of its grid, a name in GRIDS
    codes   uint8 [out, in], one code per byte
    levels  float32 [L], finite, ascending, L from 2 to 256
    scale   float32 [out, groups], finite; may be negative, or 0
    offset  float32 [out, groups], finite
    group   int32 [in], the group of each input column
    """

    kind: str
    codes: npt.NDArray[np.uint8]
    levels: npt.NDArray[np.float32]
    scale: npt.NDArray[np.float32]
    offset: npt.NDArray[np.float32]
    group: npt.NDArray[np.int32]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)"""
        return self.codes.shape[0], self.codes.shape[1]

    def dequantize(self) -> npt.NDArray[np.float32]:
        """float32 [out, in]"""
        weight = self.levels[self.codes]
        weight *= self.scale[:, self.group]
        weight += self.offset[:, self.group]
        return weight

    def rows(self, start: int, stop: int) -> LevelLinear:
        """The rows start .. stop as a linear of their own."""
        part = slice(start, stop)
        return LevelLinear(
            self.kind, self.codes[part], self.levels, self.scale[part], self.offset[part], self.group
        )  # fmt: skip

    @staticmethod
    def stack(parts: Sequence[LevelLinear]) -> LevelLinear:
        """The rows of several linears on one grid, one after the other; the inverse of `rows`."""
        first = parts[0]
        codes, scale, offset = (
            np.concatenate([getattr(part, name) for part in parts]) for name in ("codes", "scale", "offset")
        )
        return LevelLinear(first.kind, codes, first.levels, scale, offset, first.group)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        return {
            "kind": np.frombuffer(self.kind.encode(), np.uint8),
            "codes": self.codes,
            "levels": self.levels,
            "scale": self.scale,
            "offset": self.offset,
            "group": self.group,
        }

    @staticmethod
    def restore(arrays: Mapping[str, npt.NDArray[Any]]) -> LevelLinear:
        """The inverse of arrays."""
        return LevelLinear(arrays["kind"].tobytes().decode(), **{k: v for k, v in arrays.items() if k != "kind"})

    def validate(self) -> None:
        """Raises ValueError naming the first law that does not hold."""
        out, columns = self.shape
        groups = self.scale.shape[1]
        laws = {
            "codes must be uint8": self.codes.dtype == np.uint8,
            "levels must be float32": self.levels.dtype == np.float32,
            "scale must be float32": self.scale.dtype == np.float32,
            "offset must be float32": self.offset.dtype == np.float32,
            "group must be int32": self.group.dtype == np.int32,
            "there must be 2 to 256 levels": 2 <= len(self.levels) <= 256,
            "levels must be finite": bool(np.isfinite(self.levels).all()),
            "levels must ascend": bool((np.diff(self.levels) > 0).all()),
            "codes must name levels": int(self.codes.max(initial=0)) < len(self.levels),
            "scale must be [out, groups]": self.scale.shape == (out, groups),
            "offset must be shaped like scale": self.offset.shape == self.scale.shape,
            "group must be [in]": self.group.shape == (columns,),
            "group must name a group of scale": bool(((self.group >= 0) & (self.group < groups)).all()),
            "scale must be finite": bool(np.isfinite(self.scale).all()),
            "offset must be finite": bool(np.isfinite(self.offset).all()),
        }
        for law, holds in laws.items():
            if not holds:
                raise ValueError(law)
