"""Repositories of the Hugging Face hub, by the real client and against a server that speaks like the hub."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from huggingface_hub import constants

from tatok_pipe import storage
from tatok_pipe.errors import UserError, has_outside_cause
from tatok_pipe.images.shard_list import expand_shards
from tatok_pipe.storage import hub_commits, hub_session, retry
from tatok_pipe.storage.published import Content
from tests.storage import servers
from tests.storage.answers import AnsweringServer
from tests.storage.hub import TOKEN, Answered, HubServer, Request
from tests.storage.race_checks import run_alone

ROOT = Path(__file__).parents[2]
NAME = "me/images"
BASE = f"hf://datasets/{NAME}"
DATA = bytes(range(256)) * 40
SPECS = (f"{BASE}/data/0.parquet", f"{BASE}/data/*.parquet", f"{BASE}/data")


@pytest.fixture(autouse=True)
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY_S", retry.FIRST_DELAY_S / 1000)
    monkeypatch.setattr(hub_commits, "_FIRST_PAUSE_S", 0.001)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # What the client reads of the environment when it is imported.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    # A server of its own for each test, since the client remembers which repositories there are.
    with HubServer(tmp_path / "hub", page_size=3) as server:
        server.create(NAME, {"data/0.parquet": DATA, "README.md": b"about it"})
        storage.configure(storage.StorageConfig(endpoints=[f"hf://={server.url}"]))
        yield server
    storage.configure(storage.StorageConfig())
    assert not server.unknown


def num_commits(hub: HubServer) -> int:
    return len(hub.repositories[NAME].commits)


# --- reading


def test_a_dataset_of_the_hub(hub: HubServer) -> None:
    for spec in SPECS:
        (shard,) = expand_shards(spec)
        assert (shard.url, shard.size_bytes) == (SPECS[0], len(DATA))
        assert shard.etag == storage.file_info(SPECS[0]).etag != ""
    with storage.open_stream(SPECS[0], part_bytes=1000) as stream:
        assert stream.read() == DATA
    assert storage.read_tail(SPECS[0], 100) == DATA[-100:]
    assert storage.read_bytes(f"{BASE}/README.md") == b"about it"
    assert storage.list_files(BASE) == {".gitattributes": 21, "README.md": 8}
    assert storage.list_folders(BASE) == ["data"]


def test_listings_come_in_pages(hub: HubServer) -> None:
    hub.put(NAME, {f"many/{number % 3}/{number:02d}.tar": bytes(number) for number in range(20)})
    shards = expand_shards(f"{BASE}/many/*/*.tar")
    assert sorted(shard.size_bytes or 0 for shard in shards) == list(range(20))
    assert len(expand_shards(f"{BASE}/many")) == 20
    assert storage.list_files(f"{BASE}/many/1") == {f"{number:02d}.tar": number for number in range(1, 20, 3)}
    # Nothing is held of them, for the driver copies what it holds for every thread.
    assert not storage.open_filesystem(BASE)[0].dircache


def test_a_range_is_fetched_and_no_more(hub: HubServer) -> None:
    hub.put(NAME, {"big.tar": bytes(1 << 20)})
    info = storage.file_info(f"{BASE}/big.tar")
    ranges: list[str] = []

    def look(request: Request) -> None:
        if request.parts[0] == "lfs":
            ranges.append(request.headers.get("range", ""))

    hub.interfere = look
    hub.asked.clear()
    with storage.open_stream(f"{BASE}/big.tar", part_bytes=1 << 19, info=info) as stream:
        assert len(stream.read()) == 1 << 20
    assert sorted(ranges) == ["bytes=0-524287", "bytes=524288-1048575"]
    # No listing of the folder; the last look is whether the file is the same still.
    assert hub.asked["GET tree"] == 0 and hub.asked["POST paths-info"] == 1


def test_what_is_committed_meanwhile_is_there(hub: HubServer) -> None:
    """The driver would answer from the listing of the folder that it has."""
    filesystem, path = storage.open_filesystem(f"{BASE}/data")
    assert len(filesystem.ls(path)) == 1
    hub.put(NAME, {"data/1.parquet": b"new", "data/0.parquet": b"other"})
    assert storage.read_bytes(f"{BASE}/data/1.parquet") == b"new"
    assert storage.read_bytes(f"{BASE}/data/0.parquet") == b"other"
    assert storage.exists(f"{BASE}/data/1.parquet")
    assert storage.file_info(f"{BASE}/data/0.parquet").size_bytes == 5


def test_a_file_that_changes_is_noticed(hub: HubServer) -> None:
    before = storage.file_info(SPECS[0])
    hub.put(NAME, {"data/0.parquet": DATA[::-1]})
    assert storage.file_info(SPECS[0]) != before
    with (
        storage.open_stream(SPECS[0], part_bytes=1000, info=before) as stream,
        pytest.raises(OSError, match="changed while it was read"),
    ):
        stream.read()


def test_a_revision_stays_as_it_was(hub: HubServer) -> None:
    first = hub.repositories[NAME].head.oid
    hub.repositories[NAME].tags["v1"] = first
    hub.put(NAME, {"data/0.parquet": b"new", "data/1.parquet": b"new"})
    for revision in (first, "v1"):
        base = f"{BASE}@{revision}"
        assert storage.read_bytes(f"{base}/data/0.parquet") == DATA
        (shard,) = expand_shards(f"{base}/data/*.parquet")
        assert shard.url == f"{base}/data/0.parquet" and shard.size_bytes == len(DATA)
    assert len(expand_shards(f"{BASE}/data")) == 2
    with pytest.raises(UserError, match="the repository has no such revision"):
        expand_shards(f"{BASE}@v2/data")


# --- writing


def test_what_is_published_is_a_commit(hub: HubServer) -> None:
    url = f"{BASE}/tokens/data/1.parquet"
    assert storage.publish_bytes(b"first", url, exclusive=True) is True
    assert storage.publish_bytes(b"second", url, exclusive=True) is False
    assert storage.publish_bytes(b"first", url, exclusive=True) is False
    assert num_commits(hub) == 2 and hub.content(NAME, "tokens/data/1.parquet") == b"first"
    assert storage.publish_bytes(b"third", url, exclusive=False) is True
    assert num_commits(hub) == 3 and storage.read_bytes(url) == b"third"
    storage.remove(url)
    storage.remove(url)
    assert not storage.exists(url) and num_commits(hub) == 4


def test_a_large_file_goes_by_lfs(hub: HubServer, tmp_path: Path) -> None:
    (tmp_path / "x.bin").write_bytes(DATA * 50)
    assert storage.publish_file(tmp_path / "x.bin", f"{BASE}/x.bin", exclusive=True)
    assert hub.repositories[NAME].head.tree["x.bin"].is_lfs and hub.content(NAME, "x.bin") == DATA * 50
    # The hub tells its SHA-256, so that it need not be read back.
    assert hub.asked["GET resolve"] == 0 and hub.asked["PUT lfs"] == 1


@pytest.mark.parametrize("data", [b"small", DATA * 50])
def test_an_answer_that_got_lost(hub: HubServer, data: bytes) -> None:
    """The hub has made the commit, and says 500."""
    hub.loses_answers = 1
    assert storage.publish_bytes(data, f"{BASE}/x.bin", exclusive=True) is True
    assert num_commits(hub) == 2 and hub.content(NAME, "x.bin") == data


def test_other_commits_that_come_in_between(hub: HubServer) -> None:
    others = iter(range(5))

    def commit_before(request: Request) -> None:
        if request.kind == "commit" and (number := next(others, None)) is not None:
            hub.put(NAME, {f"other/{number}": b"x"})

    hub.interfere = commit_before
    assert storage.publish_bytes(b"mine", f"{BASE}/mine", exclusive=True) is True
    assert hub.asked["POST commit"] == 6 and num_commits(hub) == 7


def test_the_other_one_comes_in_between(hub: HubServer) -> None:
    """With the same content, of which the client would make no commit and tell no error."""

    def commit_before(request: Request) -> None:
        if request.kind == "preupload":
            hub.put(NAME, {"mine": b"mine"})

    hub.interfere = commit_before
    assert storage.publish_bytes(b"mine", f"{BASE}/mine", exclusive=True) is False
    hub.put(NAME, {"mine": b"other"})

    def commit_late(request: Request) -> None:
        if request.kind == "commit":
            hub.put(NAME, {"late": b"other"})

    hub.interfere = commit_late
    assert storage.publish_bytes(b"mine", f"{BASE}/late", exclusive=True) is False
    assert hub.content(NAME, "late") == b"other"


def test_commits_that_keep_coming(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_commits, "_PATIENCE_S", 0.05)

    def refuse(request: Request) -> Answered | None:
        return (412, {}, b"A commit has happened since.") if request.kind == "commit" else None

    hub.interfere = refuse
    for exclusive in (True, False):
        with pytest.raises(OSError, match=r"other commits came first, \d+ times"):
            storage.publish_bytes(b"mine", f"{BASE}/mine", exclusive=exclusive)


def test_replacing_is_tried_again(hub: HubServer) -> None:
    answers: list[Answered] = [(412, {}, b"A commit has happened since."), (503, {}, b"busy")]
    hub.interfere = lambda request: answers.pop(0) if request.kind == "commit" and answers else None
    assert storage.publish_bytes(b"mine", f"{BASE}/mine", exclusive=False) is True
    assert not answers and hub.content(NAME, "mine") == b"mine"
    answers += [(412, {}, b"A commit has happened since.")]
    storage.remove(f"{BASE}/mine")
    assert not answers and not storage.exists(f"{BASE}/mine")


def test_many_writers_of_many_files(hub: HubServer) -> None:
    urls = [f"{BASE}/tokens/{number}" for number in range(8)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda url: storage.publish_bytes(url.encode(), url, exclusive=True), urls * 2))
    assert sum(won) == 8 and num_commits(hub) == 9
    assert len(storage.list_files(f"{BASE}/tokens")) == 8


def test_a_hub_that_ignores_the_parent_is_told(tmp_path: Path) -> None:
    with HubServer(tmp_path / "hub", checks_parent=False) as server:
        server.create(NAME)
        store = servers.Store(f"{BASE}/x", servers.hub_environment(server, tmp_path))
        found = run_alone(store, 0)
    assert "this store let a second writer replace the file of the first" in found["broken_promise"]
    assert found["left_by_probe"] == {}


def test_a_card_that_is_no_yaml(hub: HubServer) -> None:
    with pytest.raises(OSError, match="README.md: Invalid metadata in README.md.*bad YAML"):
        storage.publish_bytes(b"---\na: [\n---\n", f"{BASE}/README.md", exclusive=False)


# --- what it says


def gone(code: str, status: int, message: str) -> Answered:
    return status, {"X-Error-Code": code, "X-Error-Message": message}, b""


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (gone("RepoNotFound", 401, "Repository not found"), "has no such repository, or one that is private"),
        (gone("RepoNotFound", 404, "Repository not found"), "has no such repository, or one that is private"),
        (gone("GatedRepo", 403, "Access is restricted"), "the repository is gated: accept its terms"),
        (gone("GatedRepo", 401, "Access is restricted"), "the repository is gated: accept its terms"),
        ((503, {}, b"busy"), "503 Service Unavailable"),
        ((403, {}, b"no"), r"access denied \(.*403 Forbidden.*\); set HF_TOKEN"),
        ((429, {}, b"slow down"), r"is asked too often \(429 Too Many Requests.*\); come again later"),
        (
            (429, {"Retry-After": "2580"}, b"slow down"),
            "come again in 2580 s: the same command does the rest",
        ),
    ],
)
def test_what_the_hub_says(hub: HubServer, answer: Answered, told: str) -> None:
    hub.interfere = lambda request: answer if request.kind == "revision" else None
    for spec in SPECS:
        with pytest.raises(UserError, match=told) as raised:
            expand_shards(spec)
        assert "\n" not in str(raised.value) and f"{BASE}/data" in str(raised.value)
    if "RepoNotFound" not in str(answer):
        with pytest.raises(OSError, match=told) as failed:
            storage.publish_bytes(b"x", f"{BASE}/x", exclusive=True)
        assert "\n" not in str(failed.value) and has_outside_cause(failed.value)


def test_who_may_not(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.create("me/secret", {"0.tar": b"x"}, is_private=True)
    hub.create("me/gated", {"0.tar": b"x"}, is_gated=True)
    assert len(expand_shards("hf://datasets/me/secret")) == 1
    with pytest.raises(UserError, match="the repository is gated"):
        expand_shards("hf://datasets/me/gated")
    with pytest.raises(
        OSError, match=r"no such repository.*hf repos create me/none --type dataset --private"
    ):
        storage.publish_bytes(b"x", "hf://datasets/me/none/x", exclusive=True)
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_HOME", "/nowhere")
    fsspec.get_filesystem_class("hf").clear_instance_cache()
    with pytest.raises(
        UserError, match=r"has no such repository, or one that is private \(HF_TOKEN is not set"
    ):
        expand_shards("hf://datasets/me/secret")
    with pytest.raises(
        OSError, match=r"has no such repository, or one that is private \(HF_TOKEN is not set"
    ):
        storage.publish_bytes(b"x", f"{BASE}/x", exclusive=True)


def test_a_busy_hub_is_asked_again(hub: HubServer) -> None:
    statuses: list[int] = []
    hub.interfere = lambda request: (statuses.pop(0), {}, b"busy") if statuses else None
    for spec in SPECS:
        statuses += [503, 502]
        assert [shard.url for shard in expand_shards(spec)] == [SPECS[0]]
        assert not statuses


def test_a_limit_of_commits_is_waited_for(hub: HubServer) -> None:
    said = b"You have exceeded the rate limit for repository commits (128 per hour)."
    answers: list[Answered] = []
    hub.interfere = lambda request: answers.pop(0) if request.kind == "commit" and answers else None
    pauses: list[float] = []
    url = f"{BASE}/x"
    filesystem, path = storage.open_filesystem(url)

    def write() -> None:
        hub_commits.Repositories().replace(filesystem, path, Content(data=b"x"))

    answers += [(429, {"Retry-After": "30"}, said)]
    retry.call(write, url=url, pause=pauses.append)
    assert hub.content(NAME, "x") == b"x" and [round(each) for each in pauses] == [30]
    hub.put(NAME, {"x": b"y"})
    answers += [(429, {"Retry-After": "2580"}, said)]
    with pytest.raises(OSError, match=r"\(128 per hour\).*come again in 2580 s: the same command"):
        retry.call(write, url=url, pause=pauses.append)
    assert len(pauses) == 1


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        (f"{BASE}/data/1.parquet", "1 of 1 image shards do not exist"),
        ("hf://images", "Repository id must be 'namespace/name'"),
        (f"{BASE}/data/*.tar", "no .tar, .zip or .parquet file there"),
    ],
)
def test_names_that_are_wrong(hub: HubServer, spec: str, told: str) -> None:
    with pytest.raises(UserError, match=told):
        expand_shards(spec)


def test_no_hub() -> None:
    with AnsweringServer(lambda request: (200, {}, b"")) as server:
        pass
    storage.configure(storage.StorageConfig(endpoints=[f"hf://={server.url}"]))
    try:
        for spec in SPECS:
            with pytest.raises(
                UserError, match=rf"{server.url} does not answer \(.*refused\); check the network"
            ):
                expand_shards(spec)
    finally:
        storage.configure(storage.StorageConfig())


def test_without_the_client() -> None:
    program = """
import sys
import threading
sys.modules["huggingface_hub"] = None
from tatok_pipe.images.shard_list import expand_shards
from tatok_pipe.errors import UserError
try:
    expand_shards("hf://datasets/me/images/0.tar")
except UserError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    (line,) = done.stdout.splitlines()
    assert "the driver of hf:// is not installed" in line and 'pip install "tatok_pipe[hub]"' in line


# --- a hub that takes connections and never answers


@pytest.mark.parametrize("kind", ["tree", "paths-info", "resolve"])
def test_a_silent_hub_is_told(hub: HubServer, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Without a limit of ours the client's listing waits for ever, whatever limit its session has."""
    silence = threading.Event()

    def stay_silent(request: Request) -> Answered | None:
        if f"/{kind}/" in request.path:
            silence.wait(60)
        return None

    hub.interfere = stay_silent
    monkeypatch.setattr(hub_session, "SILENCE_S", 0.2)
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # between the client's own attempts
    try:
        with pytest.raises((OSError, UserError), match=r"does not answer \(.*timed out\)") as told:
            if kind == "tree":
                expand_shards(f"{BASE}/data/*.parquet")
            elif kind == "paths-info":
                storage.exists(f"{BASE}/data/0.parquet")
            else:
                storage.read_bytes(f"{BASE}/data/0.parquet")
    finally:
        silence.set()
    assert isinstance(told.value, UserError) or has_outside_cause(told.value)
