"""Round to nearest: every weight alone, no calibration."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from r1quant.core.grid import Grid
from r1quant.core.qlinear import QLinear
from r1quant.engine.methods import kernels, scales


def quantize(
    weight: npt.NDArray[np.float32], grid: Grid, search: bool, importance: npt.NDArray[np.float32] | None = None
) -> QLinear:
    """weight: float32 [out, in], finite. With search, scales minimise the squared error of the weights, that of each
    input channel counted with its importance, float32 [in].
    """
    chosen = scales.choose(weight, grid, importance, search)
    codes = np.empty(weight.shape, np.uint8)
    kernels.round_nearest(weight, chosen.scale, chosen.zero, chosen.group, grid.levels - 1, codes)
    return QLinear(codes, chosen.scale.astype(np.float16), chosen.zero, chosen.group, grid.bits)
