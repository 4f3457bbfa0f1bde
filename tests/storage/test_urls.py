from __future__ import annotations

import os
from pathlib import Path

import pytest

from tatok_pipe import storage
from tatok_pipe.errors import UserError


def test_a_local_file_has_one_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    expected = str(tmp_path / "shard.tar")
    spellings = ("shard.tar", "./shard.tar", "sub/../shard.tar", expected, "file://" + expected)
    assert {storage.canonical_url(spelling) for spelling in spellings} == {expected}


def test_canonical_url_of_remote_files_keeps_no_secret() -> None:
    assert storage.canonical_url("s3a://bucket/train/0.tar") == "s3://bucket/train/0.tar"
    assert storage.canonical_url("https://me:pw@host/0.tar?part=2") == "https://host/0.tar?part=2"
    signed = "https://host/0.tar?X-Amz-Date={}&X-Amz-Signature={}"
    assert storage.canonical_url(signed.format(1, "aa")) == storage.canonical_url(signed.format(2, "bb"))


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a.tar", "s3://bucket/a.tar"),
        ("/data/a b/user@host.tar", "/data/a b/user@host.tar"),
        ("https://me:pw@host/a", "https://***@host/a"),
        ("https://host/a?part=1&X-Amz-Signature=abc&n=2", "https://host/a?part=1&X-Amz-Signature=***&n=2"),
        ("https://host/a?sig=x%2B#top", "https://host/a?sig=***#top"),
        (
            "cannot read https://host/a?AccessToken=t and more",
            "cannot read https://host/a?AccessToken=*** and more",
        ),
    ],
)
def test_redact(url: str, shown: str) -> None:
    assert storage.redact(url) == shown


def test_join() -> None:
    assert storage.join("s3://b/out/", "data", "x.parquet") == "s3://b/out/data/x.parquet"
    assert storage.join("s3://b", "/data/") == "s3://b/data"
    assert storage.join("/", "x") == "/x"
    assert storage.join("memory://", "x") == "memory://x"


def test_unknown_protocol_names_what_to_use() -> None:
    with pytest.raises(UserError, match=r"nosuch://bucket/x.*s3://"):
        storage.open_filesystem("nosuch://bucket/x")


@pytest.mark.s3
def test_the_environment_alone_says_where_and_who(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    storage.publish_bytes(b"here", storage.join(s3_url, "x"), exclusive=True)
    assert storage.read_bytes(storage.join(s3_url, "x")) == b"here"
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    # The same server under another address, as another credential: nothing of the first may linger.
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.replace("127.0.0.1", "localhost"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "somebody-else")
    with pytest.raises(PermissionError, match=storage.join(s3_url, "x")):
        storage.read_bytes(storage.join(s3_url, "x"))
