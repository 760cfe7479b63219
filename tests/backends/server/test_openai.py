"""The backend against a scripted server: what is sent, what comes back, and how it bears failures."""

from __future__ import annotations

import builtins
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from r1quant.backends import Completion, Prompt, Sampling, pool
from r1quant.backends.openai import OpenAI
from r1quant.backends.openai_client import complete
from r1quant.errors import CheckpointError, MissingDependency, R1QuantError, RecipeError
from tests.backends.server.scripted import HALF, HANG_UP, HOLD, MUTE, NO_CHOICE, Scripted, Status, Text, serving

KEY = "sk-very-secret-4711"
SAMPLING = Sampling(0.6, 0.95, 50)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "FIRST_REST_S", 0.01)


def said(count: int) -> list[Prompt]:
    return [Prompt(f"k{i}", ({"role": "user", "content": f"word {i}"},), (5, 6, i), i) for i in range(count)]


def run(server: Scripted, count: int = 1, stop: frozenset[int] = frozenset(), **options: Any) -> list[Completion]:
    model = OpenAI([server.url], **{"concurrency": 2, "patience_s": 20.0, **options})
    return sorted(model.complete(said(count), SAMPLING, stop), key=lambda found: int(found.key[1:]))


def test_what_is_sent_and_what_comes_back() -> None:
    with serving() as server:
        (found,) = run(server, stop=frozenset({9, 1}))
        (sent,) = server.sent
    assert found == Completion("k0", (), "you said word 0", 4, True)
    assert sent["path"] == "/v1/chat/completions" and sent["model"] == "the-model"
    assert sent["messages"] == [{"role": "user", "content": "word 0"}]
    assert (sent["temperature"], sent["top_p"], sent["max_tokens"], sent["seed"]) == (0.6, 0.95, 50, 0)
    assert sent["stop_token_ids"] == [1, 9]
    assert sent["min_p"] == 0 and sent["top_k"] > 10**6 and sent["repeat_penalty"] == 1


def test_raw_requests_carry_the_tokens() -> None:
    with serving() as server:
        (found,) = run(server, raw=True)
        assert server.sent[-1]["path"] == "/v1/completions" and server.sent[-1]["prompt"] == [5, 6, 0]
    assert found.text == "you sent [5, 6, 0]"


REFUSAL = "{'type': 'string_type', 'msg': 'Input should be a valid string'}"


@pytest.mark.parametrize("code", [422, 500])
@pytest.mark.parametrize(("puts_bos", "sent"), [(False, "<5><6><0>"), (True, "<6><0>")])
def test_a_server_that_takes_no_ids_gets_text_without_the_bos_that_it_adds(
    code: int, puts_bos: bool, sent: str
) -> None:
    script = Status(code, REFUSAL), Text(prompt_tokens=1 + puts_bos), Text(prompt_tokens=3)
    with serving(*script) as server:
        run(server, raw=True, text_of=lambda ids: "".join(f"<{i}>" for i in ids), bos=5)
        assert [body["prompt"] for body in server.sent] == [[5], "<5>", sent]


def test_a_server_without_a_chat_template_gets_the_rendered_prompt() -> None:
    with serving(Status(400, "you must provide a chat template")) as server:
        (found,) = run(server)
    assert found.text == "you sent [5, 6, 0]"


@pytest.mark.parametrize(
    ("act", "text", "finished"),
    [
        (Text("so 4", reasoning="2+2"), "<think>2+2</think>so 4", True),
        (Text("", reasoning="2+2 and", finish="length"), "<think>2+2 and", False),
        (Text("cut", finish="length"), "cut", False),
    ],
)
def test_answers(act: Text, text: str, finished: bool) -> None:
    with serving(act) as server:
        (found,) = run(server)
    assert (found.text, found.finished) == (text, finished)


@pytest.mark.parametrize("raw", [False, True])
def test_streams_tell_when_each_piece_came(raw: bool) -> None:
    with serving() as server:
        (found,) = run(server, raw=raw, moments=True)
    assert found.text == ("you sent [5, 6, 0]" if raw else "you said word 0")
    assert found.count == len(found.text.split()) == len(found.moments) and found.finished
    assert list(found.moments) == sorted(found.moments) and found.moments[0] > 0


def test_an_answer_may_take_longer_than_a_request_may_be_silent() -> None:
    """Ten words, each of them well within the limit, that come in more than it together."""
    with serving(Text("a b c d e f g h i j", slow_s=0.1)) as server:
        (found,) = run(server, request_s=0.8, patience_s=0.0)
        assert len(server.sent) == 1 and server.sent[0]["stream"]
    assert (found.text, found.count, found.moments) == ("a b c d e f g h i j", 10, ())


def test_a_server_that_falls_silent_is_asked_again() -> None:
    with serving(HOLD) as server:
        (found,) = run(server, request_s=0.2)
        assert len(server.sent) == 2
    assert found.text == "you said word 0"


def test_pieces_are_counted_where_the_server_does_not_count() -> None:
    with serving(*[Text("a b c", counted=False)] * 3) as server:
        found = run(server, 2, concurrency=1)
        asked = [(sent.get("stream", False), sent["max_tokens"]) for sent in server.sent]
    assert [each.count for each in found] == [3, 3]
    assert asked == [(True, 50), (False, 1), (True, 50)], "it is asked once whether it counts a prompt"


@pytest.mark.parametrize("streams", [False, True])
def test_a_server_that_counts_only_whole_answers_is_asked_for_the_prompt(streams: bool) -> None:
    script = Text("a b c", counted=not streams, streams=streams), Text("x", prompt_tokens=7)
    with serving(*script) as server:
        model = OpenAI([server.url])
        found = list(model.complete(said(1), SAMPLING, frozenset()))
        assert len(server.sent) == 1 + streams
        assert (found[0].text, found[0].count, model.retemplated) == ("a b c", 3, 1)


@pytest.mark.parametrize(
    ("reasons", "sent"),
    [
        (["Unknown field: stream_options"], [(True, True), (True, False), (True, False)]),
        (["streaming is not supported"], [(True, True), (False, False), (False, False)]),
        (
            ["stream_options is not supported", "stream is not supported"],
            [(True, True), (True, False), (False, False), (False, False)],
        ),
    ],
)
def test_a_server_that_does_not_stream_answers_whole(reasons: list[str], sent: list[tuple[bool, bool]]) -> None:
    with serving(*[Status(400, reason) for reason in reasons]) as server:
        found = run(server, 2, concurrency=1, moments=True)
        assert [(bool(body.get("stream")), "stream_options" in body) for body in server.sent] == sent
    assert [each.text for each in found] == ["you said word 0", "you said word 1"]
    assert all(each.count == 4 and each.finished for each in found)


def test_a_server_that_breaks_streams_off_is_asked_for_whole_answers() -> None:
    """As llama-cpp-python does when another request comes."""
    with serving(Text("x", finish=None)) as server:
        found = run(server, 2, concurrency=1, patience_s=0.0)
        assert [bool(sent.get("stream")) for sent in server.sent] == [True, False, False]
    assert [each.count for each in found] == [4, 4]


def test_a_server_that_streams_without_counting_is_asked_for_whole_answers() -> None:
    with serving(Text("a b c", counted=False)) as server:
        found = run(server, 2, concurrency=1)
        sent = [(bool(body.get("stream")), body["max_tokens"]) for body in server.sent]
    assert [each.count for each in found] == [3, 4] and sent == [(True, 50), (False, 1), (False, 50)]


def test_a_stream_without_anything_in_it_is_asked_for_as_a_whole() -> None:
    with serving(MUTE, Status(400, "This model's maximum context length is 2 tokens")) as server:
        found = run(server, 2, concurrency=1)
        assert [bool(sent.get("stream")) for sent in server.sent] == [True, False, True]
    assert [each.count for each in found] == [0, 4]


FAILURES = [
    Status(429),
    Status(500),
    Status(503),
    Status(408),
    Status(409),
    HANG_UP,
    HALF,
    NO_CHOICE,
    Text("x", finish=None),
]


@pytest.mark.parametrize("act", FAILURES, ids=str)
@pytest.mark.parametrize("moments", [False, True])
def test_what_fails_is_sent_again(act: Any, moments: bool) -> None:
    with serving(Text(), act, act) as server:
        notes: list[str] = []
        found = run(server, 4, moments=moments, note=notes.append)
        assert len(server.sent) == 4 + 2
    assert [f.text for f in found] == [f"you said word {i}" for i in range(4)]
    told = [note.startswith(server.url) and note.endswith("trying again") for note in notes]
    as_whole = act == Text("x", finish=None) and not moments  # nothing to tell of, if both are asked so at once
    assert told == [True] or (as_whole and not told)


@pytest.mark.parametrize(
    ("code", "kind"),
    [*[(code, RecipeError) for code in (400, 401, 403, 404, 422)], (413, CheckpointError)],
)
def test_what_cannot_succeed_is_an_error_at_once(code: int, kind: type[R1QuantError]) -> None:
    with serving(Status(code, "this is\nwhy")) as server:
        with pytest.raises(kind) as caught:
            run(server, 5, concurrency=1)
        assert len(server.sent) == 1
    assert server.url in caught.value.message and "this is why" in caught.value.message
    assert str(caught.value).count("\n") == 1


@pytest.mark.parametrize("code", [400, 401, 404, 500])
def test_the_key_is_sent_and_never_shown(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    notes: list[str] = []
    with serving(*[Status(code, f"bad key {KEY} is bad")] * 200) as server:
        model = OpenAI([server.url.replace("//", "//me:hidden@")], "m", patience_s=0.05, note=notes.append)
        with pytest.raises(R1QuantError) as caught:
            list(model.complete(said(1), SAMPLING, frozenset()))
        assert KEY in " ".join(server.keys) or "Basic" in " ".join(server.keys)
    shown = f"{caught.value} {caught.value!r} {model!r} {notes}"
    assert KEY not in shown and "hidden" not in shown and "***" in shown


def test_a_key_can_be_an_argument() -> None:
    with serving() as server:
        run(server, api_key=KEY)
        assert server.keys == [f"Bearer {KEY}"]


def test_a_parameter_that_the_server_does_not_know_is_left_out() -> None:
    unknown = Status(400, "Unrecognized request arguments supplied: top_k, min_p")
    notes: list[str] = []
    with serving(unknown) as server:
        found = run(server, 3, concurrency=1, note=notes.append)
        kept = [("top_k" in sent, "min_p" in sent, "repeat_penalty" in sent) for sent in server.sent]
    assert len(found) == 3 and kept == [(True, True, True)] + [(False, False, True)] * 3
    assert [note.split()[4] for note in notes] == ["min_p:", "top_k:"]


@pytest.mark.parametrize(
    "reason",
    [
        "This model's maximum context length is 40 tokens. However, you requested 63 tokens (13 in the messages, 50 in "
        "the completion).",
        "'max_tokens' is too large: 50. This model's maximum context length is 40 tokens and your request has 13 input "
        "tokens (50 > 40 - 13).",
        "You passed 13 input tokens and requested 50 output tokens. However the model's context length is only 40.",
        "Requested token count exceeds the model's maximum context length of 40 tokens. You requested a total of 63 "
        "tokens: 13 tokens from the input messages and 50 tokens for the completion.",
    ],
)
def test_an_answer_gets_what_the_context_has_room_for(reason: str) -> None:
    with serving(Status(400, reason), Text(finish="length")) as server:
        (found,) = run(server)
        assert [sent["max_tokens"] for sent in server.sent] == [50, 27]
    assert not found.finished


@pytest.mark.parametrize(
    "reason",
    [
        "This model's maximum context length is 2 tokens, you sent more",
        "This model's maximum context length is 40 tokens. However, you requested 113 tokens (63 in the messages, 50 "
        "in the completion).",
        "The input (3 tokens) is longer than the model's context length (2 tokens).",
        "The decoder prompt (length 3) is longer than the maximum model length of 2.",
        "the request exceeds the available context size, try increasing it",
    ],
)
@pytest.mark.parametrize("raw", [False, True])
def test_a_prompt_beyond_the_context_gets_no_token_and_costs_no_other_answer(reason: str, raw: bool) -> None:
    notes: list[str] = []
    script: list[Status | Text | str] = [*[Text("x")] * raw, Status(400, reason)]
    with serving(*script) as server:
        found = run(server, 3, concurrency=1, raw=raw, note=notes.append)
        assert len(server.sent) == 3 + raw
    assert found[0] == Completion("k0", (), "", 0, False)
    assert all(each.text and each.finished for each in found[1:])
    assert notes == [f"{server.url} has no room for k0: {reason}"]


def test_an_answer_that_is_refused_again_when_it_is_cut_has_no_room() -> None:
    reason = "This model's maximum context length is 40 tokens. However, your messages resulted in more"
    with serving(Status(400, reason), Status(400, reason)) as server:
        (found,) = run(server)
        assert [sent["max_tokens"] for sent in server.sent] == [50, 37]
    assert (found.count, found.finished) == (0, False)


def test_no_more_is_drawn_and_sent_than_there_is_room_for() -> None:
    drawn = 0

    def lazily() -> Iterator[Prompt]:
        nonlocal drawn
        for prompt in said(40):
            drawn += 1
            yield prompt

    with serving() as server:
        model = OpenAI([server.url], concurrency=3)
        for taken, _ in enumerate(model.complete(lazily(), SAMPLING, frozenset()), 1):
            assert drawn <= taken + 2
        assert taken == drawn == 40 and 1 <= server.most_at_once <= 3


def test_requests_go_to_the_least_busy_server() -> None:
    with serving(*[HOLD] * 4) as a, serving(*[HOLD] * 4) as b:
        model = OpenAI([a.url, b.url], "m", concurrency=4)
        found: list[Completion] = []
        thread = threading.Thread(target=lambda: found.extend(model.complete(said(4), SAMPLING, frozenset())))
        thread.start()
        assert all(server.arrived.acquire(timeout=30) for server in (a, a, b, b))
        assert (len(a.sent), len(b.sent)) == (2, 2)
        a.release.set()
        b.release.set()
        thread.join()
    assert len(found) == 4


def test_a_server_that_is_gone_leaves_its_work_to_the_others() -> None:
    with serving() as gone:
        pass
    with serving() as server:
        model = OpenAI([gone.url, server.url], "m", concurrency=4, patience_s=30)
        found = list(model.complete(said(20), SAMPLING, frozenset()))
    assert sorted(f.key for f in found) == sorted(p.key for p in said(20))


def test_nobody_answers() -> None:
    with serving() as gone:
        pass
    with pytest.raises(CheckpointError, match=f"{gone.url} does not answer: .*connect"):
        list(OpenAI([gone.url], patience_s=0.1).complete(said(1), SAMPLING, frozenset()))


def test_ctrl_c_ends_at_once_and_leaves_no_thread() -> None:
    before, handler = threading.active_count(), signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with serving(*[HOLD] * 3) as server:
            inside = threading.active_count()
            model = OpenAI([server.url], "m", concurrency=3)

            def interrupt() -> None:
                for _ in range(3):
                    server.arrived.acquire()
                os.kill(os.getpid(), signal.SIGINT)

            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                list(model.complete(said(3), SAMPLING, frozenset()))
            thread.join()
            assert not server.release.is_set()  # nobody waited for an answer
            assert "requests" not in {t.name for t in threading.enumerate()}
            assert inside >= before
    finally:
        signal.signal(signal.SIGINT, handler)


WINDOWS = np.array([[1, 2, 3, 4, 5, 6]], np.int64)
RIGHT = [None, -1.0, -2.0, -3.0, -4.0, -5.0, -0.5]


def echoes(*lengths: int) -> list[Any]:
    """What a server with a right echo says while it is checked, on so many tokens each time."""
    return [
        act for n in lengths for act in (Text("x", scores=[None, *[-1.0] * (n - 1), -0.5]), Text("x", scores=[-0.5]))
    ]


def test_nll_are_the_log_probabilities_of_the_echo() -> None:
    with serving(Text(), *echoes(6, 3, 2), Text("x", scores=RIGHT)) as server:
        found = OpenAI([server.url]).nll(WINDOWS)
        assert server.sent[-1]["prompt"] == [1, 2, 3, 4, 5, 6]
        assert server.sent[-1]["echo"] and server.sent[-1]["max_tokens"] == 1
    assert found.dtype == np.float64 and found.tolist() == [[1, 2, 3, 4, 5]]


def test_an_echo_that_names_other_tokens_is_refused() -> None:
    script = (Text(), Text("x", scores=RIGHT), Text("x", scores=[-2.5]))
    with serving(*script) as server, pytest.raises(RecipeError, match="belong to other tokens"):
        OpenAI([server.url]).nll(WINDOWS)


@pytest.mark.parametrize(
    "act", [Status(400, "Only no echo is supported"), Status(500, "logprobs is not supported"), Text("x")], ids=str
)
def test_a_server_without_prompt_log_probabilities_is_an_error_at_once(act: Any) -> None:
    with serving(Text(), act) as server:
        with pytest.raises(RecipeError, match="gives no log-probabilities"):
            OpenAI([server.url]).nll(WINDOWS)
        assert len(server.sent) == 2


def test_what_cannot_be_given_and_what_cannot_be_meant() -> None:
    with pytest.raises(RecipeError, match="does not give logits"):
        OpenAI(["localhost:1"]).logits(WINDOWS[0])
    assert list(map(complete, ["localhost:8000", "https://h/api/"])) == ["http://localhost:8000/v1", "https://h/api"]
    for urls, more in (([], {}), (["ftp://h"], {}), (["http://h"], {"concurrency": 0})):
        with pytest.raises(RecipeError):
            OpenAI(urls, **more)  # type: ignore[arg-type]


def test_without_the_package_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any, **more: Any) -> Any:
        if name == "openai":
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(MissingDependency) as caught:
        OpenAI(["localhost:1"])
    assert caught.value.exit_code == 4 and caught.value.hint == "pip install 'r1quant[server]'"
