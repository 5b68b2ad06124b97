"""A hub on this machine: the two calls that reading headers needs, and a count of what was sent."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_of_a_friend"  # noqa: S105


@dataclass
class Hub:
    """Models by name, and what was sent of each file: ``[begin, end)``.

    Without ``ranges`` whole files are sent; a ``portal`` answers every request with its login page.
    """

    models: Mapping[str, Path]
    gated: frozenset[str] = frozenset()
    private: frozenset[str] = frozenset()
    ranges: bool = True
    portal: bool = False
    url: str = ""
    sent: dict[str, list[tuple[int, int]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, file: str, begin: int, end: int) -> None:
        with self.lock:
            self.sent.setdefault(file, []).append((begin, end))


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve until the block ends."""

    class Handler(_Handler):
        held = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    held: ClassVar[Hub]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""

    def do_GET(self) -> None:
        if self.held.portal:
            self._send(200, b"<html>log in</html>", {"Content-Type": "text/html"})
        elif found := re.fullmatch(r"/api/models/([^/]+/[^/?]+)(?:/revision/([^?]+))?(?:\?.*)?", self.path):
            if self._may(found[1], found[2]):
                self._answer_model(found[1])
        elif found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/([^/?]+)", self.path):
            if self._may(found[1], found[2]):
                self._answer_file(self.held.models[found[1]] / found[3])
        else:
            self._refuse(404)

    def _may(self, model: str, revision: str | None) -> bool:
        allowed = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        if model in self.held.gated and not allowed:
            self._refuse(403, "GatedRepo")
        elif model not in self.held.models or (model in self.held.private and not allowed):
            self._refuse(401, "RepoNotFound")
        elif revision not in {None, "main", "v1", COMMIT}:
            self._refuse(404, "RevisionNotFound")
        else:
            return True
        return False

    def _answer_model(self, model: str) -> None:
        files = sorted(
            str(path.relative_to(self.held.models[model]))
            for path in self.held.models[model].rglob("*")
            if path.is_file()
        )
        answer = {"id": model, "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]}
        self._send(200, json.dumps(answer).encode(), {"Content-Type": "application/json"})

    def _answer_file(self, file: Path) -> None:
        size = file.stat().st_size
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if wanted is None or not self.held.ranges:
            self.held.count(file.name, 0, size)
            self._send(200, file.read_bytes())
            return
        if int(wanted[1]) >= size:
            self._send(416, b"", {"Content-Range": f"bytes */{size}"})
            return
        begin, end = int(wanted[1]), min(int(wanted[2]) + 1, size)
        self.held.count(file.name, begin, end)
        with file.open("rb") as stream:
            stream.seek(begin)
            part = stream.read(end - begin)
        self._send(206, part, {"Content-Range": f"bytes {begin}-{end - 1}/{size}"})

    def _refuse(self, status: int, code: str | None = None) -> None:
        self._send(status, b"{}", {} if code is None else {"X-Error-Code": code})

    def _send(self, status: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except OSError:
            self.close_connection = True  # the client has read enough
