"""Urls as strings: which kind, what a directory's file is called, and how to show one without its secrets."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from data.errors import DataError


def scheme(url: str) -> str:
    """ "http", "s3", "pipe" and so on; "" for a path."""
    found = re.match(r"([A-Za-z][A-Za-z0-9+.\-]*)(?:://|::)", url)
    return found[1].lower() if found else "pipe" if url.startswith("pipe:") else ""


def local_path(url: str) -> Path:
    """The path of a url without a scheme, or of a file:// url."""
    return Path(unquote(urlsplit(url).path)) if scheme(url) == "file" else Path(url)


def join(base: str, name: str) -> str:
    """The url of a file of the directory ``base``; the ``{}`` of a pipe: command stands for the name."""
    kind = scheme(base)
    if kind == "pipe":
        if "{}" not in base:
            raise DataError("a pipe: command needs {} where the name of the file belongs, as in `pipe:cat /corpus/{}`.")
        return base.replace("{}", shlex.quote(name))
    if not kind:
        return str(Path(base) / name)
    head, question, query = base.partition("?")
    return head.rstrip("/") + "/" + (quote(name) if kind in ("http", "https", "ftp") else name) + question + query


def shown(url: str) -> str:
    """The url for messages: without login or signature, and a command by its program alone."""
    kind = scheme(url)
    if kind == "pipe":
        return f"pipe:{(url[5:].split() or [''])[0]} ..."
    if kind not in ("http", "https", "ftp"):
        return url
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def split_login(url: str) -> tuple[str, tuple[str, str] | None]:
    """(the url without its login, (user, password) or None)."""
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, None
    user, _, password = login.partition(":")
    return urlunsplit(parts._replace(netloc=host)), (unquote(user), unquote(password))
