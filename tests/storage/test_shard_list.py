from __future__ import annotations

import os
import pickle
import threading
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from webdataset.shardlists import expand_urls

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.shard_list import expand_shards
from tatok_pipe.storage import ShardFile, retry

from .web import WebServer


def urls_of(spec: str | list[str]) -> list[str]:
    return [shard.url for shard in expand_shards(spec)]


def fill(base: str, *names: str) -> list[str]:
    for name in names:
        storage.publish_bytes(b"x", storage.join(base, name), exclusive=True)
    return [storage.join(base, name) for name in names]


def check_every_spelling(base: str, tmp_path: Path) -> None:
    a0, a1, a2, other, deep = fill(base, "a-0.tar", "a-1.tar", "a-2.tar", "other.tar", "z/deep.tar")
    fill(base, "index.json")
    assert urls_of(storage.join(base, "a-{0..2}.tar")) == [a0, a1, a2]
    assert urls_of(storage.join(base, "{other,a-1}.tar")) == [other, a1]
    assert urls_of(storage.join(base, "a-*.tar")) == [a0, a1, a2]
    assert urls_of(storage.join(base, "a-[12].tar")) == [a1, a2]
    assert urls_of(storage.join(base, "a-?.tar")) == [a0, a1, a2]
    assert urls_of(base) == urls_of(base + "/") == [a0, a1, a2, other, deep]
    assert urls_of([a2, a0]) == [a2, a0]
    assert urls_of([a2, storage.join(base, "a-*.tar"), a0]) == [a2, a0, a1]
    text = f"# two shards\n{a1}  # one\n\n  {storage.join(base, 'a-{2..2}.tar')}\n{a1}\n"
    storage.publish_bytes(text.encode(), storage.join(base, "list.txt"), exclusive=True)
    (tmp_path / "local.txt").write_text(f"@{storage.join(base, 'list.txt')}\n{other}\n")
    assert urls_of("@" + storage.join(base, "list.txt")) == [a1, a2]
    assert urls_of(f"@{tmp_path / 'local.txt'}") == [a1, a2, other]


def check_errors(base: str) -> None:
    fill(base, "a-0.tar", "empty/readme")
    with pytest.raises(
        UserError, match=r"a-\{0..9\}.tar: 9 of 10 image shards do not exist: .*a-1.tar, .* and 6 more"
    ):
        urls_of(storage.join(base, "a-{0..9}.tar"))
    for wrong in ("b.tar", "nothing", "no/such/b.tar", "no/such/{1..3}.tar"):
        with pytest.raises(UserError, match="do not exist"):
            urls_of(storage.join(base, wrong))
    for wrong in ("b*.tar", "empty"):
        with pytest.raises(UserError, match="no .tar, .zip or .parquet file there"):
            urls_of(storage.join(base, wrong))
    with pytest.raises(UserError, match="cannot read the list of shards"):
        urls_of("@" + storage.join(base, "nothing.txt"))


def test_local(tmp_path: Path) -> None:
    check_every_spelling(str(tmp_path / "shards"), tmp_path)


def test_local_errors(tmp_path: Path) -> None:
    check_errors(str(tmp_path))
    (tmp_path / "bare").mkdir()
    with pytest.raises(UserError, match="no .tar, .zip or .parquet file there"):
        urls_of(str(tmp_path / "bare"))


def test_relative_paths_become_absolute_and_unique(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (shard,) = fill(str(tmp_path), "a.tar")
    monkeypatch.chdir(tmp_path)
    assert urls_of(["a.tar", "./a.tar", "file://" + shard, shard]) == [shard]


def test_other_filesystems(probe: Any, tmp_path: Path) -> None:
    check_every_spelling("probe:///shards", tmp_path)


def test_other_filesystems_errors(probe: Any) -> None:
    check_errors("probe:///shards")


@pytest.mark.s3
def test_s3(s3_url: str, tmp_path: Path) -> None:
    check_every_spelling(s3_url, tmp_path)


@pytest.mark.s3
def test_s3_errors(s3_url: str) -> None:
    check_errors(s3_url)


@pytest.mark.parametrize(
    "nothing", [[], "", " ", "\t\n", [""], "@", "@ ", ["here.tar", ""], ["", "here.tar"]]
)
def test_nothing_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nothing: str | list[str]) -> None:
    fill(str(tmp_path), "here.tar")  # which is not meant
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"names no image shard; give \.tar files") as caught:
        urls_of(nothing)
    assert "\n" not in str(caught.value)


def test_an_empty_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(str(tmp_path), "here.tar")
    monkeypatch.chdir(tmp_path)
    for text in ("", "\n  \n", "# nothing yet\n"):
        (tmp_path / "list.txt").write_text(text)
        with pytest.raises(UserError, match=r"^@list\.txt: no image shard; give \.tar files"):
            urls_of("@list.txt")


def test_braces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = fill(str(tmp_path), "here.tar")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="unbalanced braces"):
        urls_of("a-{0..3.tar")
    for empty in ("{here.tar,}", "{,here.tar}", "{,}"):
        with pytest.raises(UserError, match=r"\}: one of the words in its braces is empty"):
            urls_of(empty)
    assert urls_of("{,./}here.tar") == here


def test_a_directory_is_listed_once(probe: Any) -> None:
    urls = fill("probe:///shards", *(f"{index:03d}.tar" for index in range(100)))
    probe.calls.clear()
    assert urls_of("probe:///shards/{000..099}.tar") == urls
    assert probe.calls["ls"] == 1
    assert probe.calls["info"] + probe.calls["exists"] <= 1
    probe.calls.clear()
    assert urls_of("probe:///shards/*.tar") == urls
    assert probe.calls.total() <= 3  # of the directory, none of a shard
    of_pattern = probe.calls.copy()
    probe.calls.clear()
    assert urls_of([urls[7], "probe:///shards/*.tar"])[0] == urls[7]
    assert probe.calls == of_pattern  # the pattern's listing has it


def check_sizes_and_etags(base: str) -> None:
    """Whatever the way in, size and ETag are those that the store tells of each file by itself."""
    for index in range(40):
        data = bytes([index]) * (index + 1)
        storage.publish_bytes(data, storage.join(base, f"{index:02d}.tar"), exclusive=True)
    ways = ("{00..39}.tar", "{00..07}.tar", "*.tar", "", "0[0-3].tar", "05.tar")
    for way, num_shards in zip(ways, (40, 8, 40, 40, 4, 1), strict=True):
        files = expand_shards(storage.join(base, way))
        assert len(files) == num_shards
        for file in files:
            info = storage.file_info(file.url)
            assert (file.size_bytes, file.etag) == (info.size_bytes, info.etag)
            assert file.size_bytes == int(file.url[-6:-4]) + 1
    named = [storage.join(base, "39.tar"), storage.join(base, "*.tar")]
    assert expand_shards(named)[0] == files_by_name(base)["39.tar"]


def files_by_name(base: str) -> dict[str, ShardFile]:
    return {file.url.rpartition("/")[2]: file for file in expand_shards(base)}


def test_local_sizes(tmp_path: Path) -> None:
    check_sizes_and_etags(str(tmp_path))


def test_other_filesystems_sizes(probe: Any) -> None:
    check_sizes_and_etags("probe:///shards")


@pytest.mark.s3
def test_s3_sizes_and_etags(s3_url: str) -> None:
    check_sizes_and_etags(s3_url)
    assert all(len(file.etag) == 32 for file in expand_shards(s3_url))


def test_a_store_that_lists_nothing(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fill("probe:///shards", *(f"{index:03d}.tar" for index in range(100)))
    refused = []
    lock = threading.Lock()
    num_now = num_most = 0
    info = probe.info

    def count(*arguments: Any, **options: Any) -> Any:
        nonlocal num_now, num_most
        with lock:
            num_now += 1
            num_most = max(num_most, num_now)
        time.sleep(0.02)
        with lock:
            num_now -= 1
        return info(*arguments, **options)

    def refuse(*arguments: Any, **options: Any) -> Any:
        refused.append(arguments)
        raise PermissionError("AccessDenied")

    monkeypatch.setattr(probe, "ls", refuse)
    monkeypatch.setattr(probe, "info", count)
    files = expand_shards("probe:///shards/{000..099}.tar")
    assert [file.size_bytes for file in files] == [1] * 100
    assert len(refused) == 1
    assert 1 < num_most <= 32
    with pytest.raises(UserError, match="1 of 101 image shards do not exist: .*100.tar"):
        expand_shards("probe:///shards/{000..100}.tar")


@pytest.mark.parametrize(
    ("names", "pattern", "expected"),
    [
        (["a.tar", "a.parquet", "a_stats.json", "b/b.tar"], "", ["a.tar", "b/b.tar"]),
        (["a.tar", "a.parquet", "a_stats.json"], "*", ["a.tar"]),
        (["a.tar", "a.parquet"], "*.parquet", ["a.parquet"]),
        (["a.tar", "a.parquet"], "a.parquet", ["a.parquet"]),
        (["b.parquet", "a.parquet", "README.md"], "", ["a.parquet", "b.parquet"]),
        (["b.parquet", "a.parquet", "README.md"], "*", ["a.parquet", "b.parquet"]),
        (["part-0", "part-1", "other"], "part-?", ["part-0", "part-1"]),
        (["_a.tar", ".b.tar", "c.tar", "_temporary/d.tar", ".cache/e.tar"], "", ["c.tar"]),
        (["_a.tar", ".b.tar", "c.tar"], "*.tar", ["c.tar"]),
        (["_a.tar", "c.tar"], "_*.tar", ["_a.tar"]),
        (["_a.tar", "c.tar"], "_a.tar", ["_a.tar"]),
        (["x.tar/y.txt", "a.tar"], "*.tar", ["a.tar"]),  # a directory is no shard
    ],
)
def test_what_counts_as_a_shard(tmp_path: Path, names: list[str], pattern: str, expected: list[str]) -> None:
    fill(str(tmp_path), *names)
    spec = storage.join(str(tmp_path), pattern) if pattern else str(tmp_path)
    assert [os.path.relpath(url, tmp_path) for url in urls_of(spec)] == expected


def test_a_folder_of_hidden_names_only(tmp_path: Path) -> None:
    fill(str(tmp_path), "_dataset.json", ".a.tar", "_index.parquet")
    with pytest.raises(UserError, match="no .tar, .zip or .parquet file there"):
        urls_of(str(tmp_path))


@pytest.fixture
def web_url() -> Iterator[str]:
    files = {f"/{index:03d}.tar": bytes(77 + index) for index in range(50)}
    with WebServer(files | {"/0.tar": b"0"}) as server:
        yield server.url


def test_http(web_url: str) -> None:
    files = expand_shards([f"{web_url}/{{000..049}}.tar", f"{web_url}/0.tar?part=1"])
    assert [file.size_bytes for file in files] == [*range(77, 127), 1]
    assert files[1].url == f"{web_url}/001.tar" and files[1].etag.startswith("78-")
    assert files[-1].url == f"{web_url}/0.tar?part=1"
    with pytest.raises(UserError, match="1 of 2 image shards do not exist: .*missing.tar"):
        expand_shards([f"{web_url}/missing.tar", f"{web_url}/0.tar"])


def test_a_signed_link_stays_usable_and_is_one_shard(web_url: str) -> None:
    signed = [f"{web_url}/0.tar?X-Amz-Signature={each}" for each in ("aa", "bb")]
    assert [file.url for file in expand_shards(signed)] == [signed[0]]


def test_a_list_as_webdataset_has_it(tmp_path: Path, probe: Any) -> None:
    a, b, c = fill(str(tmp_path), "a.tar", "b.tar", "c.tar")
    (remote,) = fill("probe:///x", "0.tar")
    for spec, expected in (
        (f"{a}::{b}", [a, b]),
        (f"{tmp_path}/{{a,b}}.tar::{c}::{remote}", [a, b, c, remote]),
        (f"{remote}::{tmp_path}/*.tar", [remote, a, b, c]),
        (f"@{tmp_path}/list.txt::{c}", [b, a, c]),
        (f"{a}::{a}", [a]),
    ):
        (tmp_path / "list.txt").write_text(f"{b}::{a}\n")
        assert urls_of(spec) == expected
    # The parts are those of webdataset itself.
    assert expand_urls(f"{tmp_path}/{{a,b}}.tar::{c}") == [a, b, c]
    (strange,) = fill(str(tmp_path), "a.tar::b.tar")
    assert urls_of(f"{tmp_path}/a.tar::b.tar") == [strange]
    for wrong in (f"{a}::", f"::{a}", f"{a}::::{b}"):
        with pytest.raises(UserError, match="nothing before or behind '::'"):
            urls_of(wrong)
    with pytest.raises(UserError, match="1 of 2 image shards do not exist: .*no.tar"):
        urls_of(f"{a}::{tmp_path}/no.tar")
    with pytest.raises(UserError, match="a shell command, and none is run"):
        urls_of(f"{a}::pipe:cat {b}")


def test_an_address_of_ipv6_is_no_list() -> None:
    url = "http://[::1]:1/a.tar"  # where nobody listens
    assert storage.open_filesystem(url)[1] == url
    with pytest.raises(
        UserError, match=r"cannot list image shards: http://\[::1\]:1/a.tar: Cannot connect to host"
    ):
        urls_of(url)


def test_filesystems_within_others(tmp_path: Path) -> None:
    archive = tmp_path / "shards.zip"
    with zipfile.ZipFile(archive, "w") as target:
        for name in ("x/0.tar", "x/1.tar", "x/notes.txt"):
            target.writestr(name, name)
    (plain,) = fill(str(tmp_path), "2.tar")
    inner = f"::file://{archive}"
    expected = [f"zip://x/{index}.tar{inner}" for index in range(2)]
    assert urls_of(f"zip://x/0.tar{inner}") == expected[:1]
    assert urls_of(f"zip://x/*.tar{inner}") == urls_of(f"zip://x{inner}") == expected
    assert urls_of(f"zip://x/0.tar{inner}::{plain}") == [expected[0], plain]
    assert urls_of(f"{plain}::zip://x/1.tar{inner}") == [plain, expected[1]]
    for name, url in zip(("x/0.tar", "x/1.tar"), expected, strict=True):
        with storage.open_stream(url) as stream:
            assert stream.read() == name.encode()


ODD_NAMES = (
    "a b.tar", "a+b.tar", "a#b.tar", "a%20b.tar", "a%b.tar", "ünï-日本.tar", "a=b&c.tar", "a?b.tar", "a;b.tar",
    "a[1].tar", "a{1,2}.tar", "a*b.tar", "a'b.tar", 'a"b.tar', "a\\b.tar", "a~.tar", " lead.tar", "trail .tar",
    "a..b.tar", "a@b.tar",
)  # fmt: skip


def check_odd_names(base: str, names: Sequence[str]) -> None:
    """In a folder and by pattern all are there under their names; each is found by its name alone, and read."""
    for name in names:
        storage.publish_bytes(name.encode(), storage.join(base, name), exclusive=True)
    urls = sorted(f"{base}/{name}" for name in names)
    assert sorted(urls_of(base)) == sorted(urls_of(f"{base}/*.tar")) == urls
    for name in names:
        assert urls_of(f"{base}/{name}") == [f"{base}/{name}"]
        with storage.open_stream(f"{base}/{name}") as stream:
            assert stream.read() == name.encode()


def test_odd_names(tmp_path: Path, probe: Any) -> None:
    check_odd_names(str(tmp_path / "shards"), ODD_NAMES)
    check_odd_names("probe:///shards", ODD_NAMES)


@pytest.mark.s3
def test_odd_names_on_s3(s3_url: str) -> None:
    # SeaweedFS takes a backslash for a slash.
    check_odd_names(s3_url, [name for name in ODD_NAMES if "\\" not in name])


@pytest.mark.s3
def test_a_bucket_that_is_not_there(s3_url: str, s3_server: Any) -> None:
    told = f"bucket nowhere does not exist at {s3_server.endpoint_url}"
    for name in ("0.tar", "*.tar", "", "train", "{0..99}.tar", "train/{0,1}.tar"):
        with pytest.raises(UserError, match=told):
            urls_of(f"s3://nowhere/{name}")


def test_messages_show_what_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="^s3a://b/x: "):
        raise UserError(str(retry_error("s3a://b/x")))
    with pytest.raises(UserError, match=r"^no\.tar: 1 of 1 image shards do not exist: "):
        urls_of("no.tar")


def retry_error(url: str) -> Exception:
    def fail() -> None:
        raise PermissionError("no")

    with pytest.raises(PermissionError) as raised:
        retry.call(fail, url=url)
    return raised.value


def test_shard_files_are_small() -> None:
    file = ShardFile("s3://bucket/0.tar", 1)
    assert not hasattr(file, "__dict__")
    assert pickle.loads(pickle.dumps(file)) == file


def test_messages_hide_secrets(probe: Any) -> None:
    with pytest.raises(UserError) as raised:
        urls_of("probe://me:password@host/a.tar")
    assert "password" not in str(raised.value)
