"""manifest.json: what a corpus is, in canonical JSON that names the hash of every other file and its own.

Canonical means: one byte string for one content. So any changed byte shows, white space included.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from data.errors import DataError

FORMAT = "rnafoundry-corpus"
FORMAT_VERSION = 2  # 2: clusters, and side tables of sources and duplicates
READABLE_VERSIONS = (1, 2)  # a corpus of version 1 lacks what 2 added, and is read as one without clusters
MANIFEST = "manifest.json"
INDEX = "index.npz"
LENGTHS = "lengths.npy"
CLUSTERS = "clusters.npz"  # row pointers cluster -> its sequences, per split
CLUSTERING = "clustering.npy"  # the clustering of all distinct sequences, to be given again
EXCLUDED = "excluded.tsv"  # sequences that resemble a benchmark
CARD = "README.md"  # made by `describe`, no part of the corpus: `verify` passes over these two
PICTURE = "describe.png"
SPLITS = ("train", "validation")


def canonical(content: dict[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False).encode() + b"\n"


def sealed(content: dict[str, Any]) -> bytes:
    """The bytes of manifest.json: the content plus its own hash under ``sha256``."""
    return canonical({**content, "sha256": hashlib.sha256(canonical(content)).hexdigest()})


def fingerprint(shards: Iterable[dict[str, Any]]) -> str:
    """Identifies the samples, their clusters and order: a hash over the names and hashes of all shards, 64 digits."""
    lines = "".join(f"{shard['name']} {shard['sha256']}\n" for shard in shards)
    return hashlib.sha256(lines.encode()).hexdigest()


def file_sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a corpus directory, with its own hash checked. Raises DataError."""
    path = folder / MANIFEST
    if folder.is_file():
        raise DataError(
            f"{folder}: is a file, and a corpus is a directory; make one of it with launch/prepare.py (see its --help)."
        )
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        what = "is not a corpus, it has no manifest.json" if folder.is_dir() else "does not exist"
        raise DataError(f"{folder}: {what}; make it with launch/prepare.py or mend the path.") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check its permissions.") from error
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise DataError(f"{path}: is not valid JSON, it was cut or changed; copy or build the corpus again.") from error
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise DataError(f"{path}: is no manifest of a {FORMAT}, or was changed; copy or build the corpus again.")
    if manifest.get("format_version") not in READABLE_VERSIONS:
        raise DataError(
            f"{path}: format version {manifest.get('format_version')!r}, this program reads "
            f"{' and '.join(map(str, READABLE_VERSIONS))}; "
            "prepare the corpus again or use the matching release."
        )
    body = {key: value for key, value in manifest.items() if key != "sha256"}
    if sealed(body) != content:
        raise DataError(f"{path}: does not match its own hash, it was changed; copy or build the corpus again.")
    return manifest
