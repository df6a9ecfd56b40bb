"""A hub on this machine: it speaks the few requests of an upload, to the real client, and keeps what it was sent."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

TOKEN = "hf_thisIsTheSecretOfTheTest"


class Hub(ThreadingHTTPServer):
    """What was uploaded, by repository and name; `refusing` is the status that commits get instead."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, dict[str, bytes]] = {}
        self.blobs: dict[str, bytes] = {}
        self.made: list[dict[str, Any]] = []
        self.commits: list[tuple[str, dict[str, Any]]] = []
        self.checked: list[str] = []
        self.asked: list[tuple[str, str, str | None]] = []
        self.refusing = 0

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def _content(self) -> bytes:
        length = self.headers.get("Content-Length")
        if length is not None:
            return self.rfile.read(int(length))
        parts = []
        while size := int(self.rfile.readline(), 16):  # in chunks
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _answer(self, content: Any, status: int = 200) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        self.server.asked.append(("GET", self.path, self.headers.get("Authorization")))
        self._answer({"error": "not here"}, 404)

    def do_PUT(self) -> None:
        self.server.asked.append(("PUT", self.path, self.headers.get("Authorization")))
        self.server.blobs[self.path.rpartition("/")[2]] = self._content()
        self._answer({})

    def do_POST(self) -> None:
        self.server.asked.append(("POST", self.path, self.headers.get("Authorization")))
        content = self._content()
        path = self.path.partition("?")[0]
        if path == "/api/validate-yaml":
            self.server.checked.append(json.loads(content)["content"])
            self._answer({"errors": [], "warnings": []})
        elif self.server.refusing:
            self._answer({"error": "Forbidden: you must not write here"}, self.server.refusing)
        elif path == "/api/repos/create":
            self._create(json.loads(content))
        elif "/preupload/" in path:
            big = lambda name: name.endswith(".safetensors")  # noqa: E731
            self._answer({"files": [
                {"path": one["path"], "uploadMode": "lfs" if big(one["path"]) else "regular", "shouldIgnore": False}
                for one in json.loads(content)["files"]
            ]})  # fmt: skip
        elif path.endswith("/objects/batch"):
            self._answer({"transfer": "basic", "objects": [
                {**one, "actions": {"upload": {"href": f"{self.server.address}/lfs/{one['oid']}", "header": {}}}}
                for one in json.loads(content)["objects"]
            ]})  # fmt: skip
        elif "/commit/" in path:
            self._commit(path, [json.loads(line) for line in content.splitlines()])
        else:
            self._answer({"error": f"unknown: {path}"}, 404)

    def _create(self, asked: dict[str, Any]) -> None:
        self.server.made.append(asked)
        owner = asked.get("organization") or "me"
        repo = f"{owner}/{asked['name']}"
        status = 409 if repo in self.server.files else 200
        self.server.files.setdefault(repo, {})
        self._answer({"url": f"{self.server.address}/{repo}", "id": repo, "name": repo}, status)

    def _commit(self, path: str, lines: list[dict[str, Any]]) -> None:
        repo, _, revision = path.removeprefix("/api/models/").partition("/commit/")
        files = self.server.files[repo]
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                blob = self.server.blobs[value["oid"]]
                assert hashlib.sha256(blob).hexdigest() == value["oid"]
                files[value["path"]] = blob
        self.server.commits.append((revision, lines[0]["value"]))
        oid = f"{len(self.server.commits):040x}"
        self._answer(
            {"commitUrl": f"{self.server.address}/{repo}/commit/{oid}", "commitOid": oid, "success": True}
        )


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub that the real client takes for the hub, with a token in its memory; without `hf_xet`."""
    with Hub() as server, pytest.MonkeyPatch.context() as patch:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        patch.setattr("huggingface_hub.constants.ENDPOINT", server.address)
        patch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        patch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        patch.setenv("HF_TOKEN", TOKEN)
        patch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        yield server
        server.shutdown()
        thread.join()
