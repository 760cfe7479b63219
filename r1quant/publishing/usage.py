"""How to run a model that is there: lines to copy, for each runtime that loads it. On cards and in the terminal."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

INSTRUCTION = r"Please reason step by step, and put your final answer within \boxed{}."
QUESTION = "What is 17 * 23?"
R1_SAMPLING = {"temperature": 0.6, "top_p": 0.95}
NEEDS = {"gptq": "gptqmodel", "gptq-v2": "gptqmodel", "awq": "gptqmodel"}  # what transformers loads a format with
PARSERS = {"vLLM": "deepseek_r1", "SGLang": "deepseek-r1"}
LONGEST = 32768  # tokens of an answer that reasons


@dataclass(frozen=True)
class Model:
    """What of a model decides how it is run.

    repo      its name on the Hub; None for a folder
    name      a short name
    reasons   whether it thinks aloud before it answers
    r1        whether its chat format is that of DeepSeek-R1
    context   the most tokens that it takes
    sampling  its own defaults: temperature, top_p and so on
    """

    repo: str | None
    name: str
    reasons: bool
    r1: bool
    context: int
    sampling: Mapping[str, float] = field(default_factory=dict)

    @property
    def drawn(self) -> dict[str, float]:
        """How answers are drawn; empty if nothing is recommended."""
        stated = {key: self.sampling[key] for key in ("temperature", "top_p", "top_k") if key in self.sampling}
        return {**R1_SAMPLING, **stated} if self.reasons else stated

    @property
    def question(self) -> str:
        return f"{QUESTION} {INSTRUCTION}" if self.reasons else QUESTION

    @property
    def tokens(self) -> int:
        """Of an answer."""
        return max(1, min(LONGEST if self.reasons else 1024, self.context // 2))


def advice(model: Model) -> str:
    """What matters whatever runs it."""
    if not model.reasons:
        return ""
    drawn = ", ".join(f"{key} {value:g}" for key, value in model.drawn.items())
    return (
        f"Draw answers with {drawn}; greedy decoding makes a reasoning model repeat itself. Use no system prompt: put "
        f"everything into the user's turn. For mathematics, add: “{INSTRUCTION}” "
        f"Leave room for the reasoning: up to {model.context} tokens in all."
    )


@dataclass(frozen=True)
class Block:
    """Lines of one language, sh or python, to copy."""

    language: str
    lines: tuple[str, ...]

    @property
    def markdown(self) -> str:
        return "\n".join((f"```{self.language}", *self.lines, "```"))


@dataclass(frozen=True)
class Usage:
    """How one runtime runs a model: the commands, and the code where the runtime is a library."""

    runtime: str
    blocks: tuple[Block, ...]

    @property
    def is_library(self) -> bool:
        return any(block.language == "python" for block in self.blocks)


class Loadable(Protocol):
    """A model that is there: its path from where the commands are run (or inside the repository), empty for the folder
    itself; its format; the runtimes that load it; the Modelfile beside it, empty if there is none."""

    @property
    def name(self) -> str: ...
    @property
    def format(self) -> str: ...
    @property
    def runtimes(self) -> tuple[str, ...]: ...
    @property
    def modelfile(self) -> str: ...


def usages(part: Loadable, model: Model) -> list[Usage]:
    """For each runtime that loads a model, how it runs it."""
    return [Usage(name, tuple(write(part, model))) for name, write in WRITERS.items() if name in part.runtimes]


def sections(parts: Sequence[Loadable], model: Model) -> list[tuple[str, str]]:
    """Title and Markdown of each runtime for each part that it loads, in the order of parts."""
    return [
        (
            f"{usage.runtime}, {part.name}" if len(parts) > 1 and part.name else usage.runtime,
            "\n\n".join(block.markdown for block in usage.blocks),
        )
        for part in parts
        for usage in usages(part, model)
    ]


def _sh(*lines: str) -> Block:
    return Block("sh", lines)


def _got(part: Loadable, model: Model) -> tuple[list[str], str]:
    """Lines that download a part which must lie on the disk, and its path then."""
    if model.repo is None:
        return [], part.name or "."
    return [f"hf download {model.repo} --local-dir {shlex.quote(model.name)}"], "/".join(
        filter(None, (model.name, part.name))
    )


def _loaded(part: Loadable, model: Model) -> tuple[list[str], str]:
    """As `_got`, for runtimes that download a repository themselves."""
    return ([], model.repo) if model.repo and not part.name else _got(part, model)


def _request(model: Model, port: int) -> str:
    body = {
        "model": model.name,
        "messages": [{"role": "user", "content": model.question}],
        **model.drawn,
        "max_tokens": model.tokens,
    }
    text = json.dumps(body, ensure_ascii=False).replace("'", "'\\''")
    return f"curl http://localhost:{port}/v1/chat/completions -H 'Content-Type: application/json' -d '{text}'"


def _vllm(part: Loadable, model: Model) -> Iterator[Block]:
    lines, path = _loaded(part, model)
    parser = f" --reasoning-parser {PARSERS['vLLM']}" if model.r1 else ""
    served = f"{shlex.quote(path)} --served-model-name {shlex.quote(model.name)}"
    serve = f"vllm serve {served} --max-model-len {model.context}{parser}"
    yield _sh(*lines, serve, _request(model, 8000))


def _sglang(part: Loadable, model: Model) -> Iterator[Block]:
    lines, path = _loaded(part, model)
    parser = f" --reasoning-parser {PARSERS['SGLang']}" if model.r1 else ""
    served = f"{shlex.quote(path)} --served-model-name {shlex.quote(model.name)}"
    serve = f"python -m sglang.launch_server --model-path {served} --context-length {model.context}{parser}"
    yield _sh(*lines, serve, _request(model, 30000))


def _transformers(part: Loadable, model: Model) -> Iterator[Block]:
    lines, path = _loaded(part, model)
    package = NEEDS.get(part.format, "compressed-tensors")
    drawn = "".join(f", {key}={value:g}" for key, value in model.drawn.items())
    sampled = f", do_sample=True{drawn}" if drawn else ""
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f"path = {json.dumps(path)}",
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        'model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", device_map="auto")',
        f'messages = [{{"role": "user", "content": r"{model.question}"}}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ").to(model.device)",
        f"output = model.generate(**inputs, max_new_tokens={model.tokens}{sampled})",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))',
    )
    yield _sh(f"pip install transformers accelerate {package}", *lines)
    yield Block("python", code)


def _flags(model: Model) -> str:
    names = {"temperature": "temp", "top_p": "top-p", "top_k": "top-k"}
    return "".join(f" --{names[key]} {value:g}" for key, value in model.drawn.items())


def _llamacpp(part: Loadable, model: Model) -> Iterator[Block]:
    lines, path = _got(part, model)
    context = f"--jinja -c {model.context}{_flags(model)}"
    asked = json.dumps(model.question).replace("\\\\", "\\")
    file = shlex.quote(path)
    yield _sh(*lines, f"llama-cli -m {file} {context} -p {asked}", f"llama-server -m {file} {context}")


def _ollama(part: Loadable, model: Model) -> Iterator[Block]:
    lines, path = _got(part, model)
    folder, name = shlex.quote(path.rpartition("/")[0] or "."), shlex.quote(model.name)
    create = f"ollama create {name} -f {shlex.quote(part.modelfile)}"
    yield _sh(*lines, f"cd {folder} && {create}", f"ollama run {name}")


def _genai(part: Loadable, model: Model) -> Iterator[Block]:
    lines, path = _got(part, model)
    drawn = "".join(f", {key}={value:g}" for key, value in model.drawn.items())
    sampled = f"do_sample=True{drawn}, " if drawn else ""
    code = (
        "import json",
        "import onnxruntime_genai as og",
        "",
        f"model = og.Model({json.dumps(path)})",
        "tokenizer = og.Tokenizer(model)",
        f'messages = json.dumps([{{"role": "user", "content": r"{model.question}"}}])',
        "prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True)",
        "params = og.GeneratorParams(model)",
        f"params.set_search_options({sampled}max_length={model.context})",
        "generator, stream = og.Generator(model, params), tokenizer.create_stream()",
        "generator.append_tokens(tokenizer.encode(prompt))",
        "while not generator.is_done():",
        "    generator.generate_next_token()",
        '    print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)',
    )
    yield _sh("pip install onnxruntime-genai", *lines)
    yield Block("python", code)


def _onnxruntime(part: Loadable, model: Model) -> Iterator[Block]:
    lines, path = _got(part, model)
    code = (
        "import onnxruntime as ort",
        "",
        f"session = ort.InferenceSession({json.dumps(f'{path}/model.onnx')})",
        "print([(given.name, given.shape, given.type) for given in session.get_inputs()])",
    )
    yield _sh("pip install onnxruntime", *lines)
    yield Block("python", code)


WRITERS = {
    "vLLM": _vllm,
    "SGLang": _sglang,
    "transformers": _transformers,
    "llama.cpp": _llamacpp,
    "Ollama": _ollama,
    "onnxruntime-genai": _genai,
    "onnxruntime": _onnxruntime,
}
