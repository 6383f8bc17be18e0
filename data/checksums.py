"""Checksums as archives publish them: what a checksum file says, and the same figure of a file here.

Known forms of a line: `HEX  name` of md5sum, sha1sum and sha256sum; `MD5 (name) = HEX` of BSD; and `SUM BLOCKS name` of
`sum`, which Ensembl's CHECKSUMS files hold (a 16-bit rotating sum and the size in blocks of 1024 bytes).
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

_BY_DIGITS = {32: "md5", 40: "sha1", 64: "sha256"}
_HEX_FIRST = re.compile(r"([0-9a-fA-F]{32,64})\s+\*?(\S.*)")
_BSD = re.compile(r"(MD5|SHA1|SHA256)\s*\((.+)\)\s*=\s*([0-9a-fA-F]+)")
_SUM = re.compile(r"(\d{1,5})\s+(\d+)\s+(\S.*)")
_CHUNK = 1 << 20

ALGORITHMS = ("sha256", "sha1", "md5", "sum")  # strongest first


def parse(text: str) -> dict[str, dict[str, str]]:
    """File name -> {algorithm: value}; lines of no known form are left out."""
    found: dict[str, dict[str, str]] = {}

    def add(name: str, algorithm: str, value: str) -> None:
        found.setdefault(name.strip().rpartition("/")[2], {})[algorithm] = value

    for line in text.splitlines():
        line = line.strip()
        if match := _BSD.fullmatch(line):
            add(match[2], match[1].lower(), match[3].lower())
        elif (match := _HEX_FIRST.fullmatch(line)) and len(match[1]) in _BY_DIGITS:
            add(match[2], _BY_DIGITS[len(match[1])], match[1].lower())
        elif match := _SUM.fullmatch(line):
            add(match[3], "sum", f"{int(match[1])} {int(match[2])}")
    return found


def checksum(path: Path, algorithm: str) -> str:
    """In the form that `parse` gives: lower-case hex, or "SUM BLOCKS"."""
    if algorithm == "sum":
        return _sum(path)
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _sum(path: Path) -> str:
    """`sum -r`, about 10 MB/s: it is only published for small files."""
    total = size = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            for byte in chunk:
                total = ((total >> 1) + ((total & 1) << 15) + byte) & 0xFFFF
    return f"{total} {-(-size // 1024)}"
