"""How a model writes its own calibration text, or a part of it, before it is quantized, and what that costs: no torch.

What a quantized model has to go on with is its own reasoning, so that is what it is calibrated on (self-calibration,
Williams et al. 2025, arXiv 2410.17170). If a text is given, the model can write on from it: more text of the kind.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from r1quant.arch.tables import size
from r1quant.checkpoint.safetensors import Checkpoint
from r1quant.core.formatting import seconds_text
from r1quant.data.texts import SELF
from r1quant.recipe import Recipe
from r1quant.storage.provenance import processors

TEMPERATURE, TOP_P = 0.6, 0.95  # what DeepSeek-R1 is sampled with
MAX_TOKENS = 2048  # of an answer, so that many prompts have their say
KEPT = 1 / 8  # of a window, its end, is what the model goes on from
AT_ONCE = 64  # answers
WORK_PER_S = 4.5e10  # of a core: operations on weights, while so many answers are written at once
STEP_S, LAYER_S = 25e-3, 2.5e-3  # for one token of each answer, whatever the size of a layer
CARD = Path("/dev/nvidiactl")  # there where a GPU is
LONG_S = 3600.0


@dataclass(frozen=True)
class Cost:
    """Of writing the text on this machine's processors, roughly. memory_bytes: of the weights, if they fit."""

    tokens: int
    seconds: float
    memory_bytes: int


def writes(recipe: Recipe) -> bool:
    """Whether the model writes anything for this recipe."""
    return recipe.reads and (recipe.calib == SELF or recipe.continuations > 0)


def kept(seq_len: int) -> int:
    """How many tokens of a window the model goes on from."""
    return math.ceil(KEPT * seq_len)


def predict(checkpoint: Checkpoint, recipe: Recipe, parameters: int) -> Cost:
    """What it costs to write a recipe's text; parameters is how many weights the linears of all layers have."""
    layers, new = size(checkpoint.config, "num_hidden_layers"), recipe.seq_len - kept(recipe.seq_len)
    head = size(checkpoint.config, "vocab_size") * size(checkpoint.config, "hidden_size")
    tokens, steps = recipe.continuations * new, math.ceil(recipe.continuations / AT_ONCE) * new
    if recipe.calib == SELF:
        own = recipe.samples * recipe.seq_len
        tokens += own
        steps += own // AT_ONCE + MAX_TOKENS // 4  # the last ones are written with fewer and fewer beside them
    work = 2 * tokens * (parameters + head)
    seconds = work / (WORK_PER_S * processors()) + steps * (STEP_S + layers * LAYER_S)
    return Cost(tokens, seconds, 4 * (parameters + 2 * head))


def foretell(cost: Cost, recipe: Recipe) -> list[str]:
    """What a plan says of it; on a processor also for how long, and what else could be done where that is long."""
    how = f", at most {MAX_TOKENS:,} an answer" if recipe.calib == SELF else ""
    does = "writes its own calibration text" if recipe.calib == SELF else "writes on from its calibration text"
    what = f"the model first {does}: {cost.tokens:,} tokens{how}"
    if recipe.device.startswith("cuda") or (recipe.device == "auto" and CARD.exists()):
        return [what]
    lines = [f"{what}, roughly {seconds_text(cost.seconds, digits=2)} on this machine's processor"]
    if cost.seconds > LONG_S:
        lines.append(
            "that is long: lower --samples, or have a server write it, r1quant calib generate MODEL --base-url URL "
            "-o FILE.jsonl, and give --calib FILE.jsonl"
            if recipe.calib == SELF
            else "that is long: --continued 0 leaves it out, a smaller number makes it shorter"
        )
    return lines
