"""Recipe: everything a user decides about a quantization. Frozen and strict.

It knows which values are possible at all; whether they fit a model is the planner's question.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, TypedDict

from r1quant.core.blocktypes import BLOCK_TYPES, TYPES
from r1quant.core.grid import BITS, GROUP_SIZES, SCALE_DTYPES, UNIFORM, Grid, ScaleDtype, ValueGrid
from r1quant.core.grids import GRIDS
from r1quant.core.options import OneOf, Size, Text, Within, check, option, options_of
from r1quant.core.platforms import NO_MPS
from r1quant.errors import RecipeError
from r1quant.registry import DEFAULT_PRESET, FLOATS, FORMATS, METHODS, PRESETS, TABLES, written

FLOAT = 16  # among the bits that a linear may have: it stays as it is
TARGETS = ("target_bpw", "target_size", "fit_gpu")
SHARES = ("guided_share", "corrected_share")
# With --format gguf: against overfitting to the kind of the calibration text (docs/log.md)
GGUF_DEFAULTS = {"shrinkage": 0.25, "correction_ridge": 1.0}
GGUF_GUIDED_TOKENS = 32768  # as ENOUGH_TOKENS, of guided_share
ENOUGH_TOKENS = 8192  # a share that leaves less saves seconds, and costs a fifth more divergence (docs/log.md)
WRITTEN = tuple(written(UNIFORM))  # the others are for export, and floats for grids that no format holds
WIDTH, BUDGET, ROUNDING, TRANSFORMS, CALIBRATION, OUTPUT, DEVICE = (
    "Bits", "Budget instead of bits", "Rounding", "Transforms before rounding", "Calibration", "Output", "Device",
)  # fmt: skip
DEFAULT_TYPE = "Q4_K_M"
# Options of the uniform grid
UNIFORM_ONLY = ("bits", "group_size", "symmetric", "scale_dtype", "head_bits", "embedding_bits")
ENOUGH_TEXT = "calibration needs at least one sample of two tokens"


def _in_presets(name: str, default: object) -> str:
    """Which presets give an option which value, as a sentence."""
    values: dict[object, list[str]] = {}
    for preset, stated in PRESETS.items():
        if name in stated:
            values.setdefault(stated[name], []).append(f"`{preset}`")
    parts = [
        f"{'on' if value is True else 'off' if value is False else value} in "
        + " and ".join(filter(None, (", ".join(presets[:-1]), presets[-1])))
        for value, presets in values.items()
    ]
    sentence = ", ".join(parts) + ("" if isinstance(default, bool) else f", else {default}")
    return sentence[0].upper() + sentence[1:] + "."


_LEAST = f" A preset's part is at least {ENOUGH_TOKENS:,} tokens, and under a budget all."
_GUIDED_LEAST = _LEAST.replace("tokens,", f"tokens, with --format gguf {GGUF_GUIDED_TOKENS:,},")


@dataclass(frozen=True)
class Recipe:
    """How a model is quantized. A budget replaces bits: target_bpw, target_size, or fit_gpu with context."""

    method: str = option(
        "gptq",
        ROUNDING,
        "Rounding method, as it is, instead of a preset: "
        + "; ".join(f"{n}, {m.summary}" for n, m in METHODS.items())
        + ".",
        OneOf(METHODS),
        shown="",
    )
    grid: str = option(
        UNIFORM,
        WIDTH,
        "Values that weights are rounded to: " + "; ".join(f"{n}, {g.summary}" for n, g in GRIDS.items()) + ".",
        OneOf(GRIDS),
    )
    bits: int = option(4, WIDTH, "Bits of each weight. GPTQ stores 2, 3, 4 and 8, AWQ only 4.", OneOf(tuple(BITS)))
    group_size: int = option(
        128, WIDTH, "Neighbouring weights that share a scale; -1 is a whole row.", OneOf(tuple(GROUP_SIZES))
    )
    symmetric: bool = option(
        True,
        WIDTH,
        "Fix the zero point at the middle of the codes, or choose one for each group.",
        flag="--symmetric/--asymmetric",
    )
    scale_dtype: ScaleDtype = option(
        "portable",
        WIDTH,
        "Precision of the scales; portable ones are exact in float16 and in bfloat16.",
        OneOf(tuple(SCALE_DTYPES)),
    )
    type: str | None = option(
        None,
        WIDTH,
        "What --format gguf makes, instead of --bits: a mixture of llama.cpp, such as Q4_K_M, Q3_K_M, IQ4_XS or "
        "IQ2_XXS, or one block type for all linears, such as Q4_K.",
        OneOf(TYPES),
        shown=f"{DEFAULT_TYPE} with --format gguf",
    )
    head_bits: int = option(
        FLOAT,
        WIDTH,
        "Bits of the output head, in groups as the linears have them; 16 leaves it in float. Types of --format gguf "
        "say it themselves.",
        OneOf((*BITS, FLOAT)),
    )
    embedding_bits: int = option(
        FLOAT,
        WIDTH,
        "Bits of the embedding, likewise; compressed-tensors holds it.",
        OneOf((*BITS, FLOAT)),
    )
    scale_search: bool = option(
        True,
        WIDTH,
        "Choose each scale by the rounding error, or by the smallest and the largest weight.",
        flag="--scale-search/--min-max",
    )
    act_order: bool = option(
        True,
        ROUNDING,
        "Round the columns with the largest inputs first. Groups stay contiguous.",
        flag="--act-order/--no-act-order",
    )
    damping: float = option(
        0.01,
        ROUNDING,
        "Share of the Hessian's mean diagonal that is added to the diagonal, against overfitting. "
        + _in_presets("damping", 0.01),
        Within(0, 1),
        shown="",
    )
    shrinkage: float = option(
        0.0,
        ROUNDING,
        "Share of the correlations between input channels that is left out of account, against overfitting to the kind "
        "of the calibration text.",
        Within(0, 1),
        shown=f"0, with --format gguf {GGUF_DEFAULTS['shrinkage']:g}",
    )
    guided: bool = option(
        False,
        ROUNDING,
        "Weight rounding errors by their gradient (GuidedQuant). Adds one backward pass. "
        + _in_presets("guided", False),
        flag="--guided/--unguided",
        shown="",
    )
    guided_share: float = option(
        1.0,
        ROUNDING,
        "Part of the calibration windows that the backward pass of --guided covers, from the first one on. "
        + _in_presets("guided_share", 1.0)
        + _GUIDED_LEAST,
        Within(0, 1, above=True),
        shown="",
    )
    draws: int = option(
        1,
        ROUNDING,
        "How often the backward pass of --guided is made, each time with other next tokens drawn.",
        Within(1),
    )
    corrected: bool = option(
        False,
        ROUNDING,
        "Let each layer make up for the rounding errors of the layers before it. Runs the float model beside. "
        + _in_presets("corrected", False),
        flag="--corrected/--uncorrected",
        shown="",
    )
    corrected_share: float = option(
        1.0,
        ROUNDING,
        "Part of the calibration windows on which the float model runs for --corrected. "
        + _in_presets("corrected_share", 1.0)
        + _LEAST,
        Within(0, 1, above=True),
        shown="",
    )
    correction_ridge: float = option(
        0.3,
        ROUNDING,
        "Share of the Hessian's mean diagonal that is added to the diagonal for --corrected, against overfitting.",
        Within(0, 100),
        shown=f"0.3, with --format gguf {GGUF_DEFAULTS['correction_ridge']:g}",
    )
    awq: bool = option(
        False,
        TRANSFORMS,
        "Scale input channels by the size of what they carry (AWQ). --method awq always does.",
        flag="--awq/--no-awq",
    )
    smooth: float | None = option(
        None,
        TRANSFORMS,
        "Scale input channels as SmoothQuant does: the share of the activations' spread that moves into the weights, "
        "such as 0.5.",
        Within(0, 1),
    )
    rotate: str | None = option(
        None,
        TRANSFORMS,
        "Rotate the weights: r1 the residual stream, r2 the heads between v and o, or both. Unties the output head and "
        "needs no calibration text.",
        OneOf(("r1", "r2", "both")),
    )
    calib: str | None = option(
        None,
        CALIBRATION,
        "Calibration text: a text or JSONL file, hub:NAME for a dataset, or self for text that the model writes.",
        Text("give the name of a file, hub:NAME, or self", suggestions=("self",)),
        shown="the bundled text",
    )
    samples: int = option(128, CALIBRATION, "Number of calibration windows.", Within(1, need=ENOUGH_TEXT))
    seq_len: int = option(1024, CALIBRATION, "Tokens in each calibration window.", Within(2, need=ENOUGH_TEXT))
    seed: int = option(0, CALIBRATION, "Seed of the shuffle that chooses the calibration windows.", Within(0))
    continued: float = option(
        0.0,
        CALIBRATION,
        "Part of the calibration windows from which the model writes on, to calibrate on that text too; above 1, it "
        "writes on from each more than once. " + _in_presets("continued", 0.0),
        Within(0, 16),
        shown="",
    )
    format: str = option("gptq", OUTPUT, "Format of the checkpoint that is written.", OneOf(WRITTEN, FLOATS))
    device: str = option(
        "auto",
        DEVICE,
        "Where the calibration text is computed: cpu, cuda, cuda:1, ... or auto.",
        Text("choose from auto, cpu, cuda, cuda:0, ...", r"auto|cpu|cuda(:\d{1,3})?", ("auto", "cpu", "cuda")),
    )
    dtype: str = option(
        "auto",
        DEVICE,
        "Precision in which the calibration text is computed.",
        OneOf(("auto", "float32", "bfloat16", "float16")),
    )
    target_bpw: float | None = option(
        None,
        BUDGET,
        "Stored bits per weight, scales included; each linear gets the bits that serve the answer most.",
        Within(0, 32, above=True, unit="bits"),
    )
    target_size: int | None = option(
        None, BUDGET, "Size of all weight files together, such as 5GB. It is never exceeded.", Size()
    )
    fit_gpu: str | None = option(
        None,
        BUDGET,
        'Card that will hold the weights and the cache of --context tokens, such as "RTX 4060".',
        Text('give the name of a card, such as "RTX 4060"', cards=True),
    )
    context: int | None = option(
        None,
        BUDGET,
        "Tokens whose 16-bit cache must fit beside the weights on the card of --fit-gpu.",
        Within(1, unit="tokens"),
    )
    allowed_bits: tuple[int, ...] = option(
        (),
        BUDGET,
        "Bits to choose from, such as 4,8; 16 leaves a linear in float.",
        OneOf((*BITS, FLOAT)),
        shown="all that the format holds and a runtime loads",
    )

    allowed_types: tuple[str, ...] = option(
        (),
        BUDGET,
        "Types to choose from with --format gguf, such as Q3_K,Q4_K,Q6_K. Each matrix gets its own, embedding and head "
        "as well.",
        OneOf(tuple(BLOCK_TYPES), commas=True),
        shown="Q2_K, Q3_K, IQ4_XS, Q4_K, Q5_K, Q6_K and Q8_0; smaller ones if Q2_K is too large",
    )

    def __post_init__(self) -> None:
        """Raises RecipeError naming the first value that is not possible."""
        self._check_format()
        self._check_type()
        if isinstance(self.device, str) and self.device.startswith("mps"):
            raise RecipeError(NO_MPS, "choose from auto, cpu, cuda, cuda:0, ...")
        check(self)
        if self.smooth is not None and self.factors == "awq":
            raise RecipeError("--smooth and AWQ choose the same factors", "leave one of them out")
        self._check_budget()
        self.value_grid  # noqa: B018  (raises RecipeError if the grid is not to be had with these bits)

    def _check_format(self) -> None:
        if self.grid not in (*GRIDS,) or self.format not in (*FORMATS,) or self.format in written(self.grid):
            return
        if self.grid == UNIFORM:
            hint = f"quantize without --format first, then: r1quant export OUT --to {self.format}"
            raise RecipeError(f"quantize does not write {self.format}", hint)
        raise RecipeError(
            f"{self.format} does not hold the grid {self.grid}", f"use --format {' or '.join(written(self.grid))}"
        )

    def _check_type(self) -> None:
        if self.format != "gguf":
            if self.type is not None:
                raise RecipeError(f"--type {self.type} is of GGUF files", "use it with --format gguf, or leave it out")
            return
        if self.factors is not None or self.grid != UNIFORM:
            given = "--grid" if self.grid != UNIFORM else "--smooth" if self.smooth is not None else "AWQ"
            raise RecipeError(f"{given} does not go with --format gguf", "leave it out, or use another --format")

    def _check_budget(self) -> None:
        given = [_flag(name) for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise RecipeError(f"{' and '.join(given)} exclude each other", "give one of them")
        if given and self.grid != UNIFORM:
            raise RecipeError(f"{given[0]} chooses among the bits of the uniform grid", "leave it out")
        if (self.fit_gpu is None) != (self.context is None):
            raise RecipeError(
                "--fit-gpu and --context belong together", 'give both: --fit-gpu "RTX 4060" --context 32768'
            )
        if self.typed and given and self.type is not None:
            raise RecipeError(
                f"--type and {given[0]} exclude each other",
                "leave one out; --allowed-types Q3_K,Q4_K says what to choose from",
            )
        kind, other = ("types", "bits") if self.typed else ("bits", "types")
        if getattr(self, f"allowed_{other}"):
            raise RecipeError(
                f"--allowed-{other} does not go with --format {self.format}", f"use --allowed-{kind}, or leave it out"
            )
        if getattr(self, f"allowed_{kind}") and not given:
            single = "type" if self.typed else "bits"
            raise RecipeError(
                f"--allowed-{kind} says from which {kind} a budget is met",
                f"give --{single}, or one of {', '.join(map(_flag, TARGETS))}",
            )

    @property
    def table_bits(self) -> Mapping[str, int]:
        """Those of embedding and head by the names in registry.TABLES; FLOAT if they stay in float."""
        return dict(zip(TABLES, (self.embedding_bits, self.head_bits), strict=True))

    @property
    def typed(self) -> bool:
        """Whether matrices get types of GGUF."""
        return self.format == "gguf"

    @property
    def mixture(self) -> str | None:
        """What --format gguf makes, a name of r1quant.formats.gguf.mixtures; None for other formats, and if a budget
        decides it."""
        return (self.type or DEFAULT_TYPE) if self.typed and not self.budgeted else None

    @property
    def width(self) -> str:
        """What a name says of the bits."""
        if self.target_bpw is not None:
            return f"{self.target_bpw:g}bpw"
        if self.target_size is not None:
            return f"{self.target_size / 1e9:.4g}GB"
        if self.fit_gpu is not None:
            return f"{''.join(c for c in self.fit_gpu.lower() if c.isalnum())}-{self.context}"
        return self.mixture or f"w{self.bits}"

    @property
    def value_grid(self) -> ValueGrid:
        """The grid of this recipe; that of other formats than GGUF, whose linears have several."""
        return GRIDS[self.grid].make(self.uniform)

    @property
    def uniform(self) -> Grid:
        """The uniform grid of its bits, groups and scales, within what its format can store."""
        zero_min = FORMATS[self.format].zero_min
        return Grid(self.bits, self.group_size, self.symmetric, self.scale_dtype, zero_min)

    @property
    def budgeted(self) -> bool:
        """Whether bits follow from a budget."""
        return any(getattr(self, name) is not None for name in TARGETS)

    @property
    def continuations(self) -> int:
        """How many windows the model writes on."""
        return math.ceil(self.continued * self.samples)

    @property
    def windows(self) -> int:
        """Of the calibration text, those that the model writes among them."""
        return self.samples + self.continuations

    @property
    def guided_windows(self) -> int:
        """How many of them a sensitivity pass goes over."""
        return math.ceil(self.guided_share * self.windows)

    @property
    def corrected_windows(self) -> int:
        """On how many of them the float model runs beside the quantized one."""
        return math.ceil(self.corrected_share * self.windows) if self.corrected else 0

    @property
    def calibrated(self) -> bool:
        """Whether it needs calibration text."""
        return METHODS[self.method].calibrated or self.factors is not None

    @property
    def reads(self) -> bool:
        """Whether text is read: to round with, or to choose bits by."""
        return self.calibrated or self.budgeted

    @property
    def factors(self) -> str | None:
        """How the factors of input channels are chosen, if at all."""
        by_method = METHODS[self.method].factors
        if self.awq or by_method is not None:
            return by_method or "awq"
        return None if self.smooth is None else "smooth"

    def as_dict(self) -> dict[str, Any]:
        """Without the bits if a budget decides them."""
        values = asdict(self) | {"allowed_bits": list(self.allowed_bits), "allowed_types": list(self.allowed_types)}
        if self.typed:
            return values | dict.fromkeys(("grid", *UNIFORM_ONLY)) | {"type": self.mixture}
        return values | ({"bits": None} if self.budgeted else {})


class RecipeArguments(TypedDict, total=False):
    """The fields of a recipe as named arguments; sizes may be texts, and what is None is left at its default."""

    method: str | None
    grid: str | None
    bits: int | None
    group_size: int | None
    symmetric: bool | None
    scale_dtype: ScaleDtype | None
    type: str | None
    head_bits: int | None
    embedding_bits: int | None
    scale_search: bool | None
    act_order: bool | None
    damping: float | None
    shrinkage: float | None
    guided: bool | None
    guided_share: float | None
    draws: int | None
    corrected: bool | None
    corrected_share: float | None
    correction_ridge: float | None
    awq: bool | None
    smooth: float | None
    rotate: str | None
    calib: str | None
    samples: int | None
    seq_len: int | None
    seed: int | None
    continued: float | None
    format: str | None
    device: str | None
    dtype: str | None
    target_bpw: float | None
    target_size: int | str | None
    fit_gpu: str | None
    context: int | None
    allowed_bits: Sequence[int] | str | None
    allowed_types: Sequence[str] | str | None


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def from_values(values: Mapping[str, object], preset: str | None = None) -> Recipe:
    """A recipe from named values (those that are None are left at their default), over a preset: the named one, or
    the default if no method is named either. The shares of the windows that a preset states save time on much text:
    they leave ENOUGH_TOKENS or more, or all there is. Under a budget they do not hold: bits chosen by a part of the
    text suit that part, and linears of few bits leave more to be corrected. Raises RecipeError."""
    known = {one.name: one for one in options_of(Recipe)}
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else "r1quant quantize --help lists all options"
            raise RecipeError(f"{name!r} is not a recipe option", hint)
    given = {name: value for name, value in values.items() if value is not None}
    merged = {**_stated(preset, given.get("method")), **given}
    target = next((name for name in TARGETS if name in merged), None)
    if target is not None and "bits" in given:
        raise RecipeError(
            f"--bits and {_flag(target)} exclude each other",
            "leave one out; --allowed-bits 4,8 says what to choose from",
        )
    odd = [name for name in UNIFORM_ONLY if name in given]
    if merged.get("format") == "gguf" and odd:
        raise RecipeError(f"{_flag(odd[0])} does not go with --format gguf", "choose a --type, such as Q4_K_M")
    merged |= {
        name: known[name].parse(merged[name])
        for name in ("target_size", "allowed_bits", "allowed_types")
        if name in merged
    }
    recipe = Recipe(**((GGUF_DEFAULTS if merged.get("format") == "gguf" else {}) | merged))
    shares: dict[str, Any] = {name: _share(recipe, name) for name in SHARES if name not in given}
    return replace(recipe, **shares)


def _share(recipe: Recipe, name: str) -> float:
    """What a preset says, or more."""
    enough = GGUF_GUIDED_TOKENS if recipe.typed and name == "guided_share" else ENOUGH_TOKENS
    least = 1.0 if recipe.budgeted else min(1.0, enough / (recipe.windows * recipe.seq_len))
    stated: float = getattr(recipe, name)
    return max(stated, least)


def _stated(preset: str | None, method: object) -> dict[str, Any]:
    """What a preset says; nothing if a method is named instead of one."""
    if preset is None and method is not None:
        return {}
    preset = DEFAULT_PRESET if preset is None else preset
    if preset not in PRESETS:
        raise RecipeError(f"preset {preset!r} is not supported", f"choose from {', '.join(PRESETS)}")
    stated = dict(PRESETS[preset])
    if method not in (None, stated["method"]):
        raise RecipeError(f"--preset {preset} rounds by {stated['method']}", "leave out --method, or --preset")
    return stated


def preset_of(recipe: Recipe) -> str | None:
    """The preset whose values a recipe has; None if it has those of none. Shares may be larger: see `from_values`."""
    names = sorted({name for values in PRESETS.values() for name in values})
    for preset, values in PRESETS.items():
        stated = Recipe(**values)
        if all(
            getattr(recipe, name) >= getattr(stated, name)
            if name in SHARES
            else getattr(recipe, name) == getattr(stated, name)
            for name in names
        ):
            return preset
    return None
