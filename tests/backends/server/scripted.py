"""A server on loopback that speaks OpenAI's protocol and does what a script says: also fail, stall and hang up."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

CONTEXT = 100
LONGEST_S = 60.0  # that a request is held


@dataclass(frozen=True)
class Status:
    """An answer with this status."""

    code: int
    reason: str = "scripted"
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """A good answer, with what a test wants to be different."""

    text: str | None = None
    reasoning: str | None = None
    finish: str | None = "stop"
    counted: bool = True
    scores: list[float | None] | None = None
    prompt_tokens: int | None = None
    slow_s: float = 0.0
    """Before each word of a stream."""
    streams: bool = True
    """If not, it comes as a whole, whatever was asked for."""


HANG_UP, HALF, HOLD, NO_CHOICE, MUTE = "hang up", "half an answer", "hold", "no choice", "an empty stream"
Act = Status | Text | str


@dataclass
class Scripted:
    """What the server does with the next requests (then it answers well), and what it was sent."""

    port: int = 0
    script: list[Act] = field(default_factory=list)
    sent: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    at_once: int = 0
    most_at_once: int = 0
    release: threading.Event = field(default_factory=threading.Event)
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@contextmanager
def serving(*script: Act) -> Iterator[Scripted]:
    state = Scripted(script=list(script))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            return

        def do_GET(self) -> None:
            self._json(200, {"object": "list", "data": [{"id": "the-model", "object": "model"}]})

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with state.lock:
                state.sent.append({"path": self.path, **body})
                state.keys.append(self.headers.get("Authorization", ""))
                state.at_once += 1
                state.most_at_once = max(state.most_at_once, state.at_once)
                act = state.script.pop(0) if state.script else Text()
            state.arrived.release()
            try:
                self._do(act, body)
            finally:
                with state.lock:
                    state.at_once -= 1

        def _do(self, act: Act, body: dict[str, Any]) -> None:
            if act == HOLD:
                state.release.wait(LONGEST_S)
                act = Text()
            if isinstance(act, Status):
                self._json(act.code, {"error": {"message": act.reason}}, act.headers)
            elif act == NO_CHOICE:
                self._json(200, {"error": {"message": "upstream is down"}})
            elif act == HANG_UP:
                self.close_connection = True
            elif act == MUTE and body.get("stream"):
                self.send_response(200)
                self.send_header("Content-Type", "text/event-stream")
                self.send_header("Content-Length", "0")
                self.end_headers()
            elif isinstance(act, Text) and act.streams and body.get("stream"):
                self._stream(act, body)
            else:
                self._json(200, answer(act if isinstance(act, Text) else Text(), body), half=act == HALF)

        def _json(self, code: int, content: Any, headers: dict[str, str] | None = None, half: bool = False) -> None:
            data = json.dumps(content).encode()
            self.send_response(code)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if half else data)
            if half:
                self.close_connection = True

        def _stream(self, act: Text, body: dict[str, Any]) -> None:
            """One word a chunk. An answer without a finish_reason ends in the middle."""
            whole = answer(act, body)
            choice = whole["choices"][0]
            chat = "message" in choice
            words = (choice["message"]["content"] if chat else choice["text"]).split(" ")
            thought = choice["message"].get("reasoning_content") if chat else None
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            if thought is not None:
                self._event({"choices": [{"index": 0, "finish_reason": None, "delta": {"reasoning_content": thought}}]})
            for i, word in enumerate(words):
                piece = word if i == 0 else f" {word}"
                if act.slow_s:
                    time.sleep(act.slow_s)
                part = {"delta": {"content": piece}} if chat else {"text": piece}
                self._event({"choices": [{"index": 0, "finish_reason": None, **part}]})
            if act.finish is not None:
                part = {"delta": dict[str, Any]()} if chat else {"text": ""}
                self._event({"choices": [{"index": 0, "finish_reason": act.finish, **part}]})
                if act.counted and body.get("stream_options", {}).get("include_usage"):
                    self._event({"choices": [], "usage": whole["usage"]})
                self.wfile.write(b"data: [DONE]\n\n")
            self.close_connection = True

        def _event(self, content: Any) -> None:
            self.wfile.write(f"data: {json.dumps(content)}\n\n".encode())
            self.wfile.flush()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads, server.block_on_close = True, False
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that are gone
    state.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield state
    finally:
        state.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


def answer(act: Text, body: dict[str, Any]) -> dict[str, Any]:
    """Says back what it was sent."""
    text = act.text
    if "messages" in body:
        prompt = len(body["messages"][-1]["content"].split())
        text = f"you said {body['messages'][-1]['content']}" if text is None else text
        choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}}
        if act.reasoning is not None:
            choice["message"]["reasoning_content"] = act.reasoning
    else:
        prompt = len(body["prompt"])
        text = f"you sent {body['prompt']}" if text is None else text
        choice = {"text": text}
        if act.scores is not None:
            choice["logprobs"] = {"token_logprobs": act.scores}
    prompt = prompt if act.prompt_tokens is None else act.prompt_tokens
    new = min(len(text.split()), body["max_tokens"])
    found: dict[str, Any] = {"choices": [{"index": 0, "finish_reason": act.finish, **choice}]}
    if act.counted:
        found["usage"] = {"prompt_tokens": prompt, "completion_tokens": new, "total_tokens": prompt + new}
    return found
