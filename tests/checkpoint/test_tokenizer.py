from __future__ import annotations

import json

import pytest

from r1quant.checkpoint.tokenizer import Tokenizer
from r1quant.errors import CalibrationError, CheckpointError
from tests.toy_tokenizer import make

CHAT = [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "<think>\ntwo and two\n</think>\n\n4"}]


def test_round_trip_and_ids(toy: Tokenizer) -> None:
    text = "the answer ist größer, 答案: 4\n\n\tend"
    assert toy.decode(toy.encode(text)) == text
    assert (toy.bos_id, toy.eos_id) == (0, 1)
    assert toy.size == max(toy.backend.get_vocab().values()) + 1


def test_special_tokens_in_the_text_are_recognised_and_none_is_added(toy: Tokenizer) -> None:
    ids = toy.encode("<think>a</think><eos>")
    assert [toy.backend.id_to_token(i) for i in ids] == ["<think>", "a", "</think>", "<eos>"]
    assert toy.decode(ids) == "<think>a</think><eos>"
    assert toy.decode(ids, skip_special=True) == "<think>a</think>"


def test_stored_truncation_and_padding_are_switched_off(toy: Tokenizer) -> None:
    raw = json.loads(toy.backend.to_str())
    raw["truncation"] = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}
    raw["padding"] = {"strategy": {"Fixed": 32}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0}
    raw["padding"] |= {"pad_type_id": 0, "pad_token": "<bos>"}
    text = "a much longer text than four tokens"
    assert make(raw=json.dumps(raw).encode()).encode(text) == toy.encode(text)


def test_the_model_template_cuts_the_reasoning_and_a_trace_keeps_it(toy: Tokenizer) -> None:
    assert toy.render(CHAT, add_generation_prompt=False) == "<bos><user>2+2?<assistant>\n\n4<eos>"
    assert toy.render_trace(CHAT) == "<bos><user>2+2?<assistant><think>\ntwo and two\n</think>\n\n4<eos>"


def test_only_the_last_turn_keeps_its_reasoning(toy: Tokenizer) -> None:
    text = toy.render_trace([*CHAT, *CHAT])
    assert text == "<bos><user>2+2?<assistant>\n\n4<eos><user>2+2?<assistant>" + CHAT[1]["content"] + "<eos>"


@pytest.mark.parametrize("opened", ["<think>", "<think>\n"])
def test_an_opened_think_is_not_doubled(toy: Tokenizer, opened: str) -> None:
    assert toy.template is not None
    template = toy.template.replace("{{ '<assistant>' }}", "{{ '<assistant>" + opened.replace("\n", "\\n") + "' }}")
    other = make({"bos_token": "<bos>", "eos_token": "<eos>", "chat_template": template})
    assert other.render(CHAT[:1], add_generation_prompt=True).endswith(opened)
    assert other.render_trace(CHAT) == toy.render_trace(CHAT)


def test_reasoning_given_apart_is_put_in_front(toy: Tokenizer) -> None:
    turn = {"role": "assistant", "content": "4", "reasoning_content": "two and two\n"}
    assert toy.render_trace([CHAT[0], turn]) == toy.render_trace(CHAT)


def test_without_an_assistant_turn_a_trace_is_the_plain_rendering(toy: Tokenizer) -> None:
    assert toy.render_trace(CHAT[:1]) == toy.render(CHAT[:1], add_generation_prompt=False)


def test_helpers_that_templates_expect() -> None:
    template = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}\n"
        "    {% generation %}{{ m | tojson }}{% endgeneration %}\n"
        "{% endfor %}\n"
        "{{ strftime_now('%Y') }} {{ [1, 2] | tojson(indent=2) }} {{ tools is none }}"
    )
    text = make({"chat_template": template}).render([{"role": "user", "content": "é"}] * 2, False)
    assert text == '{"role": "user", "content": "é"}2025 [\n  1,\n  2\n] True'


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[9]['content'] }}", "no element 9"),
        ("{{ 1 // 0 }}", "zero"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_failing_template_is_a_calibration_error(template: str, part: str) -> None:
    with pytest.raises(CalibrationError, match="chat template of toy failed") as caught:
        make({"chat_template": template}).render(CHAT, add_generation_prompt=True)
    assert part in caught.value.message
    assert "\n" not in caught.value.message


def test_where_the_template_is_found() -> None:
    named = [{"name": "tool_use", "template": "tool"}, {"name": "default", "template": "plain"}]
    assert make({"chat_template": named}).template == "plain"
    assert make({"chat_template": named[:1]}).template == "tool"
    assert make({}, chat_template__json='{"chat_template": "from json"}').template == "from json"
    assert make({"chat_template": "config"}, chat_template__jinja="from jinja").template == "from jinja"
    assert make({}).has_chat_template is False
    with pytest.raises(CalibrationError, match="no chat template"):
        make({}).render(CHAT, add_generation_prompt=True)


def test_special_tokens_from_the_special_tokens_map() -> None:
    assert make({}, special_tokens_map__json='{"eos_token": {"content": "<user>"}}').eos_id == 2
    assert make({}).eos_id is None


@pytest.mark.parametrize(
    ("files", "part"),
    [
        ({}, "no tokenizer.json"),
        ({"tokenizer.json": b"{}"}, "tokenizer.json cannot be read"),
        ({"tokenizer.json": b"\xff"}, "tokenizer.json cannot be read"),
        ({"tokenizer_config.json": b"{"}, "tokenizer_config.json is not valid JSON"),
        ({"tokenizer_config.json": b"[]"}, "tokenizer_config.json is not a JSON object"),
        ({"tokenizer_config.json": b'{"eos_token": "<nowhere>"}'}, "'<nowhere>'"),
        ({"chat_template.jinja": b"\xff\xfe"}, "chat_template.jinja is not UTF-8"),
        ({"chat_template.json": b"7"}, "chat_template.json is not a JSON object"),
    ],
)
def test_bad_files_are_refused_by_name(toy: Tokenizer, files: dict[str, bytes], part: str) -> None:
    good = {} if not files or "tokenizer.json" in files else {"tokenizer.json": toy.backend.to_str().encode()}
    with pytest.raises(CheckpointError) as caught:
        Tokenizer.from_files({**good, **files}, "toy")
    assert part in caught.value.message
    assert caught.value.hint
