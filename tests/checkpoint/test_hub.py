"""Downloads, against a small server on the loopback that speaks the part of the Hub's protocol that a download needs.

Each download runs in a process of its own, since huggingface_hub reads its environment when it is imported.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests import models

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = bytes(range(256)) * 8192
FILES = {
    "config.json": b'{"a": 1}',
    "generation_config.json": b'{"b": 1}',
    "model-00001-of-00002.safetensors": WEIGHTS,
    "model-00002-of-00002.safetensors": WEIGHTS[::-1],
    "model.safetensors.index.json": b'{"weight_map": {}}',
    "tokenizer.json": b'{"c": 1}',
    "tokenizer_config.json": b'{"d": 1}',
    "vocab.json": b'{"e": 1}',
    "merges.txt": b"a b",
    "chat_template.jinja": b"{{ x }}",
    "LICENSE": b"MIT",
}
OTHERS = {
    "README.md": b"#",
    "pytorch_model.bin": b"pickle",
    "consolidated.safetensors": WEIGHTS,
    "original/consolidated.00.pth": b"pickle",
    "onnx/model.safetensors": WEIGHTS,
    "model.Q4_K_M.gguf": b"GGUF",
    "modeling_x.py": b"raise SystemExit",
}


@dataclass
class Hub:
    """What the server offers and what it was asked.

    `refusals` has status and error code by repository; `cut` names a file whose connection breaks unless it is asked
    for from a later byte on; `broken` one that gives an error.
    """

    files: dict[str, bytes] = field(default_factory=lambda: {**FILES, **OTHERS})
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    cut: str | None = None
    broken: str | None = None
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    url: str = ""

    def got(self) -> list[str]:
        """The files that were asked for, in order."""
        return [path for method, path, _ in self.requests if method == "GET" and not path.startswith("/api/")]


def handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.path.split("?")[0]
            name = path.split(f"/resolve/{COMMIT}/")[-1].split("/resolve/main/")[-1]
            hub.requests.append((self.command, name, self.headers.get("Range")))
            repo = "/".join(path.removeprefix("/api/models").split("/")[1:3])
            if repo in hub.refusals:
                self.reply(hub.refusals[repo][0], b"{}", {"X-Error-Code": hub.refusals[repo][1]})
            elif path.startswith("/api/models/") and "/tree/" in path:
                tree = [{"type": "file", "path": n, "size": len(c), "oid": oid(c)} for n, c in hub.files.items()]
                self.reply(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})
            elif path.startswith("/api/models/"):
                info = {
                    "id": "owner/model",
                    "sha": COMMIT,
                    "siblings": [],
                    "private": False,
                    "tags": [],
                    "downloads": 0,
                }
                self.reply(200, json.dumps(info).encode(), {"Content-Type": "application/json"})
            elif name in hub.files:
                self.send_file(name, hub.files[name])
            else:
                self.reply(404, b"", {"X-Error-Code": "EntryNotFound"})

        def send_file(self, name: str, content: bytes) -> None:
            if name == hub.broken and self.command == "GET":
                self.reply(500, b"")
                return
            headers = {"ETag": f'"{oid(content)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
            first, _, last = (self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")
            start = int(first)
            content = content[: int(last) + 1] if last else content
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            if name == hub.cut and self.command == "GET" and not start:
                headers["Content-Length"] = str(len(content))
                self.close_connection = True
                self.reply(200, content[: len(content) // 2], headers)
            else:
                self.reply(206 if start or last else 200, content[start:], headers)

    return Handler


def oid(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(state))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{server.server_port}"
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@dataclass(frozen=True)
class Answer:
    """The folder that a download gave, or the error's message and hint."""

    folder: Path | None
    message: str
    hint: str


def fetch(home: Path, url: str, **environment: str) -> Answer:
    return fetch_all(home, url, ["owner/model"], **environment)[0]


def fetch_all(home: Path, url: str, repos: list[str], **environment: str) -> list[Answer]:
    """Downloads in a fresh process whose environment has nothing of the Hub but what is given."""
    code = (
        "import json, sys\nfrom r1quant.errors import CheckpointError\nfrom r1quant.checkpoint.hub import fetch\n"
        "for repo in sys.argv[1:]:\n"
        "    try: print(json.dumps([str(fetch(repo)), '', '']))\n"
        "    except CheckpointError as error: print(json.dumps([None, error.message, error.hint]))"
    )
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    clean |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *repos],
        env={**clean, **environment}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [Answer(folder and Path(folder), message, hint) for folder, message, hint in answers]


def test_only_what_is_needed_is_downloaded_and_only_once(hub: Hub, tmp_path: Path) -> None:
    folder = fetch(tmp_path, hub.url).folder
    assert folder is not None and folder.is_relative_to(tmp_path)
    assert {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == FILES
    assert sorted(hub.got()) == sorted(FILES)
    hub.requests.clear()
    assert fetch(tmp_path, hub.url).folder == folder
    assert hub.got() == []
    hub.requests.clear()
    assert fetch(tmp_path, hub.url, HF_HUB_OFFLINE="1").folder == folder
    assert hub.requests == []


def test_a_dropped_connection_is_resumed_where_it_broke(hub: Hub, tmp_path: Path) -> None:
    hub.cut = "model-00002-of-00002.safetensors"
    hub.files[hub.cut] = WEIGHTS * 12  # huggingface_hub writes pieces of 10 MiB
    answer = fetch(tmp_path, hub.url)
    assert answer.folder is not None, answer
    assert (answer.folder / hub.cut).read_bytes() == hub.files[hub.cut]
    asked = [rest for method, name, rest in hub.requests if (method, name) == ("GET", hub.cut)]
    assert asked == [None, f"bytes={10 << 20}-"]


def test_a_failed_download_keeps_the_files_that_were_finished(hub: Hub, tmp_path: Path) -> None:
    hub.broken = "model-00002-of-00002.safetensors"
    answer = fetch(tmp_path, hub.url)
    assert answer.folder is None and "HTTP 500" in answer.message and "try again" in answer.hint
    assert "HF_HUB_OFFLINE" in fetch(tmp_path, hub.url, HF_HUB_OFFLINE="1").message
    finished, hub.broken = set(hub.got()) - {hub.broken}, None
    hub.requests.clear()
    assert fetch(tmp_path, hub.url).folder is not None
    assert set(hub.got()) == set(FILES) - finished and finished


def outlined(home: Path, url: str, **environment: str) -> dict[str, Any]:
    """What `fit` says of owner/model, in a fresh process: its JSON."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "HUGGING"))}
    clean |= {"HF_ENDPOINT": url, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1", "no_proxy": "127.0.0.1"}
    code = "from r1quant.cli import main; main(['fit', 'owner/model', '--gpu', 'L4', '--json'])"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**clean, **environment}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    found = json.loads(done.stdout)
    assert isinstance(found, dict)
    return found


def test_fit_downloads_headers_and_no_weight(hub: Hub, tmp_path: Path) -> None:
    folder = models.write_model(tmp_path / "m", "qwen3", vocab_size=40_000, tokenizer=False)
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert len(hub.files["model.safetensors"]) > 5_000_000
    found = outlined(tmp_path / "home", hub.url)
    assert found["model"]["parameters"] == sum(math.prod(shape) for shape in models.shapes(config(folder)).values())
    assert found["model"]["name"] == "owner/model" and not found["notes"]
    asked = {name: ranges for method, name, ranges in hub.requests if method == "GET" and "/api/" not in name}
    assert set(asked) == {"config.json", "model.safetensors"} and asked["model.safetensors"] == "bytes=0-100000"
    del hub.files["model.safetensors"]
    bare = outlined(tmp_path / "other", hub.url)
    assert bare["model"] == found["model"] and "its headers cannot be had" in bare["notes"][0]
    hub.requests.clear()
    assert outlined(tmp_path / "other", hub.url, HF_HUB_OFFLINE="1")["model"] == bare["model"] and not hub.requests
    hub.files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert fetch(tmp_path / "home", hub.url).folder is not None
    hub.requests.clear()
    again = outlined(tmp_path / "home", hub.url, HF_HUB_OFFLINE="1")
    assert again["model"] == found["model"] and not again["notes"] and not hub.requests
    hub.files = {}
    missing = outlined(tmp_path / "third", hub.url)
    assert missing["error"]["kind"] == "CheckpointError"


def config(folder: Path) -> dict[str, Any]:
    found = json.loads((folder / "config.json").read_text("utf-8"))
    assert isinstance(found, dict)
    return found


REFUSALS = {
    "owner/absent": (404, "RepoNotFound", "neither a local folder nor a model on the Hub", "hf auth login"),
    "owner/gated": (403, "GatedRepo", "is gated", "/owner/gated, then run 'hf auth login'"),
    "owner/secret": (401, "", "", "hf auth login"),
    "owner/forbidden": (403, "", "HTTP 403", "hf auth login"),
    "owner/down": (503, "", "HTTP 503", "try again"),
}


def test_refusals(hub: Hub, tmp_path: Path) -> None:
    hub.refusals = {repo: (status, code) for repo, (status, code, _, _) in REFUSALS.items()}
    hub.files = {"config.json": b"{}", "pytorch_model.bin": b"pickle"}
    answers = fetch_all(tmp_path, hub.url, [*REFUSALS, "owner/pickles", "a--b/..c"])
    for (repo, (_, _, message, hint)), answer in zip(REFUSALS.items(), answers, strict=False):
        assert answer.folder is None and repo in answer.message, answer
        assert message in answer.message and hint in answer.hint, answer
    assert "owner/pickles on the Hub has no safetensors" in answers[-2].message
    assert "not a valid name" in answers[-1].message


def test_no_network(tmp_path: Path) -> None:
    answer = fetch(tmp_path, "http://127.0.0.1:9")
    assert answer.folder is None and "could not be downloaded from http://127.0.0.1:9" in answer.message
    assert "unset HF_HUB_OFFLINE" in fetch(tmp_path, "http://127.0.0.1:9", HF_HUB_OFFLINE="1").hint
