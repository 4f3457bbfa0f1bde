"""What a run says of its stores reaches the requests, and every process that it starts; and nothing overrides what a
user told fsspec."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe import storage
from tatok_pipe.commands.tokenize_corpus.options import TokenizeCorpusConfig
from tatok_pipe.config.load import load_config
from tatok_pipe.errors import UserError
from tatok_pipe.storage import StorageConfig, settings

from .answers import AnsweringServer, Request

ROOT = Path(__file__).parents[2]
LISTING = (
    b'<?xml version="1.0"?><ListBucketResult><Name>b</Name><KeyCount>1</KeyCount><IsTruncated>false</IsTruncated>'
    b"<Contents><Key>x/0.tar</Key><Size>7</Size><ETag>&quot;e&quot;</ETag>"
    b"<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>"
)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Credentials that are nobody's, and nothing of settings before or behind the test."""
    for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", settings.ENVIRONMENT):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    yield
    os.environ.pop(settings.ENVIRONMENT, None)


def listed(request: Request) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/xml"}, LISTING


def test_the_options_of_a_place_reach_the_requests_to_it() -> None:
    with AnsweringServer(listed) as server, AnsweringServer(listed) as other:
        storage.configure(
            StorageConfig(
                anonymous=["s3://public", "s3://b/open"],
                requester_pays=["s3://payer"],
                endpoints=[f"s3://={server.url}", f"s3://elsewhere={other.url}"],
            )
        )
        for bucket in ("public", "publicity", "payer", "b/open", "b/opened", "elsewhere/deep"):
            storage.list_files(f"s3://{bucket}/x")
        told = [(each.path.split("?")[0], "Authorization" in each.headers, "x-amz-request-payer" in each.headers)
                for each in server.requests]  # fmt: skip
        assert told == [
            ("/public", False, False),
            ("/publicity", True, False),
            ("/payer", True, True),
            ("/b", False, False),
            ("/b", True, False),
        ]
        assert [each.path.split("?")[0] for each in other.requests] == ["/elsewhere"]
        storage.configure(StorageConfig())
        assert settings.ENVIRONMENT not in os.environ


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("s3a://public/x", {"anon": True}),
        ("gs://public/x", {"token": "anon", "requester_pays": True}),
        ("gcs://public", {"token": "anon", "requester_pays": True}),
        ("abfss://public/x", {"anon": True}),
        ("hf://datasets/a/b/x", {"token": False, "endpoint": "https://mirror"}),
        ("hf://datasets/a/bc/x", {"endpoint": "https://mirror"}),
        ("simplecache::s3://public/x", {"anon": True}),
        ("/public/x", {}),
        ("http://public/x", {}),
    ],
)
def test_what_a_driver_is_told(url: str, expected: dict[str, Any]) -> None:
    storage.configure(
        StorageConfig(
            anonymous=["s3://public/", "gs://public", "az://public", "hf://datasets/a/b"],
            requester_pays=["gcs://public"],
            endpoints=["hf://=https://mirror"],
        )
    )
    assert settings.settings_of(url) == expected


def test_the_settings_reach_what_the_process_starts() -> None:
    storage.configure(StorageConfig(anonymous=["s3://public"]))
    program = "from tatok_pipe.storage import settings; print(settings.settings_of('s3://public/x'))"
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "{'anon': True}"


def test_what_fsspec_was_told_is_not_overridden() -> None:
    """In a process of its own, since fsspec reads its environment when it is imported."""
    program = "from tatok_pipe import storage; print(sorted(storage.list_files('s3://b/x')), storage.endpoint_of('s3://b'))"
    with AnsweringServer(listed) as server:
        told = {
            "FSSPEC_S3_ENDPOINT_URL": server.url,
            "FSSPEC_S3_ANON": "true",
            "FSSPEC_S3": json.dumps({"config_kwargs": {"user_agent_extra": "told"}}),
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            "PYTHONPATH": str(ROOT),
        }
        found = subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, **told},
            capture_output=True,
            text=True,
            check=True,
        )
        assert found.stdout.strip() == f"['0.tar'] {server.url}"
        (request,) = server.requests
        assert "Authorization" not in request.headers and "told" in request.headers["User-Agent"]


@pytest.mark.parametrize(
    ("argument", "told"),
    [
        (
            "storage.anonymous=[/data]",
            "storage.anonymous: /data: expected a URL that begins with one of s3://",
        ),
        ("storage.requester_pays=[az://c]", "expected a URL that begins with one of s3://, gs://"),
        ("storage.endpoints=[s3://b]", "expected URL=ENDPOINT"),
        ("storage.endpoints=['s3://b=https://me:pw@host']", "credentials come from the environment"),
        ("storage.anonymous=s3://b", "expected a list such as"),
    ],
)
def test_what_is_refused(argument: str, told: str) -> None:
    with pytest.raises(UserError) as raised:
        load_config(TokenizeCorpusConfig, [argument], prog="x", description="x")
    assert told in str(raised.value) and "pw" not in str(raised.value)


def test_the_command_line_gives_them() -> None:
    config = load_config(
        TokenizeCorpusConfig, ["storage.anonymous=[s3://public, gs://public]"], prog="x", description="x"
    )
    assert config.storage == StorageConfig(anonymous=["s3://public", "gs://public"])
