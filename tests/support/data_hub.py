"""The part of a hub's interface that reading a data set needs, on the loopback interface: one commit of each data set."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "fedcba9876543210fedcba9876543210fedcba98"


class DataHub(ThreadingHTTPServer):
    """Serves `files` (data set, then path to content). `status` other than 200 answers everything with it."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.large: set[str] = set()
        """Paths that are listed by SHA-256, as those in large file storage are."""
        self.sent: list[str] = []
        self.status = 200
        self.commit = COMMIT
        super().__init__(("127.0.0.1", 0), _Answers)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


@contextmanager
def serve() -> Iterator[DataHub]:
    with DataHub() as hub:
        thread = threading.Thread(target=hub.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield hub
        finally:
            hub.shutdown()
            thread.join()


class _Answers(BaseHTTPRequestHandler):
    server: DataHub

    def do_GET(self) -> None:
        parts = unquote(urlsplit(self.path).path).strip("/").split("/")
        if self.server.status != 200:
            return self._answer(b"{}", self.server.status)
        if parts[:2] == ["api", "datasets"]:
            return self._metadata("/".join(parts[2:4]), parts[4:])
        name, file = "/".join(parts[1:3]), "/".join(parts[5:])
        content = self.server.files.get(name, {}).get(file)
        if content is None:
            return self._answer(b"{}", 404)
        if self.command == "GET":
            self.server.sent.append(file)
        etag = hashlib.sha256(content).hexdigest() if file in self.server.large else blob(content)
        return self._answer(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": parts[4]})

    do_HEAD = do_GET  # noqa: N815

    def _metadata(self, name: str, rest: list[str]) -> None:
        files = self.server.files.get(name)
        if files is None:
            return self._answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        if rest[:1] == ["tree"]:
            return self._answer(json.dumps([self._entry(path, content) for path, content in files.items()]).encode())
        return self._answer(
            json.dumps({"id": name, "sha": self.server.commit, "siblings": [{"rfilename": path} for path in files]}).encode()
        )

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": blob(content)}
        if path in self.server.large:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def _answer(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


def blob(content: bytes) -> str:
    """The hash that git gives a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()
