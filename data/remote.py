"""Opening a file wherever it lies: http(s), ftp, a path, any file system that fsspec knows, or a command's output.

Everything becomes a `Stream` that starts at a byte and knows its size and version. What cannot be mended by asking
again (not found, not allowed, a package that is missing) is a DataError; what may pass (a dropped connection, a busy
server) is `Unavailable`. Nothing here retries (`data.transfer`), and a `pipe:` command runs only where it is allowed.
"""

from __future__ import annotations

import base64
import contextlib
import ftplib
import http.client
import re
import socket
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urlsplit

from data.errors import DataError
from data.urls import local_path, scheme, shown, split_login

# The fsspec implementation of each scheme is a package of its own.
_PACKAGES = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
}
_PASSING_STATUS = (408, 425, 429)  # and every 5xx
PASSING = (OSError, EOFError, http.client.HTTPException)  # what reading a stream may raise and another try may mend


class Unavailable(OSError):
    """A failure that may pass; ``wait`` seconds if the server asked for a pause."""

    def __init__(self, reason: str, wait: float = 0.0) -> None:
        super().__init__(reason)
        self.wait = wait


class NotReadable(DataError):
    """The source says that there is no such file, or not for us."""


def refused(url: str, reason: str) -> NotReadable:
    return NotReadable(f"{shown(url)}: {reason}; check the url, or put the file there by hand.")


@dataclass
class Stream:
    """An open file. ``start``: the byte it begins at, 0 where the source cannot begin elsewhere; ``size``: bytes of
    the whole file, None if not told; ``version``: another string whenever the file is another, "" if not told.
    """

    file: Any
    start: int
    size: int | None
    version: str

    def read(self, count: int) -> bytes:
        content: bytes = self.file.read(count)
        return content

    def close(self) -> None:
        with contextlib.suppress(*PASSING):
            self.file.close()


def open_at(url: str, start: int = 0, version: str = "", timeout: float = 60.0, allow_pipe: bool = False) -> Stream:
    """Opens at byte ``start`` if the file still has that ``version``, else at 0. Raises DataError or `Unavailable`."""
    kind = scheme(url)
    if kind == "pipe":
        return _command(url, allow_pipe)
    openers = {"http": _http, "https": _http, "ftp": _ftp, "": _local, "file": _local}
    try:
        return openers.get(kind, _fsspec)(url, start, version, timeout)
    except Unavailable:
        raise
    except socket.gaierror as error:
        raise Unavailable(f"the host is not found, {error.strerror}; is there a network?") from error
    except PASSING as error:
        raise Unavailable(str(error) or type(error).__name__) from error


def _http(url: str, start: int, version: str, timeout: float) -> Stream:
    address, login = split_login(url)
    request = urllib.request.Request(address, headers={"User-Agent": "rnafoundry", "Accept-Encoding": "identity"})
    if login:
        coded = base64.b64encode(":".join(login).encode()).decode()
        request.add_unredirected_header("Authorization", f"Basic {coded}")  # never shown to another host
    if start:
        request.add_header("Range", f"bytes={start}-")
        if version:
            request.add_header("If-Range", version)
    try:
        response = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # the file became shorter
            return _http(url, 0, "", timeout)
        if error.code in _PASSING_STATUS or error.code >= 500:
            raise Unavailable(f"the server answers {error.code} {error.reason}", _asked_wait(error)) from error
        raise refused(url, f"the server answers {error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        if isinstance(error.reason, OSError):
            raise error.reason from error
        raise Unavailable(str(error.reason)) from error
    headers = response.headers
    # A weak ETag promises nothing about bytes.
    etag = headers.get("ETag", "")
    found = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
    if response.status != 206:
        length = headers.get("Content-Length", "")
        return Stream(response, 0, int(length) if length.isdigit() else None, found)
    told = re.match(r"bytes (\d+)-\d+/(\d+|\*)", headers.get("Content-Range", ""))
    if not told or int(told[1]) != start:
        response.close()
        return _http(url, 0, "", timeout)
    return Stream(response, start, int(told[2]) if told[2] != "*" else None, found)


def _ftp(url: str, start: int, version: str, timeout: float) -> Stream:
    del version  # fetch compares what comes back
    with contextlib.ExitStack() as undo:
        connection, path = ftp_login(url, timeout)
        undo.callback(connection.close)
        try:
            connection.voidcmd("TYPE I")
            size = connection.size(path)
            try:
                modified = connection.sendcmd(f"MDTM {path}").partition(" ")[2]
            except ftplib.error_perm:  # an optional command
                modified = ""
            data = connection.transfercmd(f"RETR {path}", rest=start or None)
        except ftplib.error_perm as error:
            raise refused(url, f"the server answers {error}") from error
        except ftplib.Error as error:
            raise Unavailable(f"the server answers {error}") from error
        undo.pop_all()
    return Stream(_FtpFile(connection, data), start, size, modified)


def ftp_login(url: str, timeout: float) -> tuple[ftplib.FTP, str]:
    """A connection that has logged in, and the path that the url names."""
    address, login = split_login(url)
    parts = urlsplit(address)
    connection = ftplib.FTP(timeout=timeout)
    try:
        connection.connect(parts.hostname or "", parts.port or 21)
        connection.login(*(login or ()))
    except ftplib.error_perm as error:
        raise refused(url, f"the server answers {error}") from error
    except ftplib.Error as error:
        raise Unavailable(f"the server answers {error}") from error
    path = unquote(parts.path)
    if not path.isprintable():
        raise DataError(f"{shown(url)}: the path holds characters that no file name has; mend the url.")
    return connection, path


class _FtpFile:
    def __init__(self, connection: ftplib.FTP, data: socket.socket) -> None:
        self._connection, self._data, self._file = connection, data, data.makefile("rb")

    def read(self, count: int) -> bytes:
        return self._file.read(count)

    def close(self) -> None:
        for part in (self._file, self._data, self._connection):
            part.close()


def _local(url: str, start: int, version: str, timeout: float) -> Stream:
    del version, timeout
    path = local_path(url)
    try:
        file = open(path, "rb")  # noqa: SIM115 (closed by the stream)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise refused(str(path), f"it cannot be read, {error.strerror}") from error
    found = path.stat()
    file.seek(start)
    return Stream(file, start, found.st_size, f"{found.st_mtime_ns}-{found.st_ino}")


def _fsspec(url: str, start: int, version: str, timeout: float) -> Stream:
    del version, timeout
    import fsspec  # 0.1 s: only where it is needed

    kind = scheme(url)
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        info = filesystem.info(path)
        file = filesystem.open(path, "rb")
        file.seek(start)
    except ImportError as error:
        package = _PACKAGES.get(kind, "the fsspec implementation of it")
        raise DataError(
            f"{url}: reading {kind}:// needs the package {package}, which is not installed; `pip install {package}`."
        ) from error
    except (FileNotFoundError, PermissionError) as error:
        raise refused(url, f"it cannot be read, {error}") from error
    except ValueError as error:
        raise DataError(f"{url}: {kind}:// is no file system that fsspec knows ({error}); mend the url.") from error
    except Exception as error:  # every implementation has exceptions of its own
        raise Unavailable(f"{type(error).__name__}: {error}") from error
    told = next((info[key] for key in ("ETag", "etag", "LastModified", "updated", "mtime") if info.get(key)), "")
    return Stream(file, start, info.get("size"), str(told))


def _command(url: str, allow_pipe: bool) -> Stream:
    if not allow_pipe:
        raise DataError(
            f"{shown(url)}: a pipe: url runs a command of the shell, which only happens when it is allowed explicitly "
            "(allow_pipe=true); use an http, s3 or gs url, or allow it if you wrote the command yourself."
        )
    process = subprocess.Popen(url.removeprefix("pipe:"), shell=True, stdout=subprocess.PIPE)
    return Stream(_CommandFile(process), 0, None, "")


class _CommandFile:
    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        self._process, self._file = process, process.stdout

    def read(self, count: int) -> bytes:
        content = self._file.read(count)
        if not content and self._process.wait() != 0:
            raise Unavailable(f"the command ended with code {self._process.returncode}")
        return content

    def close(self) -> None:
        self._file.close()
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()


def _asked_wait(error: urllib.error.HTTPError) -> float:
    asked = error.headers.get("Retry-After", "")
    return float(asked) if asked.isdigit() else 0.0
