"""A local FTP server of the few commands that a download needs, with resuming and one dropped transfer on demand."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path


class FtpArchive:
    def __init__(self, folder: Path) -> None:
        self.folder, self.url = folder, ""
        self.drops: list[int] = []  # the next transfers end after so many bytes
        self.restarts: list[int] = []  # the byte each transfer began at


@contextlib.contextmanager
def serving_ftp(folder: Path) -> Iterator[FtpArchive]:
    archive = FtpArchive(folder)

    class Handler(_Handler):
        state = archive

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    archive.url = f"ftp://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield archive
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(socketserver.StreamRequestHandler):
    state: FtpArchive

    def handle(self) -> None:
        folder, rest = self.state.folder, 0
        self.say("220 ready")
        while line := self.rfile.readline().decode().strip():
            command, _, argument = line.partition(" ")
            target = folder / argument.lstrip("/")
            if command == "USER":
                self.say("331 password")
            elif command in ("PASS", "TYPE"):
                self.say("230 fine")
            elif command == "CWD":
                folder = target
                self.say("250 fine" if target.is_dir() else "550 no such directory")
            elif command in ("SIZE", "MDTM", "RETR") and not target.is_file():
                self.say("550 no such file")
            elif command == "SIZE":
                self.say(f"213 {target.stat().st_size}")
            elif command == "MDTM":
                self.say(f"213 {target.stat().st_mtime_ns}")
            elif command == "PASV":
                listener = socket.create_server(("127.0.0.1", 0))
                high, low = divmod(listener.getsockname()[1], 256)
                self.say(f"227 Entering Passive Mode (127,0,0,1,{high},{low})")
            elif command == "REST":
                rest = int(argument)
                self.say("350 fine")
            elif command == "RETR":
                self.state.restarts.append(rest)
                content, rest = target.read_bytes()[rest:], 0
                dropped = self.state.drops.pop(0) if self.state.drops else None
                self.send(listener, content[:dropped])
            elif command == "LIST":
                lines = [
                    f"{'d' if p.is_dir() else '-'}rw-r--r-- 1 ftp ftp 1 Jan 01 2024 {p.name}" for p in folder.iterdir()
                ]
                self.send(listener, "\r\n".join(lines).encode())
            else:
                self.say("502 unknown")

    def say(self, line: str) -> None:
        self.wfile.write(line.encode() + b"\r\n")

    def send(self, listener: socket.socket, content: bytes) -> None:
        self.say("150 here it comes")
        with listener, listener.accept()[0] as connection:
            connection.sendall(content)
        self.say("226 done")
