"""Recipe: everything a user decides about a quantization. Frozen and strict.

It knows which values are possible at all; whether they fit a model is the planner's question.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from r1quant.core.grid import BITS, GROUP_SIZES, SCALE_DTYPES, Grid, ScaleDtype
from r1quant.core.platforms import NO_MPS
from r1quant.errors import RecipeError
from r1quant.registry import DEFAULT_PRESET, FORMATS, METHODS, PRESETS

FLOAT = 16  # among the bits that a linear may have: it stays as it is
ROTATIONS = ("r1", "r2", "both")
TARGETS = ("target_bpw", "target_size", "fit_gpu")
SHARES = ("guided_share", "corrected_share")
ENOUGH_TOKENS = 8192  # a share that leaves less saves seconds, and costs a fifth more divergence (docs/log.md)
UNITS = {"": 1, "b": 1} | {f"{k}{i}b": (1024 if i else 1000) ** n for n, k in enumerate("kmgt", 1) for i in ("", "i")}
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([a-z]*)", re.IGNORECASE)
MOST_CONTINUED = 16
DEVICE = re.compile(r"auto|cpu|cuda(:\d{1,3})?")


@dataclass(frozen=True)
class Recipe:
    """method        gptq, awq or rtn
    bits          2 .. 8
    group_size    16, 32, 64, 128, or -1 for whole rows
    symmetric     zero point fixed at 2**(bits-1); otherwise chosen for each group
    scale_dtype   portable: exact in float16 and in bfloat16; or float16
    scale_search  choose scales by error, not by min-max
    act_order     take columns in order of importance (groups stay contiguous)
    damping       share of the Hessian's mean diagonal that is added to it
    guided        round by what the answer needs: a sensitivity pass first, then weighted tokens and coupled rows
    guided_share  the part of the calibration windows that the sensitivity pass goes over, the first ones; > 0 .. 1
    draws         next tokens drawn at every position for the sensitivity pass, which is made as often
    corrected     aim at the float model's outputs, so that each layer makes up for the errors of those before it
    corrected_share   the part of the calibration windows on which the float model runs for that; as guided_share
    awq           scale input channels by what they carry, folded into what comes before; method awq does so always
    smooth        SmoothQuant's share of the activations' spread that moves into the weights, 0 .. 1; or None
    rotate        r1 (the residual stream), r2 (the heads between v and o), both, or None
    calib         a text or JSONL file, hub:NAME, self for text that the model writes, or None for the bundled text
    samples, seq_len, seed   the calibration windows
    continued     for how many of these windows, as a part of them, the model writes on from where they break off; what
                  it writes is calibrated on as well. Beyond 1 it writes on from each more than once
    format        what is written
    device, dtype where and in what precision the calibration text is run

    Instead of bits there can be one budget, within which each linear gets the bits that cost the least:

    target_bpw    stored bits per weight of the linears, with scales and zero points
    target_size   bytes of all weight files
    fit_gpu       the name of a card that shall hold the weights and the cache of
    context       so many tokens
    allowed_bits  the bits to choose from, 16 for linears that stay in float; where it is empty, those that the format
                  holds and a runtime loads mixed
    """

    method: str = "gptq"
    bits: int = 4
    group_size: int = 128
    symmetric: bool = True
    scale_dtype: ScaleDtype = "portable"
    scale_search: bool = True
    act_order: bool = True
    damping: float = 0.01
    guided: bool = False
    guided_share: float = 1.0
    draws: int = 1
    corrected: bool = False
    corrected_share: float = 1.0
    awq: bool = False
    smooth: float | None = None
    rotate: str | None = None
    calib: str | None = None
    samples: int = 128
    seq_len: int = 1024
    seed: int = 0
    continued: float = 0.0
    format: str = "gptq"
    device: str = "auto"
    dtype: str = "auto"
    target_bpw: float | None = None
    target_size: int | None = None
    fit_gpu: str | None = None
    context: int | None = None
    allowed_bits: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Raises RecipeError naming the first value that is not possible."""
        _one_of("method", self.method, METHODS)
        _one_of("bits", self.bits, BITS)
        _one_of("group size", self.group_size, GROUP_SIZES)
        _one_of("scale dtype", self.scale_dtype, SCALE_DTYPES)
        if isinstance(self.format, str) and self.format in FORMATS and not FORMATS[self.format].quantized:
            raise RecipeError(
                f"quantize does not write {self.format}",
                f"quantize without --format first, then: r1quant export OUT --to {self.format}",
            )
        _one_of("format", self.format, [name for name, format in FORMATS.items() if format.quantized])
        _one_of("dtype", self.dtype, ("auto", "float32", "bfloat16", "float16"))
        for name, flag in (
            ("symmetric", self.symmetric),
            ("scale-search", self.scale_search),
            ("act-order", self.act_order),
            ("guided", self.guided),
            ("corrected", self.corrected),
            ("awq", self.awq),
        ):
            if not isinstance(flag, bool):
                raise RecipeError(f"{name} is {flag!r}", "give true or false")
        if self.calib is not None and not (isinstance(self.calib, str) and self.calib):
            raise RecipeError(f"calib is {self.calib!r}", "give the name of a file, hub:NAME, or self")
        if not isinstance(self.device, str) or not DEVICE.fullmatch(self.device):
            reason = NO_MPS if str(self.device).startswith("mps") else f"device {self.device!r} is not supported"
            raise RecipeError(reason, "choose from auto, cpu, cuda, cuda:0, ...")
        for name, value, least in (
            ("samples", self.samples, 1),
            ("seq-len", self.seq_len, 2),
            ("seed", self.seed, 0),
            ("draws", self.draws, 1),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise RecipeError(f"{name} is {value!r}", f"give a whole number of at least {least}")
        if isinstance(self.damping, bool) or not isinstance(self.damping, int | float) or not 0 <= self.damping <= 1:
            raise RecipeError(f"damping is {self.damping!r}", "give a number from 0 to 1")
        for name, share in (("guided-share", self.guided_share), ("corrected-share", self.corrected_share)):
            if isinstance(share, bool) or not isinstance(share, int | float) or not 0 < share <= 1:
                raise RecipeError(f"{name} is {share!r}", "give a number above 0, at most 1")
        more = self.continued
        if isinstance(more, bool) or not isinstance(more, int | float) or not 0 <= more <= MOST_CONTINUED:
            raise RecipeError(f"continued is {more!r}", f"give a number from 0 to {MOST_CONTINUED}")
        self._check_transforms()
        self._check_budget()

    def _check_transforms(self) -> None:
        if self.rotate is not None:
            _one_of("rotate", self.rotate, ROTATIONS)
        smooth = self.smooth
        if smooth is None:
            return
        if isinstance(smooth, bool) or not isinstance(smooth, int | float) or not 0 <= smooth <= 1:
            raise RecipeError(f"smooth is {smooth!r}", "give a number from 0 to 1, such as 0.5")
        if self.factors == "awq":
            raise RecipeError("--smooth and AWQ choose the same factors", "leave one of them out")

    def _check_budget(self) -> None:
        given = [flag(name) for name in TARGETS if getattr(self, name) is not None]
        if len(given) > 1:
            raise RecipeError(f"{' and '.join(given)} exclude each other", "give one of them")
        bpw, size = self.target_bpw, self.target_size
        if bpw is not None and (isinstance(bpw, bool) or not isinstance(bpw, int | float) or not 0 < bpw <= 32):
            raise RecipeError(f"target-bpw is {bpw!r}", "give a number of bits, such as 4.5")
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise RecipeError(f"target-size is {size!r}", "give a size such as 5GB or 700MB")
        if self.fit_gpu is not None and not isinstance(self.fit_gpu, str):
            raise RecipeError(f"fit-gpu is {self.fit_gpu!r}", 'give the name of a card, such as "RTX 4060"')
        if (self.fit_gpu is None) != (self.context is None):
            raise RecipeError(
                "--fit-gpu and --context belong together", 'give both: --fit-gpu "RTX 4060" --context 32768'
            )
        if self.context is not None and (type(self.context) is not int or self.context < 1):
            raise RecipeError(f"context is {self.context!r}", "give a whole number of tokens")
        if self.allowed_bits and not given:
            raise RecipeError(
                "--allowed-bits says from which bits a budget is met", f"give --bits, or one of {_flags()}"
            )
        for bits in self.allowed_bits:
            _one_of("bits", bits, (*BITS, FLOAT))

    @property
    def grid(self) -> Grid:
        """The grid of this recipe, within what its format can store."""
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
        if self.awq or self.method == "awq":
            return "awq"
        return None if self.smooth is None else "smooth"

    def as_dict(self) -> dict[str, Any]:
        """Without the bits where a budget decides them."""
        values = asdict(self) | {"allowed_bits": list(self.allowed_bits)}
        return values | ({"bits": None} if self.budgeted else {})


def _one_of(name: str, value: Any, allowed: Any) -> None:
    known = list(allowed)
    if type(value) is not type(known[0]) or value not in known:
        raise RecipeError(f"{name} {value!r} is not supported", f"choose from {', '.join(map(str, known))}")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _flags() -> str:
    return ", ".join(map(flag, TARGETS))


def nbytes(value: Any) -> Any:
    """The bytes that a text such as 5GB, 4.7 GiB or 700MB says; anything else as it is."""
    found = SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    unit = UNITS.get(found[2].lower()) if found else None
    return int(float(found[1]) * unit) if found and unit else value


def _widths(value: Any) -> Any:
    """Bits out of a text such as 4,8 or a list; anything else as it is."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        value = [int(part) if part.isascii() and part.isdigit() else part for part in parts]
    return tuple(dict.fromkeys(value)) if isinstance(value, list | tuple) else (value,)


def from_values(values: Mapping[str, Any], preset: str | None = None) -> Recipe:
    """A recipe from named values (those that are None are left at their default), over a preset: the named one, or
    the default where no method is named either. The shares of the windows that a preset states save time on much text:
    they leave ENOUGH_TOKENS, or all there is. Under a budget they do not hold: bits chosen by a part of the text suit
    that part, and linears of few bits leave more to be corrected."""
    merged: dict[str, Any] = {}
    method = values.get("method")
    if preset is None and method is None:
        preset = DEFAULT_PRESET
    if preset is not None:
        _one_of("preset", preset, PRESETS)
        merged |= PRESETS[preset]
        if method not in (None, merged["method"]):
            raise RecipeError(f"--preset {preset} rounds by {merged['method']}", "leave out --method, or --preset")
    known = [f.name for f in fields(Recipe)]
    for key, value in values.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise RecipeError(
                f"{key!r} is not a recipe option", f"did you mean {near[0]}?" if near else f"known are {known}"
            )
        if value is not None:
            merged[key] = value
    target = next((name for name in TARGETS if merged.get(name) is not None), None)
    if target is not None:
        if values.get("bits") is not None:
            raise RecipeError(
                f"--bits and {flag(target)} exclude each other",
                "leave one out; --allowed-bits 4,8 says what to choose from",
            )
        merged.pop("bits", None)
    for name, read in (("target_size", nbytes), ("allowed_bits", _widths)):
        if name in merged:
            merged[name] = read(merged[name])
    recipe = Recipe(**merged)
    least = 1.0 if recipe.budgeted else min(1.0, ENOUGH_TOKENS / (recipe.windows * recipe.seq_len))
    return replace(recipe, **{name: max(getattr(recipe, name), least) for name in SHARES if values.get(name) is None})


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


@dataclass(frozen=True)
class Settings:
    """r1quant.toml: `model`, `out` and `gates` (of verify) at the top, recipe values under [quantize]."""

    model: str | None
    out: str | None
    quantize: Mapping[str, Any]
    gates: tuple[str, ...] = ()


def read_settings(folder: Path) -> Settings:
    """The settings of a folder; all None where it has no r1quant.toml."""
    path = folder / "r1quant.toml"
    if not path.is_file():
        return Settings(None, None, {})
    try:
        raw = tomllib.loads(path.read_text("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise RecipeError(f"r1quant.toml cannot be read: {error}", "mend the file or remove it") from None
    unknown = set(raw) - {"model", "out", "gates", "quantize"}
    table = raw.get("quantize", {})
    if unknown or not isinstance(table, dict):
        raise RecipeError(
            f"r1quant.toml: {', '.join(sorted(unknown)) or 'quantize'} is not understood",
            "keys are model, out, gates and the table [quantize]",
        )
    for key in ("model", "out"):
        if not (isinstance(raw.get(key, "a name"), str) and raw.get(key, "a name")):
            raise RecipeError(f"r1quant.toml: {key} is {raw[key]!r}", "give a name or a path, in quotes")
    gates = raw.get("gates", [])
    if not isinstance(gates, list) or not all(isinstance(gate, str) for gate in gates):
        raise RecipeError(f"r1quant.toml: gates is {gates!r}", 'give a list of strings: gates = ["kl.mean<0.05"]')
    return Settings(raw.get("model"), raw.get("out"), table, tuple(gates))
