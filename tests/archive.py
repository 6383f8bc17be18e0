"""A local HTTP server that serves a folder as public archives do, and fails on demand.

It has directory listings, ETags, ranges and If-Range. ``faults`` maps a path to faults that its next requests meet, one
each: "drop:N" (N bytes of the body, then the connection ends), "corrupt" (a flipped byte in the middle), "status:503",
"html" (a page in place of the file), "hang" (nothing for two seconds).
"""

from __future__ import annotations

import contextlib
import hashlib
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit


class Archive:
    def __init__(self, folder: Path, ranges: bool = True, etags: bool = True) -> None:
        self.folder, self.ranges, self.etags = folder, ranges, etags
        self.faults: dict[str, list[str]] = {}
        self.requests: list[tuple[str, str]] = []  # (path, Range header)
        self.links: dict[str, list[str]] = {}  # extra hrefs in the listing of a folder
        self.on_request = lambda path: None
        self.delay = 0.0  # seconds before each answer
        self.lock = threading.Lock()
        self.url = ""

    def counts(self) -> Counter[str]:
        """Requests per file name."""
        return Counter(path.rpartition("/")[2] for path, _ in self.requests)

    def order(self) -> list[str]:
        return list(dict.fromkeys(path.rpartition("/")[2] for path, _ in self.requests))


@contextlib.contextmanager
def serving(folder: Path, **options: bool) -> Iterator[Archive]:
    archive = Archive(folder, **options)

    class Handler(_Handler):
        state = archive

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    archive.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    state: Archive
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        state = self.state
        with state.lock:
            state.requests.append((path, self.headers.get("Range", "")))
            waiting = state.faults.get(path, [])
            fault = waiting.pop(0) if waiting else ""
        state.on_request(path)
        time.sleep(state.delay)
        if fault.startswith("status:"):
            return self._send(int(fault[7:]), b"", {})
        if fault == "hang":
            time.sleep(2)
            self.close_connection = True
            return None
        target = state.folder / path.lstrip("/")
        if target.is_dir():
            return self._send(200, self._listing(path, target), {"Content-Type": "text/html"})
        if not target.is_file():
            return self._send(404, b"", {})
        body = target.read_bytes()
        tag = '"' + hashlib.sha256(body).hexdigest()[:16] + '"'
        headers = {"ETag": tag} if state.etags else {}
        if fault == "html":
            return self._send(200, b"<html>please log in</html>", {})
        if fault == "corrupt":
            body = body[: len(body) // 2] + bytes([body[len(body) // 2] ^ 1]) + body[len(body) // 2 + 1 :]
        status, asked = 200, self.headers.get("Range", "")
        if asked and state.ranges and self.headers.get("If-Range", tag) == tag:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                return self._send(416, b"", {})
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            status, body = 206, body[start:]
        return self._send(status, body, headers, int(fault[5:]) if fault.startswith("drop:") else None)

    def _listing(self, path: str, folder: Path) -> bytes:
        names = sorted(entry.name + "/" * entry.is_dir() for entry in folder.iterdir())
        links = ["?C=N;O=D", "/", "../", *map(quote, names), *self.state.links.get(path, [])]
        return "".join(f'<a href="{link}">{link}</a>\n' for link in links).encode()

    def _send(self, status: int, body: bytes, headers: dict[str, str], only: int | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body if only is None else body[:only])
        if only is not None:
            self.close_connection = True
