"""Secrets of the environment and in urls reach no file, no log, no screen."""

from __future__ import annotations

import functools
import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from data.secrets import masked, masked_content
from pretrain import recipe
from tests.ranks import QUICK, ROOT, losses, pretrain

SECRETS = {
    "WANDB_API_KEY": "0123456789abcdef0123456789abcdefMARKERaa",
    "HF_TOKEN": "hf_MARKERbbbbbbbbbbbbbbbb",
    "HUGGING_FACE_HUB_TOKEN": "hf_MARKERcccccccccccccccc",
    "AWS_ACCESS_KEY_ID": "AKIAMARKERDDDDDDDDDD",
    "AWS_SECRET_ACCESS_KEY": "MARKERee/eeeeeeee+eeeeeeeeeeeee",
    "AWS_SESSION_TOKEN": "MARKERffffffffffffffff",
    "GOOGLE_API_KEY": "AIzaMARKERgggggggggggg",
}
PASSWORD = "MARKERpassword"
SIGNATURE = "MARKERsignature"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("https://user:pass@host/corpus", "https://host/corpus"),
        ("https://token@host:8080/c?a=1", "https://host:8080/c?a=1"),
        ("cannot read (ftp://u:p@h/x): refused", "cannot read (ftp://h/x): refused"),
        ("https://h/c?X-Amz-Signature=abc&b=2", "https://h/c?X-Amz-Signature=***&b=2"),
        ("https://h/c?b=2&sig=abc%3D&se=9", "https://h/c?b=2&sig=***&se=***"),
        ("https://h/c?access_token=abc", "https://h/c?access_token=***"),
        ("pipe:curl https://u:p@h/{} | zcat", "pipe:curl https://h/{} | zcat"),
        ("s3://bucket/corpus", "s3://bucket/corpus"),
        ("/data/a@b/corpus and c@d", "/data/a@b/corpus and c@d"),
        ("pipe:curl -H 'Bearer hf_secretsecret' x", "pipe:curl -H 'Bearer ***' x"),
        ("nothing here, not even yes", "nothing here, not even yes"),
        ("longsecret-and-more", "***"),
    ],
)
def test_masking(text, left) -> None:
    environment = {
        "HF_TOKEN": "hf_secretsecret",
        "MY_SECRET": "longsecret",
        "OTHER_PASSWORD": "longsecret-and-more",
        "USE_TOKEN": "yes",  # too short to be one
        "HOME": "/data/a@b",
    }
    assert masked(text, environment) == left


def test_masking_of_nested_content_leaves_everything_else_alone() -> None:
    content = {"a": [1, 2.5, None, True, "https://u:p@h/"], "b": {"c": "plain"}}
    assert masked_content(content, {}) == {"a": [1, 2.5, None, True, "https://h/"], "b": {"c": "plain"}}


def test_a_recipe_is_written_without_logins_and_interpolated_secrets(monkeypatch) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRETS["HF_TOKEN"])
    command = "pipe:curl -H 'Bearer ${oc.env:HF_TOKEN}' https://h/{}"
    mixture = [{"corpus": f"https://user:{PASSWORD}@h/a"}, {"corpus": command}]
    layer = OmegaConf.merge(OmegaConf.load(ROOT / "tests" / "tiny.yaml"), {"data": {"mixture": mixture}})
    layer.data.corpus = None
    settings = recipe.resolve([("test", layer)], "name")
    assert settings.data.mixture[0].corpus == f"https://user:{PASSWORD}@h/a"
    assert SECRETS["HF_TOKEN"] in settings.data.mixture[1].corpus
    text = recipe.to_yaml(settings)
    assert "MARKER" not in text
    assert "https://h/a" in text
    recipe.resolve([("again", OmegaConf.create(text))], "name")


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def server(synthetic_corpus: Path) -> Iterator[int]:
    """The port of a server of the corpus that takes any login."""
    handler = functools.partial(Quiet, directory=str(synthetic_corpus.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield serving.server_address[1]
        serving.shutdown()


def leaks(folder: Path, *texts: str) -> list[str]:
    found = [str(path) for path in folder.rglob("*") if path.is_file() and b"MARKER" in path.read_bytes()]
    return found + [line for text in texts for line in text.splitlines() if "MARKER" in line]


@pytest.mark.slow
def test_training_resuming_export_and_failures_leak_nothing(server, tmp_path, tmp_path_factory) -> None:
    url = f"http://user:{PASSWORD}@127.0.0.1:{server}/corpus?X-Amz-Signature={SIGNATURE}"
    folders = [f"run.directory={tmp_path / 'runs'}", f"data.cache={tmp_path / 'cache'}"]
    arguments = [*QUICK, *folders, "run.name=run", "validation.sequences=16", "checkpoint.every_steps=2"]
    arguments += ["tracking.wandb=offline", "tracking.tensorboard=true"]
    home = tmp_path / "home"
    home.mkdir()
    env = {**SECRETS, "HOME": str(home), "WANDB_SILENT": "true", "WANDB_CACHE_DIR": str(home)}
    said: list[str] = []

    def train(*settings: str, expected: int = 0) -> str:
        results = pretrain([*arguments, *settings], ranks=2, env=env)
        texts = [text for _, out, err in results for text in (out, err)]
        said.extend(texts)
        assert [code for code, _, _ in results] == [expected] * 2, results
        return "\n".join(texts)

    train(f"data.corpus={url}", "budget.steps=4")
    other = url.replace(PASSWORD, f"{PASSWORD}-changed")
    train(f"data.corpus={other}", "budget.steps=6")
    run = tmp_path / "runs" / "run"
    assert len(losses(run)) == 6
    text = (run / "recipe.yaml").read_text()
    assert f"http://127.0.0.1:{server}/corpus" in text
    assert list(run.rglob("*.wandb")), "wandb wrote something to look into"

    fasta = tmp_path / "some.fa"
    fasta.write_text(">a\nGGGAAACUCUCUUUCCC\n>b\nACGUACGUACGUACGU\n")
    command = [sys.executable, "launch/export.py", str(run), "--to", str(tmp_path / "release")]
    for more in ([], ["--sequences", str(fasta), "--overwrite"]):
        done = subprocess.run(
            [*command, *more], cwd=ROOT, env={**os.environ, **env}, text=True, capture_output=True, timeout=120
        )
        said += [done.stdout, done.stderr]
    assert done.returncode == 0, done.stderr

    closed = url.replace(f":{server}/", ":9/")
    new = "run.name=new"
    assert "127.0.0.1" in train(f"data.corpus={url.replace('/corpus', '/nowhere')}", new, expected=2)
    assert "127.0.0.1" in train(f"data.corpus={closed}/x", new, "data.cache=null", expected=2)
    train(f"data.corpus=pipe:curl -u user:{PASSWORD} {url}/{{}}", new, expected=2)
    train(f"init_from={url}", f"data.corpus={url}", new, "run.seed=2", expected=2)
    assert leaks(tmp_path, *said) == []


def test_the_search_for_leaks_finds_them(tmp_path) -> None:
    (tmp_path / "file").write_bytes(b"\0MARKER\0")
    assert len(leaks(tmp_path, "a MARKER", "none")) == 2
