"""Preflight: which formats a quantization can be exported to, and which runtimes will load them. Nothing is read.

The demands are those of the runtimes' own loaders (vLLM 0.33, SGLang 0.5, transformers 5, onnxruntime 1.3x,
llama.cpp). It does not know methods or files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from r1quant.arch.tables import Architecture, linears, size
from r1quant.checkpoint.artifact import LinearSpec
from r1quant.core.grid import BITS
from r1quant.core.json import Config, JsonObject
from r1quant.formats.codec import table_problem
from r1quant.formats.table import CODECS
from r1quant.planning.targets import ExportOptions, family_problem, problem
from r1quant.registry import FORMATS, TABLES

KERNEL_GROUPS = (32, 64, 128, -1)


@dataclass(frozen=True)
class RuntimeRule:
    """What a runtime takes of a format beyond what the format holds.

    symmetric, asymmetric  the bits of grids of either kind
    mixed                  whether linears of the layers may differ in bits, or stay in float: if all grids are
                           symmetric, and if not
    tables                 those that it loads as integers
    careful                what goes wrong, in some other way of loading it, if linears differ
    """

    symmetric: tuple[int, ...] = BITS
    asymmetric: tuple[int, ...] = BITS
    group_sizes: tuple[int, ...] | None = None
    mixed: tuple[bool, bool] = (True, True)
    tables: tuple[str, ...] = TABLES
    careful: str = ""


@dataclass(frozen=True)
class ServingRuntime:
    """shards: whether it splits a model over devices, layers fused (q/k/v, gate/up)."""

    name: str
    rules: Mapping[str, RuntimeRule]
    shards: bool = False


_SERVERS = {
    "gptq": RuntimeRule((4, 8), (), KERNEL_GROUPS),
    "awq": RuntimeRule((4,), (4,), KERNEL_GROUPS),
    "compressed-tensors": RuntimeRule((4, 8), (4,), KERNEL_GROUPS),
}
_HEAD = ("head",)  # transformers loads a packed embedding only to dequantize it; of SGLang nothing says that it does
RUNTIMES: Sequence[ServingRuntime] = (
    ServingRuntime("vLLM", _SERVERS, shards=True),
    ServingRuntime("SGLang", {name: replace(rule, tables=_HEAD) for name, rule in _SERVERS.items()}, shards=True),
    ServingRuntime(
        "transformers",
        {
            **dict.fromkeys(("gptq", "gptq-v2"), RuntimeRule(mixed=(False, False), tables=())),
            "awq": RuntimeRule(),
            "compressed-tensors": RuntimeRule(
                mixed=(True, False),  # zero points it reads only with one scheme for all
                tables=_HEAD,
                careful="load it without CompressedTensorsConfig(dequantize=True), which takes the bits of one config "
                "group for all, without a word",
            ),
        },
    ),
    ServingRuntime("onnxruntime", {"onnx": RuntimeRule()}),
    ServingRuntime("onnxruntime-genai", {"onnx": RuntimeRule()}),
    ServingRuntime("llama.cpp", {"gguf": RuntimeRule()}),
    ServingRuntime("Ollama", {"gguf": RuntimeRule()}),
)
SERVING = tuple(runtime.name for runtime in RUNTIMES if runtime.shards)


@dataclass(frozen=True)
class Verdict:
    """loads: the formats that a runtime takes; refuses: the others that it knows, with the reason."""

    runtime: str
    loads: tuple[str, ...]
    refuses: Mapping[str, str]

    def as_dict(self) -> JsonObject:
        return {"runtime": self.runtime, "loads": list(self.loads), "refuses": dict(self.refuses)}


def mixed_bits(format: str, symmetric: bool, name: str | None = None) -> frozenset[int]:
    """The bits at which a runtime, any or the named one, loads a format if linears differ; none if none does."""
    rules = [runtime.rules[format] for runtime in RUNTIMES if format in runtime.rules and name in (None, runtime.name)]
    able = (rule for rule in rules if rule.mixed[not symmetric])
    return frozenset(b for rule in able for b in (rule.symmetric if symmetric else rule.asymmetric))


def formats(
    arch: Architecture, linear_specs: Mapping[str, LinearSpec], options: ExportOptions | None = None
) -> dict[str, str | None]:
    """For every format None, or why it cannot hold the family, or all linears exactly."""
    options, kinds = options or ExportOptions(), dict.fromkeys(linear_specs.values())
    answers: dict[str, str | None] = {}
    for name in FORMATS:
        reasons = (problem(name, form, options) for form in kinds)
        head = (
            table_problem(name, "head", tied=False) if name in CODECS and _name(arch, "head") in linear_specs else None
        )
        answers[name] = family_problem(name, arch) or next((reason for reason in reasons if reason), head)
    return answers


def runtimes(
    arch: Architecture, config: Config, linear_specs: Mapping[str, LinearSpec], devices: int = 1
) -> list[Verdict]:
    """What each runtime makes of the linears; devices: over how many a serving runtime is to split them."""
    held = formats(arch, linear_specs)
    verdicts = []
    for runtime in RUNTIMES:
        loads, refuses = [], {}
        for name, rule in runtime.rules.items():
            reason = held[name] or _kernels(rule, linear_specs) or _tables(rule, arch, linear_specs)
            symmetric = all(form.symmetric for form in linear_specs.values())
            if reason is None and not rule.mixed[not symmetric] and _differ(arch, config, linear_specs):
                reason = "linears differ in their bits, which it does not read from this format"
            if reason is None and runtime.shards:
                reason = _fused(arch, config, linear_specs) or _sharded(arch, config, linear_specs, devices)
            if reason is None:
                loads.append(name)
            else:
                refuses[name] = reason
        verdicts.append(Verdict(runtime.name, tuple(loads), refuses))
    return verdicts


def cautions(
    arch: Architecture, config: Config, linear_specs: Mapping[str, LinearSpec], format: str
) -> Mapping[str, str]:
    """By runtime, what to mind if it loads linears that differ from a format."""
    if not _differ(arch, config, linear_specs) and len({form.bits for form in linear_specs.values()}) < 2:
        return {}
    texts = {runtime.name: runtime.rules[format].careful for runtime in RUNTIMES if format in runtime.rules}
    loads = {verdict.runtime for verdict in runtimes(arch, config, linear_specs) if format in verdict.loads}
    return {name: text for name, text in texts.items() if text and name in loads}


def _kernels(rule: RuntimeRule, linear_specs: Mapping[str, LinearSpec]) -> str | None:
    for form in dict.fromkeys(linear_specs.values()):
        allowed = rule.symmetric if form.symmetric else rule.asymmetric
        if not allowed:
            return "only symmetric grids are loaded"
        if form.bits not in allowed:
            kind = "symmetric" if form.symmetric else "asymmetric"
            return f"{kind} grids need {' or '.join(map(str, allowed))} bits, not {form.bits}"
        if rule.group_sizes is not None and form.group_size not in rule.group_sizes:
            return f"kernels take group sizes {', '.join(map(str, rule.group_sizes))}, not {form.group_size}"
    return None


def _tables(rule: RuntimeRule, arch: Architecture, linear_specs: Mapping[str, LinearSpec]) -> str | None:
    for table in TABLES:
        if _name(arch, table) in linear_specs and table not in rule.tables:
            return f"it loads the {table} in floats only"
    return None


def _name(arch: Architecture, table: str) -> str:
    """That of a table, as linears are called."""
    tensor = arch.tensors.embedding if table == "embedding" else arch.tensors.head
    return tensor.removesuffix(".weight")


def _differ(arch: Architecture, config: Config, linear_specs: Mapping[str, LinearSpec]) -> bool:
    """Whether the linears of the layers are not all of the same bits."""
    specs = (linear_specs.get(name) for name in linears(config, arch)[:-1])
    return len({form and form.bits for form in specs}) > 1


def _fused(arch: Architecture, config: Config, linear_specs: Mapping[str, LinearSpec]) -> str | None:
    """Linears that share an input become one layer, so they must be alike."""
    for index in range(size(config, "num_hidden_layers")):
        for stage in arch.layer.stages:
            kinds = set()
            for name in stage.linears:
                form = linear_specs.get(arch.layer_prefix(index) + name)
                kinds.add(form and (form.bits, form.group_size, form.symmetric))
            if len(kinds) > 1:
                return f"{', '.join(stage.linears)} of layer {index} are fused, and must be quantized alike"
    return None


def _sharded(arch: Architecture, config: Config, linear_specs: Mapping[str, LinearSpec], devices: int) -> str | None:
    """Rows of q, k, v, gate and up are split, and columns of the attention output and down, at group borders."""
    if devices == 1:
        return None
    heads, inner = size(config, "num_attention_heads"), size(config, "intermediate_size")
    kv_heads = size(config, "num_key_value_heads", heads)
    if heads % devices:
        return f"{heads} heads cannot be split over {devices} devices"
    if kv_heads % devices and devices % kv_heads:
        return f"{kv_heads} heads of k and v cannot be split over {devices} devices"
    if inner % devices:
        return f"the {inner} columns inside the MLP cannot be split over {devices} devices"
    for name in (name for stage in arch.layer.stages if stage.residual for name in stage.linears):
        specs = (
            linear_specs.get(arch.layer_prefix(index) + name) for index in range(size(config, "num_hidden_layers"))
        )
        for columns, group in dict.fromkeys((form.shape[1], form.group_size) for form in specs if form):
            if group not in (-1, None) and columns // devices % group:
                share = columns // devices
                return f"{name} has {share} columns on each of {devices} devices, no multiple of the group size"
    return None
