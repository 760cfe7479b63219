"""Names for parsed JSON whose keys nothing has checked yet. What was measured has types of its own: see records/."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

JsonObject: TypeAlias = Mapping[str, Any]  # an object out of any file, which nobody changes
JsonDict: TypeAlias = dict[str, Any]  # an object that is being built to be written
Config: TypeAlias = JsonObject  # config.json of a model, as its makers wrote it
QuantConfig: TypeAlias = JsonObject  # quantization_config: how the linears of a checkpoint are stored
