from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tatok_pipe import storage
from tatok_pipe.commands.tokenize_corpus import plan as corpus_plan
from tatok_pipe.commands.tokenize_corpus.options import Only, OnMoved, OnSourceChange
from tatok_pipe.commands.tokenize_corpus.plan import CorpusPlan, discard_committed, make_plan
from tatok_pipe.errors import UserError
from tatok_pipe.images.options import IMAGES_PER_PART
from tatok_pipe.images.shard_list import expand_shards
from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.storage import ShardFile
from tatok_pipe.tokens.commit import commit_shard
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter, token_shard_name, write_quarantine
from tatok_pipe.tokens.index_file import load_index
from tatok_pipe.tokens.layout import data_url, quarantine_url
from tatok_pipe.tokens.spec import TokenSpec
from tests import synthetic_store

BAD = Quarantined("bad", "decode", "NotAnImage", "no image", 10)
# SHA-256 of both begins with 0aca7153.
COLLISION = ("s3://bucket/55522/shard.tar", "s3://bucket/118534/shard.tar")


class Corpus:
    """A token dataset, and image shards that are nowhere but in listings."""

    def __init__(self, folder: Path, url: str, spec: TokenSpec, records: list[TokenRecord]) -> None:
        self.folder, self.url, self.spec, self.records = folder, url, spec, records
        create_or_check(url, spec, {})

    def commit(self, shard: ShardFile, *, quarantined: bool = False) -> bool:
        """What a worker does with a shard."""
        path = Path(shard.url)
        sha256 = "" if shard.etag or not path.exists() else hashlib.sha256(path.read_bytes()).hexdigest()
        source = ShardSource(shard.url, shard.size_bytes or 0, shard.etag, sha256)
        with ShardWriter(self.folder / "data.parquet", self.spec, source) as writer:
            writer.append(self.records)
            writer.add_quarantined([BAD] if quarantined else [])
        write_quarantine(self.folder / "quarantine.parquet", [BAD])
        return commit_shard(
            self.url, token_shard_name(shard.url), self.folder / "data.parquet",
            self.folder / "quarantine.parquet" if quarantined else None, spec=self.spec, source=source,
        )  # fmt: skip

    def plan(
        self,
        shards: list[ShardFile],
        on_source_change: OnSourceChange = "error",
        on_moved: OnMoved = "error",
        only: Only = "all",
    ) -> CorpusPlan:
        return make_plan(
            self.url, self.spec, shards, on_source_change=on_source_change, on_moved=on_moved, only=only
        )


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def corpus(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    token_spec: TokenSpec,
    make_token_records: Callable[..., list[TokenRecord]],
) -> Corpus:
    url = str(tmp_path / "tokens") if request.param == "local" else request.getfixturevalue("s3_url")
    return Corpus(tmp_path, url, token_spec, make_token_records(token_spec, 3))


def shards_of(count: int) -> list[ShardFile]:
    return [ShardFile(f"s3://images/{index}.tar", 1000 + index, f"etag-{index}") for index in range(count)]


def test_planned_minus_committed_in_input_order(corpus: Corpus) -> None:
    shards = shards_of(6)[::-1]
    plan = corpus.plan(shards)
    assert (plan.todo, plan.num_done, plan.num_planned, plan.changed) == (shards, 0, 6, [])
    assert plan.bytes_to_read == 6 * 1000 + 15
    for shard in (shards[1], shards[4]):
        corpus.commit(shard)
    corpus.commit(ShardFile("s3://elsewhere/0.tar", 1))
    plan = corpus.plan(shards)
    assert plan.todo == [shards[0], shards[2], shards[3], shards[5]]
    assert plan.names == [token_shard_name(shard.url) for shard in shards]
    assert (plan.num_done, plan.num_other, len(plan.index)) == (2, 1, 3)
    assert plan.bytes_to_read == 1005 + 1003 + 1002 + 1000
    assert corpus.plan(shards[1:2]).todo == []


def test_those_with_a_quarantine_file_are_tried_again_and_no_others(corpus: Corpus) -> None:
    shards = shards_of(6)
    for number in range(4):
        corpus.commit(shards[number], quarantined=number in (1, 3))
    corpus.commit(ShardFile("s3://elsewhere/0.tar", 1), quarantined=True)
    mended = [*shards[:3], replace(shards[3], size_bytes=7, etag="mended"), *shards[4:]]
    plan = corpus.plan(mended, only="quarantined")
    assert plan.todo == [mended[1], mended[3]] and plan.changed == []
    assert plan.redone == [token_shard_name(shard.url) for shard in plan.todo]
    assert (plan.num_done, plan.num_left, plan.num_other) == (2, 2, 1)
    # One that was lost on the way is among them, by its quarantine file.
    storage.remove(data_url(corpus.url, plan.redone[0]))
    again = corpus.plan(mended, only="quarantined")
    assert (again.todo, again.redone, again.num_left) == (plan.todo, plan.redone[1:], 2)
    assert (again.num_done, again.num_other) == (2, 1)
    # Of the others a change is told as ever.
    mended[0] = replace(shards[0], etag="other")
    with pytest.raises(UserError, match="1 of 2 image shards changed since they were tokenized"):
        corpus.plan(mended, only="quarantined")
    assert corpus.plan(mended, "ignore", only="quarantined").todo == plan.todo


def test_unknown_sizes_are_counted(corpus: Corpus) -> None:
    plan = corpus.plan([ShardFile("https://host/0.tar", None), ShardFile("https://host/1.tar", 5)])
    assert (plan.bytes_to_read, plan.num_unknown_sizes) == (5, 1)


@pytest.mark.parametrize(
    ("now", "has_changed"),
    [
        (ShardFile("s3://images/0.tar", 1000, "etag-0"), False),
        (ShardFile("s3://images/0.tar", 1001, "etag-0"), True),
        (ShardFile("s3://images/0.tar", 1000, "etag-new"), True),
        (ShardFile("s3://images/0.tar", 1001, ""), True),
        (ShardFile("s3://images/0.tar", 1000, ""), False),  # this listing has no ETags
        (ShardFile("s3://images/0.tar", None, "etag-0"), False),
        (ShardFile("s3://images/0.tar", None, "etag-new"), True),
        (ShardFile("s3://images/0.tar", None, ""), False),
    ],
)
def test_what_is_a_change(tmp_path: Path, token_spec: TokenSpec, now: ShardFile, has_changed: bool) -> None:
    corpus = Corpus(tmp_path, str(tmp_path / "tokens"), token_spec, [])
    corpus.commit(shards_of(1)[0])
    plan = corpus.plan([now], "ignore")
    assert [change.shard for change in plan.changed] == [now] * has_changed
    assert (plan.todo, plan.num_done) == ([], 1)
    without_etag = ShardFile("s3://images/1.tar", 7, "")
    corpus.commit(without_etag)
    assert corpus.plan([ShardFile("s3://images/1.tar", 7, "etag")]).changed == []


def test_changed_shards_stop_the_run(corpus: Corpus) -> None:
    shards = shards_of(8)
    for shard in shards[:6]:
        corpus.commit(shard)
    changed = [ShardFile(shard.url, 5, "new") for shard in shards[:5]] + shards[5:]
    with pytest.raises(UserError) as raised:
        corpus.plan(changed)
    message = str(raised.value)
    assert message.startswith("5 of 6 image shards changed since they were tokenized: ")
    assert "s3://images/0.tar (was 1000 bytes, ETag etag-0, is 5 bytes, ETag new)" in message
    assert "s3://images/2.tar" in message and "s3://images/3.tar" not in message and "2 more" in message
    for choice in ("on_source_change=retokenize", "ignore", "another output.url"):
        assert choice in message
    ignored = corpus.plan(changed, "ignore")
    assert (len(ignored.changed), ignored.todo, ignored.num_done) == (5, shards[6:], 6)
    anew = corpus.plan(changed, "retokenize")
    assert anew.todo == changed[:5] + shards[6:]
    assert (anew.num_done, anew.num_other) == (1, 0)


def test_changed_shards_are_made_anew(corpus: Corpus) -> None:
    shards = shards_of(5)
    for shard in shards:
        corpus.commit(shard, quarantined=True)
    changed = [ShardFile(shards[0].url, 5, "new"), *shards[1:4], ShardFile(shards[4].url, 1004, "new")]
    plan = corpus.plan(changed, "retokenize")
    with pytest.raises(OSError, match="0.tar: the image shard changed between two attempts"):
        corpus.commit(changed[0])  # without discarding first
    discard_committed(corpus.url, [change.name for change in plan.changed])
    assert len(TokenDataset(corpus.url).shards) == 3
    plan = corpus.plan(changed)
    assert (plan.todo, plan.changed) == ([changed[0], changed[4]], [])
    assert plan.index.num_footers_read == 0  # what is left was not counted again
    assert corpus.commit(changed[0]) and corpus.commit(changed[4], quarantined=True)
    assert not storage.exists(quarantine_url(corpus.url, plan.names[0]))  # the old one is gone
    plan = corpus.plan(changed)
    assert (plan.todo, plan.changed, plan.index.num_footers_read) == ([], [], 2)
    assert plan.index.statistics.to_json() == TokenDataset(corpus.url).statistics.to_json()
    assert [name for name, _ in TokenDataset(corpus.url).quarantined()] == sorted(plan.names[1:])


@pytest.mark.parametrize("num_removed", [0, 1, 2])
def test_a_crash_while_discarding(
    tmp_path: Path, token_spec: TokenSpec, monkeypatch: pytest.MonkeyPatch, num_removed: int
) -> None:
    """Every data file that is left has its quarantine file, and the same steps complete the work."""
    corpus = Corpus(tmp_path, str(tmp_path / "tokens"), token_spec, [])
    shards = shards_of(3)
    for shard in shards:
        corpus.commit(shard, quarantined=True)
    changed = [ShardFile(shard.url, 5, "new") for shard in shards]
    names = [change.name for change in corpus.plan(changed, "retokenize").changed]
    removed: list[str] = []
    remove = storage.remove

    def die(url: str) -> None:
        if len(removed) == num_removed:
            raise KeyboardInterrupt
        removed.append(url)
        remove(url)

    monkeypatch.setattr(corpus_plan, "_NUM_REMOVERS", 1)
    monkeypatch.setattr(storage, "remove", die)
    with pytest.raises(KeyboardInterrupt):
        discard_committed(corpus.url, names)
    monkeypatch.undo()
    left = TokenDataset(corpus.url).shards
    assert len(left) == 3 - num_removed
    assert [name for name, _ in TokenDataset(corpus.url).quarantined()] == left
    plan = corpus.plan(changed, "retokenize")
    assert plan.todo == changed
    assert len(plan.changed) == 3 - num_removed
    discard_committed(corpus.url, [change.name for change in plan.changed])
    assert all(corpus.commit(shard) for shard in plan.todo)
    plan = corpus.plan(changed)
    assert (plan.todo, plan.changed) == ([], [])


def test_discarding_what_is_not_there(tmp_path: Path, token_spec: TokenSpec) -> None:
    corpus = Corpus(tmp_path, str(tmp_path / "tokens"), token_spec, [])
    discard_committed(corpus.url, ["nothing-12345678"])
    discard_committed(corpus.url, [])


def test_two_shards_of_one_token_shard(tmp_path: Path, token_spec: TokenSpec) -> None:
    corpus = Corpus(tmp_path, str(tmp_path / "tokens"), token_spec, [])
    first, second = (ShardFile(url, 1) for url in COLLISION)
    assert token_shard_name(first.url) == token_shard_name(second.url)
    with pytest.raises(UserError, match=f"{first.url} and {second.url} .*shard-0aca7153.*rename one"):
        corpus.plan([first, ShardFile("s3://bucket/0.tar", 1), second])
    with pytest.raises(UserError, match=r"s3://bucket/0\.tar: given twice"):
        corpus.plan([ShardFile("s3://bucket/0.tar", 1), ShardFile("s3a://bucket/0.tar", 1)])
    corpus.commit(first)
    with pytest.raises(UserError, match=f"{first.url} and {second.url} .*shard-0aca7153"):
        corpus.plan([second])  # else it would pass for done
    with pytest.raises(OSError, match=f"was made from {first.url}, and {second.url} has the same"):
        corpus.commit(second)


def test_equal_stems_in_different_folders(tmp_path: Path, token_spec: TokenSpec) -> None:
    corpus = Corpus(tmp_path, str(tmp_path / "tokens"), token_spec, [])
    shards = [ShardFile(f"s3://bucket/{folder}/0.tar", 1) for folder in "abc"]
    corpus.commit(shards[1])
    assert corpus.plan(shards).todo == [shards[0], shards[2]]


def test_planning_can_leave_no_trace(tmp_path: Path, token_spec: TokenSpec) -> None:
    url = str(tmp_path / "tokens")
    assert make_plan(url, token_spec, shards_of(2), save_index=False).todo == shards_of(2)
    assert not os.path.exists(url)
    corpus = Corpus(tmp_path, url, token_spec, [])
    corpus.commit(shards_of(1)[0])
    before = sorted(path.name for path in Path(url).rglob("*"))
    plan = make_plan(url, token_spec, shards_of(2), save_index=False)
    assert (plan.num_done, plan.index.num_footers_read) == (1, 1)
    assert sorted(path.name for path in Path(url).rglob("*")) == before
    index = corpus.plan(shards_of(2)).index
    saved = load_index(url, token_spec)
    assert saved is not None and saved.names == index.names
    Path(data_url(url, index.names[0])).write_bytes(b"not Parquet")
    assert "not a Parquet file" in corpus.plan(shards_of(2)).broken[index.names[0]]


def check_scale(folder: Path, num_shards: int, *, max_cpu_s: float, max_bytes: int) -> None:
    num_missing, num_unindexed = num_shards // 1000, num_shards // 2000
    synthetic_store.prepare(folder, num_shards, num_unindexed=num_unindexed, num_missing=num_missing)
    done = subprocess.run(
        [sys.executable, synthetic_store.__file__, str(folder), str(num_shards)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    print(measured)
    assert measured["num_planned"] == num_shards
    assert measured["num_done"] == num_shards - num_missing
    first, last = num_shards - num_missing, num_shards - 1
    assert measured["todo"] == [f"{synthetic_store.IMAGES}/{index:07d}.tar" for index in (first, last)] + [
        num_missing
    ]
    assert measured["num_footers_read"] == num_unindexed
    assert measured["num_changed"] == 0
    assert measured["cpu_s"] < max_cpu_s
    assert measured["peak_bytes"] < max_bytes


def test_fifty_thousand_shards(tmp_path: Path) -> None:
    # A twentieth of what a million may take, twice the time for a busy machine, 200 MB for the program itself.
    check_scale(tmp_path, 50_000, max_cpu_s=2 * 60 / 20, max_bytes=200_000_000 + 2_000_000_000 // 20)


@pytest.mark.slow
def test_a_million_shards(tmp_path: Path) -> None:
    check_scale(tmp_path, 1_000_000, max_cpu_s=60, max_bytes=2_000_000_000)


def check_folder_scale(folder: Path, num_images: int, *, max_cpu_s: float, max_bytes: int) -> None:
    num_new = num_images // 1000
    done = subprocess.run(
        [sys.executable, synthetic_store.__file__, str(folder), str(num_images), str(num_images - num_new)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    print(measured)
    size = IMAGES_PER_PART
    assert measured["num_new"] == -(-num_new // size)
    assert measured["num_parts"] == -(-(num_images - num_new) // size) + measured["num_new"]
    assert measured["cpu_s"] < max_cpu_s
    assert measured["peak_bytes"] < max_bytes


def test_fifty_thousand_loose_images(tmp_path: Path) -> None:
    check_folder_scale(tmp_path, 50_000, max_cpu_s=2 * 120 / 20, max_bytes=400_000_000)


@pytest.mark.slow
def test_a_million_loose_images(tmp_path: Path) -> None:
    check_folder_scale(tmp_path, 1_000_000, max_cpu_s=120, max_bytes=1_500_000_000)


@pytest.fixture
def on_disk(tmp_path: Path, token_spec: TokenSpec) -> Corpus:
    """Three image shards that are there, an hour old, and tokenized."""
    corpus = Corpus(tmp_path, str(tmp_path / "tokens"), token_spec, [])
    for number in range(3):
        write_image_shard(tmp_path / f"images/{number}.tar", bytes([number]) * 5000)
    for shard in expand_shards(str(tmp_path / "images")):
        corpus.commit(shard)
    return corpus


def write_image_shard(path: Path, content: bytes, *, age_s: float = 3600.0) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    then = time.time() - age_s
    os.utime(path, (then, then))


def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the image shards that are hashed from now on."""
    names: list[str] = []
    hash_file = storage.hash_file

    def note(url: str, *, info: storage.SourceInfo) -> str:
        names.append(Path(url).name)
        return hash_file(url, info=info)

    monkeypatch.setattr(storage, "hash_file", note)
    return names


def test_on_disk_content_tells_and_time_is_a_hint(on_disk: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    names, images = hashed(monkeypatch), on_disk.folder / "images"

    def plan() -> CorpusPlan:
        names.clear()
        return on_disk.plan(expand_shards(str(images)), "ignore")

    assert (plan().changed, sorted(names)) == ([], ["0.tar", "1.tar", "2.tar"])  # no hint yet
    assert (plan().changed, names) == ([], [])
    os.utime(images / "1.tar")
    assert (plan().changed, names) == ([], ["1.tar"])  # so fresh that its time is no hint
    assert (plan().changed, names) == ([], ["1.tar"])
    write_image_shard(images / "1.tar", bytes([1]) * 5000, age_s=60)
    assert (plan().changed, names) == ([], ["1.tar"])
    assert (plan().changed, names) == ([], [])
    storage.remove(storage.join(on_disk.url, "_index.parquet"))
    assert (plan().changed, sorted(names)) == ([], ["0.tar", "1.tar", "2.tar"])
    write_image_shard(images / "2.tar", bytes([7]) * 5000, age_s=30)
    for _ in range(2):
        (change,) = plan().changed
        assert names == ["2.tar"]
        now = hashlib.sha256(bytes([7]) * 5000).hexdigest()
        assert (
            f"2.tar (was 5000 bytes, SHA-256 {change.recorded.sha256[:12]}, is 5000 bytes, SHA-256 {now[:12]})"
            in (str(change))
        )


def test_new_shards_are_planned_whatever_happened_to_old_ones(on_disk: Corpus) -> None:
    images = on_disk.folder / "images"
    write_image_shard(images / "1.tar", b"x" * 5000)
    write_image_shard(images / "9.tar", b"new")
    names = {number: token_shard_name(str(images / f"{number}.tar")) for number in (1, 2, 9)}
    Path(data_url(on_disk.url, names[2])).write_bytes(b"")
    plan = on_disk.plan(expand_shards(str(images)), "report")
    assert [shard.url for shard in plan.todo] == [str(images / "9.tar")]
    assert [change.name for change in plan.changed] == [names[1]]
    assert list(plan.broken) == [names[2]] and "is not a Parquet file" in plan.broken[names[2]]
    assert (plan.num_planned, plan.num_done) == (4, 2)


def test_shards_under_another_path_are_noticed(on_disk: Corpus) -> None:
    old, new = on_disk.folder / "images", on_disk.folder / "elsewhere"
    old.rename(new)
    write_image_shard(new / "2.tar", b"y" * 5000)  # of the same name and size, and of other content
    shards = expand_shards(str(new))
    with pytest.raises(
        UserError, match="2 of 3 image shards to do have the name and content of ones"
    ) as raised:
        on_disk.plan(shards)
    assert f"{new}/0.tar as {old}/0.tar" in str(raised.value)
    assert "input.on_moved=map" in str(raised.value)
    added = on_disk.plan(shards, on_moved="add")
    assert (added.todo, list(added.moved)) == (shards, [shards[0].url, shards[1].url])
    mapped = on_disk.plan(shards, on_moved="map")
    assert mapped.todo == shards[2:]
    assert mapped.names[:2] == [token_shard_name(str(old / f"{number}.tar")) for number in range(2)]


def test_shards_under_another_path_of_a_store(corpus: Corpus) -> None:
    first, second = shards_of(2)
    corpus.commit(first)
    corpus.commit(second)
    moved = [ShardFile("s3://other/0.tar", 1000, "etag-0"), ShardFile("s3://other/1.tar", 1001, "another")]
    assert corpus.plan(moved, on_moved="map").todo == moved[1:]
    # Where the old ones are planned as well, nothing was moved.
    assert corpus.plan([first, second, *moved]).todo == moved
