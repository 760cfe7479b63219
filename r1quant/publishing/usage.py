"""How to run what is published: lines to copy, for each runtime that loads one of the parts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from r1quant.publishing.evidence import PublishedModel

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
        """How answers are drawn; empty where nothing is recommended."""
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


def sections(parts: Sequence[PublishedModel], model: Model) -> list[tuple[str, str]]:
    """Title and Markdown of each runtime for each part that it loads, in the order of parts."""
    found = []
    for part in parts:
        for runtime, write in WRITERS.items():
            if runtime in part.runtimes:
                title = f"{runtime}, {part.name}" if len(parts) > 1 and part.name else runtime
                found.append((title, write(part, model)))
    return found


def _block(language: str, *lines: str) -> str:
    return "\n".join((f"```{language}", *lines, "```"))


def _got(part: PublishedModel, model: Model) -> tuple[list[str], str]:
    """Lines that download a part which must lie on the disk, and its path then."""
    if model.repo is None:
        return [], part.name or "."
    return [f"hf download {model.repo} --local-dir {model.name}"], "/".join(filter(None, (model.name, part.name)))


def _loaded(part: PublishedModel, model: Model) -> tuple[list[str], str]:
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


def _vllm(part: PublishedModel, model: Model) -> str:
    lines, path = _loaded(part, model)
    parser = f" --reasoning-parser {PARSERS['vLLM']}" if model.r1 else ""
    serve = f"vllm serve {path} --served-model-name {model.name} --max-model-len {model.context}{parser}"
    return _block("sh", *lines, serve, _request(model, 8000))


def _sglang(part: PublishedModel, model: Model) -> str:
    lines, path = _loaded(part, model)
    parser = f" --reasoning-parser {PARSERS['SGLang']}" if model.r1 else ""
    serve = f"python -m sglang.launch_server --model-path {path} --served-model-name {model.name}"
    return _block("sh", *lines, f"{serve} --context-length {model.context}{parser}", _request(model, 30000))


def _transformers(part: PublishedModel, model: Model) -> str:
    lines, path = _loaded(part, model)
    package = NEEDS.get(part.format, "compressed-tensors")
    drawn = "".join(f", {key}={value:g}" for key, value in model.drawn.items())
    sampled = f", do_sample=True{drawn}" if drawn else ""
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer",
        "",
        f'path = "{path}"',
        "tokenizer = AutoTokenizer.from_pretrained(path)",
        'model = AutoModelForCausalLM.from_pretrained(path, dtype="auto", device_map="auto")',
        f'messages = [{{"role": "user", "content": r"{model.question}"}}]',
        "inputs = tokenizer.apply_chat_template(",
        '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
        ").to(model.device)",
        f"output = model.generate(**inputs, max_new_tokens={model.tokens}{sampled})",
        'print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :]))',
    )
    return "\n\n".join(
        (_block("sh", f"pip install transformers accelerate {package}", *lines), _block("python", *code))
    )


def _flags(model: Model) -> str:
    names = {"temperature": "temp", "top_p": "top-p", "top_k": "top-k"}
    return "".join(f" --{names[key]} {value:g}" for key, value in model.drawn.items())


def _llamacpp(part: PublishedModel, model: Model) -> str:
    lines, path = _got(part, model)
    context = f"--jinja -c {model.context}{_flags(model)}"
    asked = json.dumps(model.question).replace("\\\\", "\\")
    return _block("sh", *lines, f"llama-cli -m {path} {context} -p {asked}", f"llama-server -m {path} {context}")


def _ollama(part: PublishedModel, model: Model) -> str:
    lines, path = _got(part, model)
    folder = path.rpartition("/")[0] or "."
    return _block(
        "sh", *lines, f"cd {folder} && ollama create {model.name} -f {part.modelfile}", f"ollama run {model.name}"
    )


def _genai(part: PublishedModel, model: Model) -> str:
    lines, path = _got(part, model)
    drawn = "".join(f", {key}={value:g}" for key, value in model.drawn.items())
    sampled = f"do_sample=True{drawn}, " if drawn else ""
    code = (
        "import json",
        "import onnxruntime_genai as og",
        "",
        f'model = og.Model("{path}")',
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
    return "\n\n".join((_block("sh", "pip install onnxruntime-genai", *lines), _block("python", *code)))


def _onnxruntime(part: PublishedModel, model: Model) -> str:
    lines, path = _got(part, model)
    code = (
        "import onnxruntime as ort",
        "",
        f'session = ort.InferenceSession("{path}/model.onnx")',
        "print([(given.name, given.shape, given.type) for given in session.get_inputs()])",
    )
    return "\n\n".join((_block("sh", "pip install onnxruntime", *lines), _block("python", *code)))


WRITERS = {
    "vLLM": _vllm,
    "SGLang": _sglang,
    "transformers": _transformers,
    "llama.cpp": _llamacpp,
    "Ollama": _ollama,
    "onnxruntime-genai": _genai,
    "onnxruntime": _onnxruntime,
}
