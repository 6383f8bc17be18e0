"""A url with wildcards -> the urls of the files it stands for, by reading directory listings as archives serve them.

`https://HOST/release-109/fasta/*/ncrna/*.ncrna.fa.gz`: every part with a `*` is looked up in the listing of its
directory; the other parts are not. A directory below a wildcard that does not exist is no match (not every species has
`ncrna/`); the one above all wildcards must exist. Names that would leave their directory are refused.
"""

from __future__ import annotations

import ftplib
from concurrent.futures import Executor
from fnmatch import fnmatchcase
from html.parser import HTMLParser
from urllib.parse import unquote, urljoin, urlsplit

from data.errors import DataError
from data.remote import PASSING, NotReadable, ftp_login
from data.transfer import Patience, read_bytes
from data.urls import local_path, scheme, shown


def expand(url: str, pool: Executor, patience: Patience | None = None) -> list[str]:
    """The urls that match, in the order of their paths; the url itself if it has no `*`. Raises DataError."""
    patience = patience or Patience()
    if "*" not in url:
        return [url]
    if scheme(url) not in ("http", "https", "ftp", "", "file"):
        raise DataError(f"{shown(url)}: wildcards work for http, https, ftp and paths only; list the files.")
    names = url.split("/")
    first = next(i for i, name in enumerate(names) if "*" in name)
    level = ["/".join(names[:first]) + "/"]
    wild = False
    for i, name in enumerate(names[first:], first):
        last = i == len(names) - 1
        if "*" not in name:
            level = [folder + name + ("" if last else "/") for folder in level]
            continue

        def matching(folder: str, name: str = name, last: bool = last, optional: bool = wild) -> list[str]:
            listed = _listed(folder, patience, optional)
            wanted = (entry for entry in listed if entry.endswith("/") != last)
            return [folder + e for e in sorted(wanted) if fnmatchcase(unquote(e.rstrip("/")), name)]

        level = [found for several in pool.map(matching, level) for found in several]
        wild = True
    if not level:
        raise DataError(f"{shown(url)}: no file matches; check the url, the archive may have moved.")
    return level


def file_name(url: str) -> str:
    """The name a file of this url gets here. Raises DataError for one that is no plain name."""
    path = str(local_path(url)) if scheme(url) in ("", "file") else unquote(urlsplit(url).path)
    name = path.rpartition("/")[2]
    if not _plain(name):
        raise DataError(f"{shown(url)}: {name!r} is no name for a file here; give the url of a file.")
    return name


def _listed(folder: str, patience: Patience, optional: bool) -> list[str]:
    """Names in a directory, percent-coded as in urls, those of directories with a slash at their end."""
    kind = scheme(folder)
    try:
        if kind in ("", "file"):
            path = local_path(folder)
            if not path.is_dir():
                raise NotReadable(f"{path}: is no directory; check the path.")
            names = [entry.name + "/" * entry.is_dir() for entry in path.iterdir()]
        elif kind == "ftp":
            names = _ftp_names(folder, patience)
        else:
            page = _Links()
            page.feed(read_bytes(folder, patience).decode("utf-8", errors="replace"))
            base = urlsplit(folder)
            targets = [urlsplit(urljoin(folder, link)) for link in page.links]
            names = [
                target.path[len(base.path) :]
                for target in targets
                if target.netloc == base.netloc and target.path.startswith(base.path) and not target.query
            ]
    except NotReadable:
        if optional:
            return []
        raise
    return [name for name in dict.fromkeys(names) if _plain(unquote(name.removesuffix("/")))]


def _ftp_names(folder: str, patience: Patience) -> list[str]:
    lines: list[str] = []
    try:
        connection, path = ftp_login(folder, patience.timeout)
        try:
            connection.cwd(path)
            connection.retrlines("LIST", lines.append)
        finally:
            connection.close()
    except ftplib.error_perm as error:
        raise NotReadable(f"{shown(folder)}: the server answers {error}; check the url.") from error
    except (ftplib.Error, *PASSING) as error:
        raise DataError(f"{shown(folder)}: cannot be listed ({error}); start again to continue.") from error
    entries = [line.split(None, 8) for line in lines]
    return [entry[8].split(" -> ")[0] + "/" * (entry[0][0] == "d") for entry in entries if len(entry) == 9]


def _plain(name: str) -> bool:
    return bool(name) and not name.startswith(".") and not set(name) & set("/\\") and name.isprintable()


class _Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.links += [value for key, value in attrs if key == "href" and value]
