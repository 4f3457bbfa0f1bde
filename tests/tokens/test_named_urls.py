"""What a dataset names is opened on this machine and in the dataset's own store; elsewhere only when asked for."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from tatok_pipe import inspect_tokens, storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.loose.image_list import ListedFile, write_list
from tatok_pipe.tokens.commit import commit_shard
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter, token_shard_name
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.named_urls import open_named
from tests.storage.web import WebServer
from tests.token_datasets import TINY, make_rows

ELSEWHERE = (
    "in another store than the dataset that names it, so it is not opened; input.other_stores=true opens it"
)


@pytest.mark.parametrize(
    ("url", "dataset", "is_opened"),
    [
        ("/data/0.tar", "/data/tokens", True),
        ("/data/0.tar", "s3://mine/tokens", True),
        ("file:///data/0.tar", "s3://mine/tokens", True),
        ("s3://mine/images/0.tar", "s3://mine/tokens", True),
        ("s3://other/images/0.tar", "s3://mine/tokens", False),
        ("s3://mine/images/0.tar", "/data/tokens", False),
        ("http://127.0.0.1:8000/0.tar", "http://127.0.0.1:8000/tokens", True),
        ("http://127.0.0.1:8001/0.tar", "http://127.0.0.1:8000/tokens", False),
        ("https://host/0.tar", "http://host/tokens", False),
        ("http://169.254.169.254/latest", "s3://mine/tokens", False),
        ("memory://a/0.tar", "memory://a/tokens", True),
        ("simplecache::s3://mine/0.tar", "s3://mine/tokens", False),
        ("s3://other/photos#000001", "s3://mine/tokens", False),
    ],
)
def test_which_urls_are_opened(
    url: str, dataset: str, is_opened: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "exists", lambda url: False)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "nobody")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "nothing")
    assert open_named(url, dataset, other_stores=True) == url
    if is_opened:
        assert open_named(url, dataset, other_stores=False) == url
    else:
        with pytest.raises(UserError, match=ELSEWHERE):
            open_named(url, dataset, other_stores=False)


@pytest.mark.parametrize("other_stores", [False, True])
def test_a_list_that_a_dataset_brings_along_is_not_opened(other_stores: bool) -> None:
    with WebServer({}) as server:
        url = f"/photos#000001#{server.url}/_input.parquet"
        for named in (url, "s3://mine" + url):
            with pytest.raises(UserError, match="#000001: names a list of images, which no footer does"):
                open_named(named, "s3://mine/tokens", other_stores=other_stores)
        assert server.requests == []


def test_images_that_a_list_names_elsewhere_are_not_opened(tmp_path: Path) -> None:
    """Somebody else may have written the list, too."""
    rows = [
        ListedFile(f"{tmp_path}/a.jpg", 8, key="a"),
        ListedFile("http://169.254.169.254/b.jpg", None, key="b"),
    ]
    parts = write_list("/data/m.jsonl", [rows[:1], rows], ())
    (tmp_path / "_input.parquet").write_bytes(parts)
    own = open_named("/data/m.jsonl#000000", str(tmp_path), other_stores=False)
    assert own == f"/data/m.jsonl#000000#{tmp_path}/_input.parquet"
    with pytest.raises(
        UserError, match="m.jsonl#000001: names http://169.254.169.254/b.jpg, in another store"
    ):
        open_named("/data/m.jsonl#000001", str(tmp_path), other_stores=False)
    assert storage.parse_part(open_named("/data/m.jsonl#000001", str(tmp_path), other_stores=True))


def write_dataset(url: str, server: str) -> None:
    """A token shard of an image shard and a tokenizer at `server`, and another one, damaged."""
    create_or_check(url, TINY, {"tokenizer": {"checkpoint": f"{server}/tokenizer"}})
    for number in range(2):
        source = ShardSource(f"{server}/{number}.tar", 10240)
        with tempfile.TemporaryDirectory() as folder:
            path = f"{folder}/data.parquet"
            with ShardWriter(path, TINY, source) as writer:
                writer.append(make_rows(3, first=3 * number))
            commit_shard(url, token_shard_name(source.url), path, None, spec=TINY, source=source)
    refresh_index(url, TINY)  # which tells where the damaged one came from
    damaged = sorted(Path(url).glob("data/*"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-9])


@pytest.mark.parametrize("argv", [["--verify"], ["--repair"]])
def test_a_strangers_dataset_has_nothing_fetched(
    tmp_path: Path, argv: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with WebServer({}) as server:
        url = str(tmp_path / "tokens")
        write_dataset(url, server.url)
        assert inspect_tokens.main([f"input.url={url}", *argv]) == 1
        assert server.requests == []
        assert inspect_tokens.main([f"input.url={url}", *argv, "input.other_stores=true"]) == 1
        assert {path for _, path, _ in server.requests} & {"/0.tar", "/1.tar"}
    assert "Traceback" not in capsys.readouterr().out


def test_the_report_of_a_strangers_dataset_fetches_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    with WebServer({}) as server:
        url = str(tmp_path / "tokens")
        write_dataset(url, server.url)
        sorted(Path(url).glob("data/*"))[1].unlink()
        assert inspect_tokens.main([f"input.url={url}"]) == 0
        assert server.requests == []
        assert f"0.tar: {ELSEWHERE}" in caplog.text or f"1.tar: {ELSEWHERE}" in caplog.text
        assert "/tokenizer: in another store than the dataset" in caplog.text
        page = (tmp_path / "tokens" / "report.html").read_text()
        assert "in another store than the dataset" in page
        assert inspect_tokens.main([f"input.url={url}", "input.other_stores=true"]) == 0
        asked = {path for _, path, _ in server.requests}
        assert len(asked & {"/0.tar", "/1.tar"}) == 1 and any(
            path.startswith("/tokenizer/") for path in asked
        )
