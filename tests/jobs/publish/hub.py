"""A Hub in one file: the calls by which huggingface_hub creates a repository, uploads, commits and lists.

Contents over `threshold` bytes go the way of git-lfs, in parts of `part` bytes where that is set.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import ModelCardData, RepoCard


class Hub:
    """repos: name -> branch or commit -> path -> content. puts: what was stored of large files, in order.

    drops    how often the connection breaks in the middle of the content whose sha256 is `fragile`
    tampers  whether what is committed is not what was sent
    """

    def __init__(self, token: str) -> None:
        self.token = token
        self.repos: dict[str, dict[str, dict[str, bytes]]] = {}
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}
        self.parts: dict[tuple[str, int], bytes] = {}
        self.puts: list[str] = []
        self.dropped = 0
        self.commits: list[tuple[str, dict[str, Any]]] = []
        self.threshold, self.part = 100_000, 0
        self.drops, self.fragile = 0, ""
        self.tampers = False
        self.refuses = 0

    def __enter__(self) -> Hub:
        hub = self

        class Handler(_Handler):
            state = hub

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def files(self, repo: str, revision: str = "main") -> dict[str, bytes]:
        return self.repos[repo][revision]


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        return None

    def do_GET(self) -> None:
        self._route("GET")

    def do_POST(self) -> None:
        self._route("POST")

    def do_PUT(self) -> None:
        self._route("PUT")

    def _route(self, verb: str) -> None:
        path = urlsplit(self.path).path
        # Addresses of the store are signed on the Hub; cards are validated for everybody.
        open_to_all = path.startswith(("/store/", "/done/", "/api/validate-yaml"))
        if not open_to_all and self.headers.get("Authorization") != f"Bearer {self.state.token}":
            self._answer(401, {"error": "who is it?"})
            return
        if self.state.refuses and not path.startswith("/api/validate"):
            self._answer(self.state.refuses, {"error": "no"})
            return
        for pattern, answer in ROUTES.items():
            wanted, form = pattern.split(" ")
            if wanted == verb and (found := re.fullmatch(form, path)):
                answer(self, *map(unquote, found.groups()))
                return
        self._answer(404, {"error": f"no {verb} {path}"})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(pieces)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def create(self) -> None:
        body = json.loads(self._body())
        repo = f"{body['organization']}/{body['name']}"
        if repo in self.state.repos:
            self._answer(409, {"error": "it exists", "url": f"{self.state.url}/{repo}"})
            return
        self.state.repos[repo] = {"main": {".gitattributes": b"*.safetensors filter=lfs\n"}}
        self.state.private[repo] = body.get("private", body.get("visibility") == "private")
        self._answer(200, {"url": f"{self.state.url}/{repo}", "name": repo})

    def branch(self, repo: str, name: str) -> None:
        self._body()
        if name in self.state.repos[repo]:
            self._answer(409, {"error": "it exists"})
            return
        self.state.repos[repo][name] = dict(self.state.repos[repo]["main"])
        self._answer(201, {})

    def validate(self) -> None:
        """As the Hub: what is between the dashes must be what a card may say."""
        try:
            data = RepoCard(json.loads(self._body())["content"]).data.to_dict()
            errors = [] if ModelCardData(**data) and data.get("license") else ["license is missing"]
        except (ValueError, TypeError) as error:
            errors = [str(error)]
        told = {"errors": [{"message": error} for error in errors], "warnings": []}
        self._answer(400 if errors else 200, told)

    def preupload(self, repo: str, revision: str) -> None:
        there = self.state.repos[repo][revision]
        files = []
        for file in json.loads(self._body())["files"]:
            mode = "lfs" if file["size"] > self.state.threshold else "regular"
            entry = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in there:
                entry["oid"] = _oid(there[file["path"]], mode == "lfs")
            files.append(entry)
        self._answer(200, {"files": files})

    def batch(self, repo: str) -> None:
        objects = []
        for wanted in json.loads(self._body())["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            action: dict[str, Any] = {"href": f"{self.state.url}/store/{oid}"}
            if self.state.part:
                count = -(-size // self.state.part)
                parts = {f"{n + 1:05d}": f"{self.state.url}/store/{oid}/{n}" for n in range(count)}
                header = {"chunk_size": str(self.state.part), **parts}
                action = {"href": f"{self.state.url}/done/{oid}", "header": header}
            known = oid in self.state.large
            objects.append({**wanted} if known else {**wanted, "actions": {"upload": action}})
        self._answer(200, {"transfer": "multipart" if self.state.part else "basic", "objects": objects})

    def store(self, oid: str) -> None:
        if self._breaks(oid):
            return
        content = self._body()
        assert hashlib.sha256(content).hexdigest() == oid
        self.state.large[oid] = content
        self.state.puts.append(oid)
        self._answer(200, {})

    def store_part(self, oid: str, number: str) -> None:
        if self._breaks(oid):
            return
        self.state.parts[oid, int(number)] = self._body()
        self._answer(200, {}, {"ETag": f"{oid[:8]}-{number}"})

    def done(self, oid: str) -> None:
        parts = json.loads(self._body())["parts"]
        assert [part["etag"] for part in parts] == [f"{oid[:8]}-{n}" for n in range(len(parts))]
        content = b"".join(self.state.parts[oid, n] for n in range(len(parts)))
        assert hashlib.sha256(content).hexdigest() == oid
        self.state.large[oid] = content
        self.state.puts.append(oid)
        self._answer(200, {})

    def _breaks(self, oid: str) -> bool:
        """Reads some of a content that is fragile, and resets the connection."""
        if oid != self.state.fragile or self.state.dropped >= self.state.drops:
            return False
        self.state.dropped += 1
        self.rfile.read(10_000)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True
        return True

    def commit(self, repo: str, revision: str) -> None:
        tree = dict(self.state.repos[repo][revision])
        header: dict[str, Any] = {}
        for line in self._body().splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                header = value
            elif entry["key"] == "file":
                tree[value["path"]] = base64.b64decode(value["content"])
            else:
                assert entry["key"] == "lfsFile" and len(self.state.large[value["oid"]]) == value["size"]
                tree[value["path"]] = self.state.large[value["oid"]]
        if self.state.tampers:
            tree["config.json"] = tree["config.json"].replace(b"{", b"[", 1)
        name = hashlib.sha1(repr((repo, revision, len(self.state.commits))).encode()).hexdigest()
        self.state.commits.append((repo, header))
        self.state.repos[repo] |= {revision: tree, name: tree}
        self._answer(200, {"commitUrl": f"{self.state.url}/{repo}/commit/{name}", "commitOid": name})

    def tree(self, repo: str, revision: str) -> None:
        entries: list[dict[str, Any]] = []
        for path, content in self.state.repos[repo][revision].items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": _git(content)}
            if len(content) > self.state.threshold:
                digest = hashlib.sha256(content).hexdigest()
                pointer = {"oid": digest, "size": len(content), "pointerSize": 134}
                entry |= {"lfs": pointer, "oid": _git(digest.encode())}
            entries.append(entry)
        folders = {path.rpartition("/")[0] for path in self.state.repos[repo][revision] if "/" in path}
        entries += [{"type": "directory", "path": path, "oid": "0" * 40} for path in sorted(folders)]
        self._answer(200, entries)


def _git(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _oid(content: bytes, large: bool) -> str:
    return hashlib.sha256(content).hexdigest() if large else _git(content)


NAME, REVISION = "([^/]+/[^/]+)", "([^/]+)"
ROUTES: dict[str, Callable[..., None]] = {
    "POST /api/repos/create": _Handler.create,
    f"POST /api/models/{NAME}/branch/{REVISION}": _Handler.branch,
    "POST /api/validate-yaml": _Handler.validate,
    f"POST /api/models/{NAME}/preupload/{REVISION}": _Handler.preupload,
    f"POST /{NAME}\\.git/info/lfs/objects/batch": _Handler.batch,
    "PUT /store/([0-9a-f]{64})": _Handler.store,
    "PUT /store/([0-9a-f]{64})/([0-9]+)": _Handler.store_part,
    "POST /done/([0-9a-f]{64})": _Handler.done,
    f"POST /api/models/{NAME}/commit/{REVISION}": _Handler.commit,
    f"GET /api/models/{NAME}/tree/{REVISION}": _Handler.tree,
}
