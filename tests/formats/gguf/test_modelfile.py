"""Modelfiles: Go templates that say what the chat template does, checked by a small reading of Go's own syntax."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from r1quant.checkpoint.resolve import embedded_folder, open_model
from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.formats.gguf.modelfile import modelfile
from tests.checkpoint.gguf_files import smollm_path
from tests.models import write_model

# DeepSeek-R1-0528's, without tools: the system text, then turns, and reasoning cut from earlier answers.
R1 = (
    "{% set ns = namespace(system_prompt='') %}{%- for message in messages %}{%- if message['role'] == 'system' %}"
    "{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}{{ bos_token }}{{ ns.system_prompt }}"
    "{%- for message in messages %}{%- if message['role'] == 'user' %}"
    "{{'<｜User｜>' + message['content'] + '<｜Assistant｜>'}}{%- endif %}{%- if message['role'] == 'assistant' %}"
    "{% set content = message['content'] %}{% if '</think>' in content %}"
    "{% set content = content.split('</think>')[-1] %}{% endif %}{{ content + '<|end|>'}}{%- endif %}{%- endfor %}"
    "{% if add_generation_prompt and messages[-1]['role'] != 'user' %}{{'<｜Assistant｜>'}}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are kind.<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% for m in messages %}{% set content = '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n'"
    " + m['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
TALKS = (
    [("user", "Hello")],
    [("system", "Be brief."), ("user", "What is 2 + 2?")],
    [("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"), ("user", "e")],
    [("system", "s"), ("user", "a"), ("assistant", "b"), ("user", "c")],
)


def go(template: str, turns: list[tuple[str, str]]) -> str:
    """What Ollama makes of such a template: a reading of the few actions that occur, independent of the writer."""
    system = next((text for role, text in turns if role == "system"), "")
    parts = re.split(r"\{\{(.*?)\}\}", template, flags=re.DOTALL)
    position = 0

    def evaluate(condition: str, turn: tuple[str, str] | None, last: bool) -> bool:
        role = turn[0] if turn else ""
        if condition == ".System":
            return bool(system)
        if condition == "not $last":
            return not last
        if condition == 'and $last (ne .Role "assistant")':
            return last and role != "assistant"
        matched = re.fullmatch(r'eq \.Role "(\w+)"', condition)
        assert matched, condition
        return role == matched[1]

    def block(turn: tuple[str, str] | None, last: bool, live: bool) -> tuple[str, str]:
        """Text up to the action that ends the block, and that action."""
        nonlocal position
        out = ""
        while position < len(parts):
            out += parts[position] if live else ""
            if position + 1 >= len(parts):
                position += 1
                break
            action = parts[position + 1].strip()
            position += 2
            if action == "end" or action.startswith("else"):
                return out, action
            if action.startswith("if "):
                out += chain(action[3:], turn, last, live)
            elif action.startswith("range"):
                begin = position
                for index, each in enumerate(turns):
                    position = begin
                    out += block(each, index == len(turns) - 1, live)[0]
            elif action == ".System":
                out += system if live else ""
            elif action == ".Content":
                assert turn
                out += turn[1] if live else ""
            else:
                assert action.startswith("$last :="), action
        return out, ""

    def chain(condition: str, turn: tuple[str, str] | None, last: bool, live: bool) -> str:
        taken = evaluate(condition, turn, last)
        out, action = block(turn, last, live and taken)
        while action.startswith("else"):
            holds = not taken and (action == "else" or evaluate(action[8:], turn, last))
            more, action = block(turn, last, live and holds)
            out, taken = out + more, taken or holds
        assert action == "end"
        return out

    return block(None, False, True)[0]


def side_files(folder: Path, template: str | None, **settings: Any) -> Mapping[str, bytes]:
    files = dict(open_model(str(write_model(folder, "qwen3"))).side_files)
    config = json.loads(files["tokenizer_config.json"]) | {"chat_template": template} | settings
    files["tokenizer_config.json"] = json.dumps({k: v for k, v in config.items() if v is not None}).encode()
    return files


def template_of(text: str) -> str:
    return text.split('TEMPLATE """', 1)[1].split('"""', 1)[0]


def check(files: Mapping[str, bytes], text: str, bos: str = "") -> None:
    """The template gives what the chat template does, but for the BOS token that the runtime puts."""
    tokenizer = Tokenizer.from_files(files, "a")
    for turns in TALKS:
        expected = tokenizer.render([{"role": role, "content": content} for role, content in turns], True)
        assert bos + go(template_of(text), list(turns)) == expected


@pytest.mark.parametrize("template", [R1, CHATML, LLAMA3], ids=["r1", "chatml", "llama3"])
@pytest.mark.parametrize("puts_bos", [True, False])
def test_templates_of_turns_are_said_in_go(tmp_path: Path, template: str, puts_bos: bool) -> None:
    files = side_files(tmp_path / "a", template, add_bos_token=puts_bos)
    text = modelfile(files, {"max_position_embeddings": 4096}, "m.gguf")
    begins = puts_bos and template is not CHATML
    check(files, text, "<|begin|>" if begins else "")
    assert ("<|begin|>" in template_of(text)) == (not puts_bos and template is not CHATML)


def test_the_template_of_r1(tmp_path: Path) -> None:
    text = modelfile(side_files(tmp_path / "a", R1, add_bos_token=True), {}, "m.gguf")
    assert template_of(text) == (
        "{{ if .System }}{{ .System }}{{ end }}"
        "{{ range $i, $_ := .Messages }}{{ $last := eq (len (slice $.Messages $i)) 1 }}"
        '{{ if eq .Role "user" }}<｜User｜>{{ .Content }}<｜Assistant｜>'
        '{{ else if eq .Role "assistant" }}{{ .Content }}{{ if not $last }}<|end|>{{ end }}{{ end }}{{ end }}'
    )


@pytest.mark.parametrize("source", ["tiny-r1", "smollm2", "llama"])
def test_templates_of_real_models(tmp_path: Path, source: str) -> None:
    paths: dict[str, Callable[[], Path]] = {
        "tiny-r1": embedded_folder,
        "smollm2": smollm_path,
        "llama": lambda: write_model(tmp_path / "a", "llama"),
    }
    model = open_model(str(paths[source]()))
    text = modelfile(model.side_files, model.config, "m.gguf")
    check(model.side_files, text)
    assert text.startswith("FROM ./m.gguf\n")


PARAMETERS = re.compile(r"^PARAMETER (\S+) (.+)$", re.MULTILINE)


def test_parameters_are_the_models_own(tmp_path: Path) -> None:
    files = dict(side_files(tmp_path / "a", LLAMA3))
    files["generation_config.json"] = json.dumps(
        {"temperature": 0.7, "top_p": 0.8, "top_k": 20, "repetition_penalty": 1.05, "eos_token_id": [1, 3]}
    ).encode()
    found = PARAMETERS.findall(modelfile(files, {"max_position_embeddings": 131072}, "m.gguf"))
    assert found == [
        ("temperature", "0.7"), ("top_p", "0.8"), ("top_k", "20"), ("repeat_penalty", "1.05"), ("num_ctx", "32768"),
        ("stop", '"<|end|>"'), ("stop", '"<|assistant|>"'),
    ]  # fmt: skip


def test_parameters_of_a_model_that_reasons_and_says_nothing(tmp_path: Path) -> None:
    files = {k: v for k, v in side_files(tmp_path / "a", R1).items() if k != "generation_config.json"}
    found = dict(PARAMETERS.findall(modelfile(files, {"max_position_embeddings": 2048}, "m.gguf")))
    assert found["temperature"] == "0.6" and found["top_p"] == "0.95" and found["num_ctx"] == "2048"


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}{{ m['content'] | upper }}{% endfor %}",
        "{{ messages | length }}{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}{% endfor %}",
        "{% for m in messages %}{{ '{{' + m['content'] + '}}' }}{% endfor %}",
        "{{ raise_exception('no') }}",
    ],
    ids=["changed content", "counted", "braces", "refuses"],
)
def test_templates_that_are_more_than_turns_are_left_to_ollama(tmp_path: Path, template: str) -> None:
    text = modelfile(side_files(tmp_path / "a", template), {}, "m.gguf")
    assert 'TEMPLATE "' not in text
    assert "it is not a plain sequence of turns). Ollama takes tokenizer.chat_template." in text


def test_a_model_without_a_template(tmp_path: Path) -> None:
    text = modelfile(side_files(tmp_path / "a", None), {}, "m.gguf")
    assert "(there is none)" in text and 'TEMPLATE "' not in text
