"""Downloads against a local archive: layouts, published checksums, and every way in which a transfer goes wrong."""

from __future__ import annotations

import functools
import gzip
import hashlib
import os
import shutil
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest

from data import checksums, remote, urls
from data.download import download
from data.download_config import DownloadConfig, DownloadSource, load_downloads
from data.errors import DataError
from data.transfer import Expected, Patience, Stopped, fetch
from launch.cli import CONFIGS
from launch.download_command import download_command
from tests.archive import Archive, serving
from tests.ftp_archive import serving_ftp

QUICK = Patience(tries=4, first_wait=0.01, longest_wait=0.02, timeout=0.5)


def system_sum(path: Path) -> str:
    """What the command says that Ensembl's CHECKSUMS are made with."""
    with open(path, "rb") as file:
        return subprocess.run(["sum", "-r"], stdin=file, capture_output=True, text=True, check=True).stdout.strip()


@functools.cache
def gz(letters: int, seed: int = 0) -> bytes:
    text = np.random.default_rng(seed).choice(np.frombuffer(b"ACGU", np.uint8), letters).tobytes()
    return gzip.compress(b">s\n" + text + b"\n", compresslevel=1, mtime=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One big file, and three species of which one has no non-coding RNA, as Ensembl lays them out."""
    remote_folder = tmp_path / "archive"
    for name, seed in (("homo_sapiens", 1), ("mus_musculus", 2), ("danio_rerio", 3)):
        species = remote_folder / "pub/release-109/fasta" / name
        (species / "dna").mkdir(parents=True)
        (species / "dna" / f"{name}.dna.fa.gz").write_bytes(gz(50))
        if name == "danio_rerio":
            continue
        (species / "ncrna").mkdir()
        file = species / "ncrna" / f"{name.capitalize()}.X1.ncrna.fa.gz"
        file.write_bytes(gz(3000, seed))
        (species / "ncrna/README").write_text("read me")
        (species / "ncrna/CHECKSUMS").write_text(f"{system_sum(file)} {file.name}\n12345 1 README\n")
    (remote_folder / "big.fasta.gz").write_bytes(gz(1_000_000))
    return remote_folder


def source(*patterns: str, name: str = "one", **options: object) -> DownloadSource:
    expected = options.pop("expected", {})
    return DownloadSource(name, "unused", DownloadConfig(list(patterns), **options), expected)  # type: ignore[arg-type]


def get(archive: Archive, to: Path, expected: Expected | None = None, name: str = "big.fasta.gz", **options: object):
    return fetch(f"{archive.url}/{name}", to / name, to / f".{name}.part", expected, QUICK, **options)


def leftovers(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name.endswith((".part", ".json")))


def test_an_archive_of_species_is_found_by_its_listings_and_checked_by_its_sums(folder: Path, tmp_path: Path):
    with serving(folder) as archive:
        pattern = archive.url + "/pub/release-109/fasta/*/ncrna/*.ncrna.fa.gz"
        one = source(pattern, name="ensembl", checksums="CHECKSUMS")
        shown = []
        found = download([one], tmp_path / "raw", lambda *step: shown.append(step), patience=QUICK)
        names = ["Homo_sapiens.X1.ncrna.fa.gz", "Mus_musculus.X1.ncrna.fa.gz"]
        assert [f.path for f in found] == [tmp_path / "raw/ensembl" / name for name in names]
        assert [(f.checked, f.fetched) for f in found] == [("sum", True)] * 2
        for f in found:
            assert f.path.read_bytes() == next(folder.rglob(f.path.name)).read_bytes()
        assert ("ensembl: " + names[0], found[0].bytes, found[0].bytes) in shown
        assert not leftovers(tmp_path / "raw/ensembl")
        archive.requests.clear()
        again = download([one], tmp_path / "raw", patience=QUICK)
        assert not any(f.fetched for f in again)
        assert not any(name.endswith(".gz") for name in archive.order())


def test_a_dropped_connection_continues_where_it_ended(folder: Path, tmp_path: Path):
    content = (folder / "big.fasta.gz").read_bytes()
    with serving(folder) as archive:
        archive.faults["/big.fasta.gz"] = ["drop:100000", "drop:50000", "drop:0", "hang"]
        fetched = get(archive, tmp_path, on_bytes=lambda done, total: None)
        asked = [int(r[6:-1]) for _, r in archive.requests if r]
    assert (tmp_path / "big.fasta.gz").read_bytes() == content
    assert (fetched.bytes, fetched.checked) == (len(content), "size")
    assert asked == [100_000, 150_000, 150_000, 150_000]


@pytest.mark.parametrize("options", [{"ranges": False}, {"etags": False}])
def test_without_ranges_or_versions_a_dropped_transfer_starts_again(folder: Path, tmp_path: Path, options: dict):
    with serving(folder, **options) as archive:
        archive.faults["/big.fasta.gz"] = ["drop:100000"]
        get(archive, tmp_path)
        assert len(archive.requests) == 2
        assert options != {"etags": False} or archive.requests[1][1] == ""
    assert (tmp_path / "big.fasta.gz").read_bytes() == (folder / "big.fasta.gz").read_bytes()


def test_a_file_that_changes_in_the_middle_starts_again(folder: Path, tmp_path: Path):
    path, new = folder / "big.fasta.gz", gz(900_000, 9)

    def change(_: str) -> None:
        if len(archive.requests) == 2:
            path.write_bytes(new)

    with serving(folder) as archive:
        archive.faults["/big.fasta.gz"] = ["drop:100000"]
        archive.on_request = change
        get(archive, tmp_path)
    assert (tmp_path / "big.fasta.gz").read_bytes() == new


def test_a_stopped_download_is_continued_by_the_next_one_also_after_its_last_byte(folder: Path, tmp_path: Path):
    content = (folder / "big.fasta.gz").read_bytes()
    for enough in (1, len(content)):
        stop = threading.Event()
        with serving(folder) as archive:
            with pytest.raises(Stopped):
                get(archive, tmp_path, stop=stop, on_bytes=lambda d, t, n=enough, s=stop: s.set() if d >= n else None)
            assert leftovers(tmp_path)
            get(archive, tmp_path)
            assert archive.requests[1][1]
        assert (tmp_path / "big.fasta.gz").read_bytes() == content
        assert not leftovers(tmp_path)
        (tmp_path / "big.fasta.gz").unlink()


def test_wrong_bytes_are_fetched_anew_once_and_then_refused(folder: Path, tmp_path: Path):
    content = (folder / "big.fasta.gz").read_bytes()
    expected = Expected(len(content), {"sha256": hashlib.sha256(content).hexdigest()})
    with serving(folder) as archive:
        archive.faults["/big.fasta.gz"] = ["corrupt"]
        assert get(archive, tmp_path, expected).checked == "sha256"
        assert len(archive.requests) == 2
        (tmp_path / "big.fasta.gz").unlink()
        archive.faults["/big.fasta.gz"] = ["corrupt", "corrupt"]
        with pytest.raises(DataError, match=r"big\.fasta\.gz: does not match its published sha256 .*2 times in a row"):
            get(archive, tmp_path, expected)
        with pytest.raises(DataError, match=r"has [\d,]+ bytes and was published with 7"):
            get(archive, tmp_path, Expected(7))
        archive.faults["/big.fasta.gz"] = ["html", "html"]
        with pytest.raises(DataError, match="is no gzip file"):
            get(archive, tmp_path)
    assert not list(tmp_path.glob("*.gz"))


def test_what_cannot_be_mended_by_asking_again_is_one_sentence_at_once(folder: Path, tmp_path: Path):
    with serving(folder) as archive:
        with pytest.raises(DataError, match=r"/none\.fa: the server answers 404 Not Found; check the url"):
            get(archive, tmp_path, name="none.fa")
        assert len(archive.requests) == 1
        archive.faults["/big.fasta.gz"] = ["status:503", "status:429"]
        get(archive, tmp_path)
        archive.faults["/big.fasta.gz"] = ["status:500"] * 4
        with pytest.raises(DataError, match=r"4 tries in a row failed .*500"):
            get(archive, tmp_path)
        with pytest.raises(DataError, match="no file matches"):
            download([source(archive.url + "/pub/*/nothing/*.gz")], tmp_path / "raw", patience=QUICK)
        with pytest.raises(DataError, match="404"):
            download([source(archive.url + "/nowhere/*.gz")], tmp_path / "raw", patience=QUICK)
        dead = archive.url
    with pytest.raises(DataError, match="check the network and start again to continue"):
        fetch(dead + "/x", tmp_path / "x", tmp_path / ".x.part", patience=QUICK)


def test_a_missing_host_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def nobody(*_: object) -> None:
        raise remote.socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(remote.socket, "getaddrinfo", nobody)
    with pytest.raises(DataError, match=r"the host is not found.*is there a network"):
        fetch("http://archive.invalid/x", tmp_path / "x", tmp_path / ".x.part", patience=QUICK)


def test_a_full_disk_is_told_before_and_during(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with serving(folder) as archive:
        with monkeypatch.context() as patch:
            usage = shutil.disk_usage(tmp_path)._replace(free=1000)
            patch.setattr(shutil, "disk_usage", lambda path: usage)
            with pytest.raises(DataError, match=r"the disk is full: .* are still to come"):
                get(archive, tmp_path)

        def no_space(descriptor: int) -> None:
            raise OSError(28, os.strerror(28))

        monkeypatch.setattr(os, "fsync", no_space)
        with pytest.raises(DataError, match="the disk is full; what has come is kept"):
            get(archive, tmp_path)


def test_the_first_failure_ends_a_download_and_what_came_stays(folder: Path, tmp_path: Path):
    with serving(folder) as archive:
        both = source(archive.url + "/big.fasta.gz", archive.url + "/gone.gz", archive.url + "/a.gz")
        (folder / "a.gz").write_bytes(gz(10))
        with pytest.raises(DataError, match=r"gone\.gz: the server answers 404"):
            download([both], tmp_path / "raw", parallel=1, patience=QUICK)
        assert (tmp_path / "raw/one/a.gz").exists()
        (folder / "gone.gz").write_bytes(gz(20))
        found = download([both], tmp_path / "raw", parallel=3, patience=QUICK)
        assert [f.fetched for f in found] == [False, False, True]
        # Truncated behind our back: fetched again.
        (tmp_path / "raw/one/a.gz").write_bytes(b"\x1f\x8b")
        assert [f.fetched for f in download([both], tmp_path / "raw", patience=QUICK)] == [True, False, False]


def test_a_file_put_there_by_hand_is_compared_with_what_was_published(folder: Path, tmp_path: Path):
    content = (folder / "big.fasta.gz").read_bytes()
    (folder / "md5sums.txt").write_text(f"{hashlib.md5(content).hexdigest()}  ./big.fasta.gz\n")
    mine = tmp_path / "raw/one/big.fasta.gz"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(content)
    with serving(folder) as archive:
        one = source(archive.url + "/big.fasta.gz", checksums="/md5sums.txt")
        (found,) = download([one], tmp_path / "raw", patience=QUICK)
        assert (found.checked, found.fetched, archive.order()) == ("md5", False, ["md5sums.txt"])
        mine.write_bytes(content[:-1] + b"x")
        with pytest.raises(DataError, match="is not the file that was published"):
            download([one], tmp_path / "raw", patience=QUICK)


def test_listings_cannot_lead_out_of_their_directory(folder: Path, tmp_path: Path):
    with serving(folder) as archive:
        archive.links["/"] = [
            "%2e%2e%2fevil.gz",
            "..%5Cevil.gz",
            ".hidden.gz",
            "http://elsewhere.invalid/x.gz",
            "/up/y.gz",
        ]
        found = download([source(archive.url + "/*.gz")], tmp_path / "raw", patience=QUICK)
        assert [f.path.name for f in found] == ["big.fasta.gz"]


def test_two_urls_of_one_name_are_refused(folder: Path, tmp_path: Path):
    shutil.copytree(folder / "pub/release-109", folder / "pub/release-110")
    with serving(folder) as archive, pytest.raises(DataError, match="divide them into two sources"):
        download([source(archive.url + "/pub/*/fasta/*/ncrna/*.fa.gz")], tmp_path / "raw", patience=QUICK)


def test_ftp_resumes_and_lists(folder: Path, tmp_path: Path):
    with serving_ftp(folder) as archive:
        archive.drops = [70_000]
        found = download([source(archive.url + "/*.fasta.gz")], tmp_path / "raw", patience=QUICK)
        assert archive.restarts == [0, 70_000]
        with pytest.raises(DataError, match="550"):
            download([source(archive.url + "/none.gz", name="two")], tmp_path / "raw", patience=QUICK)
    assert found[0].path.read_bytes() == (folder / "big.fasta.gz").read_bytes()


def test_checksum_files_in_the_forms_that_archives_use(tmp_path: Path):
    parsed = checksums.parse(f"{'A' * 32} *x.gz\nSHA256 (y.gz) = {'b' * 64}\n09623  421 z.fa.gz\nsome words\n")
    assert parsed == {"x.gz": {"md5": "a" * 32}, "y.gz": {"sha256": "b" * 64}, "z.fa.gz": {"sum": "9623 421"}}
    for size in (0, 1, 1024, 70_001):
        path = tmp_path / f"f{size}"
        path.write_bytes(np.random.default_rng(size).bytes(size))
        said = system_sum(path).split()
        assert checksums.checksum(path, "sum") == f"{int(said[0])} {int(said[1])}"


def test_messages_show_no_secrets():
    assert urls.shown("https://me:secret@host:8/x?signature=1") == "https://host:8/x"
    assert urls.shown("pipe:fetch --key secret") == "pipe:fetch ..."


def test_the_command_takes_a_config(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    own = tmp_path / "mine.fa"
    own.write_text(">a\nACGU\n")
    config = tmp_path / "c.yaml"
    with serving(folder) as archive:
        config.write_text(
            f"name: c\nsources:\n- {{name: mine, path: {own}}}\n- name: big\n  path: raw/big/*\n"
            f"  download: {{urls: ['{archive.url}/big.fasta.gz'], files: {{big.fasta.gz: {{sha256: {'0' * 64}}}}}}}\n"
        )
        with pytest.raises(DataError, match="published sha256"):
            download_command(["--config", str(config), "--to", str(tmp_path / "raw")])
        config.write_text(config.read_text().replace(f", files: {{big.fasta.gz: {{sha256: {'0' * 64}}}}}", ""))
        download_command(["--config", str(config), "--to", str(tmp_path / "raw")])
        out = capsys.readouterr().out
        assert "mine: 1 file, 0.0 MB, local" in out
        assert "1 fetched now; checked by size" in out
        download_command(["--config", str(config), "--only", "mine"])
        with pytest.raises(DataError, match="there is no source bgi; did you mean big"):
            download_command(["--config", str(config), "--only", "bgi"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sources: []", "sources is empty"),
        ("sources: [{name: a}]", "must have `name` and `path`"),
        ("sources: [{name: ../a, path: x}]", "no plain name"),
        ("sources: [{name: a, path: x, download: {url: [y]}}]", r"no key sources\[0\].download.url; .*urls"),
        ("sources: [{name: a, path: x, download: {}}]", "urls is empty"),
        ("sources: [{name: a, path: x, download: {urls: [u], files: {f: {size: 3}}}}]", "must be a section of bytes"),
        ("sources: [{name: a, path: nowhere/x}]", "does not exist and has no download section"),
    ],
)
def test_a_config_that_is_wrong_is_one_sentence(tmp_path: Path, text: str, message: str):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        download(load_downloads(path), tmp_path / "raw")


def test_shipped_configs_name_their_archives():
    with_urls = 0
    for path in sorted((CONFIGS / "data").glob("*.yaml")):
        for one in load_downloads(path):
            if one.download:
                with_urls += 1
                assert one.path.startswith(f"raw/{one.name}/")
                assert all(url.startswith("https://") for url in one.download.urls)
    assert with_urls >= 6
