from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.shard_list import expand_shards
from tatok_pipe.storage import urls


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


ROOTS = (
    "", "/", "//", "./", "../", "~/", "file:///", "file://", "local://", "s3://bucket/", "s3a://bucket/", "s3://",
    "memory://", "memory:///", "https://host/", "http://me:pw@host:80/", "https://host/x?part=1&token=",
)  # fmt: skip
PARTS = st.one_of(
    st.sampled_from(
        ["data", "..", ".", "", "~", "a:b", "me:pw@host", "x?token=1", "sig=2", "a&key", "éa", "@"]
    ),
    st.text("ab01._-+,=~?&;#@% *é", max_size=6),
)


def answer(action: Callable[[str], str], url: str) -> str:
    try:
        return action(url)
    except Exception as error:
        return type(error).__name__


def slowly(url: str) -> str:
    """The canonical name as fsspec spells it, asked for every URL by itself."""
    filesystem, path = storage.open_filesystem(url)
    if storage.is_local(filesystem):
        return os.path.abspath(path)
    user = r"(?<=://)(?:[^/\s]*@|(?!\[)[^/@\s:]*:(?!\d+(?:/|$))\S*@)"  # a password may hold a slash
    name = re.sub(user, "", filesystem.unstrip_protocol(path))
    secret = r"sig|token|key|secret|credential|passw|auth|pwd|jwt|(?<![a-z])(?:pass|code)(?![a-z])"
    names = [found[1] for found in re.finditer(r"[?&;#]([^=?&;#\s]+)=[^&#\s]", name)]
    if not any(re.search(secret, unquote(unquote(unquote(each))), re.I) for each in names):
        return name
    name = name.partition("?")[0]
    return name.partition("#")[0] if name.startswith("http") else name


@given(
    root=st.sampled_from(ROOTS),
    parts=st.lists(PARTS, min_size=1, max_size=4),
    suffix=st.sampled_from(["", ".tar"]),
)
def test_names_are_those_that_fsspec_gives(root: str, parts: list[str], suffix: str) -> None:
    url = root + "/".join(parts) + suffix
    assert answer(storage.canonical_url, url) == answer(slowly, url)


def test_plain_names_do_not_ask_fsspec(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(
        urls, "open_filesystem", lambda url: asked.append(url) or storage.open_filesystem(url)
    )
    names = [
        f"s3://a-bucket-of-its-own/train/{part}/{index:05d}.tar" for part in range(3) for index in range(9)
    ]
    assert [storage.canonical_url(name) for name in names] == names
    assert len(asked) == 1


def test_openable_urls_keep_what_opens_them() -> None:
    assert storage.openable_url("https://me:pw@host/a/0.tar") == "https://me:pw@host/a/0.tar"
    assert storage.openable_url("https://host/0.tar?sig=a") == "https://host/0.tar?sig=a"
    assert storage.openable_url("s3a://bucket/a/0.tar") == "s3a://bucket/a/0.tar"
    assert storage.openable_url("0.tar") == os.path.join(os.getcwd(), "0.tar")


def test_relative_names_follow_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        assert storage.canonical_url("x.tar") == str(tmp_path / name / "x.tar")
        assert storage.canonical_url("deep/x.tar") == str(tmp_path / name / "deep/x.tar")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("s3://bucket/a.tar", "s3://bucket/a.tar"),
        ("/data/a b/user@host.tar", "/data/a b/user@host.tar"),
        ("https://me:pw@host/a", "https://***@host/a"),
        ("https://host/a?part=1&X-Amz-Signature=abc&n=2", "https://host/a?part=1&X-Amz-Signature=***&n=2"),
        ("https://host/a?sig=x%2B#top", "https://host/a?sig=***#top"),
        ("s3://AKIA:ab/cd+e@bucket/a.tar", "s3://***@bucket/a.tar"),
        ("https://me:p@w/d@host/a", "https://***@host/a"),
        ("https://p@w@host/a", "https://***@host/a"),
        ("http://host:8080/a@b.tar", "http://host:8080/a@b.tar"),
        ("http://[::1]:8080/a@b.tar", "http://[::1]:8080/a@b.tar"),
        ("hf://datasets/me/set@main/a.tar", "hf://datasets/me/set@main/a.tar"),
        ("abfs://box@account.dfs.core.windows.net/a", "abfs://box@account.dfs.core.windows.net/a"),
        ("https://host/a#access_token=abc", "https://host/a#access_token=***"),
        ("https://host/a?pwd=1&jwt=2&code=3&encode=4", "https://host/a?pwd=***&jwt=***&code=***&encode=4"),
        ("s3://bucket/;0=/x?token=1", "s3://bucket/;0=/x?token=***"),
        ("https://host/a?token=1;b=2?c=3&d=4#key=5", "https://host/a?token=***&d=4#key=***"),
        ("https://host/a?%74oken=abc&%2574oken=d", "https://host/a?%74oken=***&%2574oken=***"),
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


def test_escapes_in_file_urls_are_decoded_where_no_such_name_is_there(tmp_path: Path) -> None:
    for name in ("a b", "c%20d", "é", "x[1]"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.tar").write_bytes(b"x")
    uri = tmp_path.as_uri()
    for name in ("a b", "é", "x[1]"):  # as Python spells them
        assert storage.canonical_url(f"{(tmp_path / name).as_uri()}/0.tar") == f"{tmp_path}/{name}/0.tar"
        assert storage.exists(f"{(tmp_path / name).as_uri()}/0.tar")
    assert storage.canonical_url(f"{uri}/c%20d/0.tar") == f"{tmp_path}/c%20d/0.tar"
    assert storage.canonical_url(f"{uri}/c%2520d/0.tar") == f"{tmp_path}/c%20d/0.tar"
    assert storage.canonical_url(f"{tmp_path}/a%20b/0.tar") == f"{tmp_path}/a%20b/0.tar"  # no URL
    assert storage.canonical_url(f"file://localhost{tmp_path}/a%20b") == f"{tmp_path}/a b"
    # What is new is decoded, and what is written into a folder lands in that one.
    for folder, place in (("e%20f", "e f"), ("c%20d", "c%20d"), ("a%20b", "a b")):
        for part in ("one", "two%20three"):
            storage.publish_bytes(b"x", f"{uri}/{folder}/{part}", exclusive=True)
        assert {"one", "two three"} <= set(os.listdir(tmp_path / place))


def test_names_in_listings_are_spelled_as_the_url_was() -> None:
    for url, path, name, expected in (
        ("s3a://b/x/*.tar", "b/x/*.tar", "b/x/0.tar", "s3a://b/x/0.tar"),
        ("s3://b", "b", "b/x/0.tar", "s3://b/x/0.tar"),
        ("s3://b/x/", "b/x", "b/x/y/0.tar", "s3://b/x/y/0.tar"),
        ("abfs://c@me.dfs.core.windows.net/x", "c/x", "c/x/0.tar", "abfs://c@me.dfs.core.windows.net/x/0.tar"),
        ("hf://datasets/a/b@v1/x/*.tar", "datasets/a/b@v1/x/*.tar", "datasets/a/b@v1/x/0.tar",
         "hf://datasets/a/b@v1/x/0.tar"),
        ("zip://*.tar::s3://b/a.zip", "*.tar", "0.tar", "zip://0.tar::s3://b/a.zip"),
        ("simplecache::s3://b/*.tar", "b/*.tar", "b/0.tar", "simplecache::s3://b/0.tar"),
        ("http://h/x", "http://h/x", "http://h/x/0.tar", "http://h/x/0.tar"),
    ):  # fmt: skip
        assert urls.name_listed(url, path, name) == expected


def test_files_within_different_files_are_different_files(tmp_path: Path) -> None:
    for name in "ab":
        with zipfile.ZipFile(tmp_path / f"{name}.zip", "w") as archive:
            archive.writestr("0.tar", name)
    first, second = (storage.canonical_url(f"zip://0.tar::file://{tmp_path}/{name}.zip") for name in "ab")
    assert first != second


def test_an_azure_url_keeps_its_account() -> None:
    url = "abfss://images@me.dfs.core.windows.net/x/0.tar"
    assert storage.redact(url) == storage.openable_url(url) == url
    assert storage.canonical_url(url) == url.replace("abfss", "abfs")
    assert storage.canonical_url(url.replace("@me.", "@you.")) != storage.canonical_url(url)


def test_a_driver_that_refuses_is_told_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("AZURE_STORAGE"):
            monkeypatch.delenv(name)
    with pytest.raises(
        UserError, match=r"az://c/x: the driver of az:// refuses \(.*Must provide either a conn"
    ):
        storage.open_filesystem("az://c/x")
    with pytest.raises(UserError, match="the driver of box:// is not installed: .*boxfs"):
        storage.open_filesystem("box://x")


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


def test_the_host_is_part_of_a_name_whatever_the_driver_makes_of_it() -> None:
    """fsspec's drivers of sftp, ftp, smb and webhdfs have paths without it. This one connects when it must."""
    first, other = "webhdfs://h1:99/a/x.tar", "webhdfs://h2:99/a/x.tar"
    assert storage.canonical_url(first) == first
    assert storage.canonical_url("webhdfs://someone:secret@H1:99/a/x.tar") == first
    assert storage.store_of(first) == ("webhdfs", "h1:99") != storage.store_of(other)
    with pytest.raises(UserError, match=r"the driver of webhdfs:// takes no '\?' in names and patterns"):
        expand_shards("webhdfs://h1:99/a/??.tar")
