"""A package index that wants a name and a password, behind a proxy that wants others; both are one server."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import threading
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

HOST = "packages.invalid"
"""The index's name, which only the proxy knows."""


def wheel(name: str) -> tuple[str, bytes]:
    """A package with one module: its file's name, and its content."""
    folder, module = f"{name}-1.0.dist-info", f"{name}.py"
    files = {
        module: "VALUE = 1\n",
        f"{folder}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nLicense: MIT\n",
        f"{folder}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = f"{folder}/RECORD"
    files[record] = "".join(f"{path},,\n" for path in (*files, record))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for path, text in files.items():
            archive.writestr(zipfile.ZipInfo(path, (2025, 12, 1, 0, 0, 0)), text)
    return f"{name}-1.0-py3-none-any.whl", stream.getvalue()


@dataclass
class PrivateIndex:
    """The server: where it is, the packages, and how often it was asked rightly."""

    port: int
    wheels: Mapping[str, bytes]
    served: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)

    def lock(self) -> str:
        """Requirements with hashes for all packages."""
        return "".join(
            f"{name.partition('-')[0]}==1.0 \\\n    --hash=sha256:{hashlib.sha256(content).hexdigest()}\n"
            for name, content in self.wheels.items()
        )


@contextlib.contextmanager
def serving(*packages: str, proxy: tuple[str, str], index: tuple[str, str]) -> Iterator[PrivateIndex]:
    """Serve packages to who has both names and passwords."""
    wheels = dict(wheel(name) for name in packages)
    wanted = {"Proxy-Authorization": _basic(*proxy), "Authorization": _basic(*index)}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            missing = [name for name, value in wanted.items() if self.headers.get(name) != value]
            path = urlsplit(self.path).path
            if missing:
                found.refused.append(f"{path}: {missing}")
                code = 407 if "Proxy-Authorization" in missing else 401
                ask = "Proxy-Authenticate" if code == 407 else "WWW-Authenticate"
                return self._answer(code, b"", (ask, 'Basic realm="x"'))
            found.served.append(path)
            name = path.rstrip("/").rpartition("/")[2]
            if name in wheels:
                return self._answer(200, wheels[name])
            links = [f for f in wheels if f.startswith(f"{name}-") or path.startswith("/links")]
            if not links:
                return self._answer(404, b"")
            page = "".join(f'<a href="/files/{f}">{f}</a>' for f in links)
            return self._answer(200, page.encode(), ("Content-Type", "text/html"))

        def _answer(self, code: int, body: bytes, *headers: tuple[str, str]) -> None:
            self.send_response(code)
            for name, value in (*headers, ("Content-Length", str(len(body)))):
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    found = PrivateIndex(port=server.server_address[1], wheels=wheels)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()


def _basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
