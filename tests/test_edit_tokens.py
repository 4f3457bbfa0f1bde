"""Rows go and stay away: the command on synthetic tokens, killed anywhere, and its mistakes in one line."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe import storage
from tatok_pipe.edit_tokens import main
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS, EXIT_INTERRUPTED
from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.runs.lease import hold_output
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.tokens.checking.check import Damage
from tatok_pipe.tokens.checking.verify import verify_dataset
from tatok_pipe.tokens.commit import commit_shard
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter, token_shard_name, write_quarantine
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.layout import data_url, quarantine_url
from tatok_pipe.tokens.loading.training_set import read_training_set
from tatok_pipe.tokens.removed import Removed, hash_key, read_removed
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.summary import write_summary
from tatok_pipe.tokens.versions import read_versions, record_version
from tests.entries import assert_told
from tests.token_datasets import TINY, make_rows

BAD = [
    Quarantined("bad", "decode", "NotAnImage", "what image bad is", 10),
    Quarantined("image-000003", "shard", "DuplicateKey", "twice", 11),
]


def source_of(number: int) -> ShardSource:
    return ShardSource(f"/images/{number:06d}.tar", 1000 + number)


def name_of(number: int) -> str:
    return token_shard_name(source_of(number).url)


def write_dataset(
    url: str,
    work: Path,
    shards: Iterable[list[TokenRecord]],
    *,
    spec: TokenSpec = TINY,
    quarantined: list[Quarantined] | None = None,
) -> str:
    """A finished dataset of version 1; the samples of its first shard that were `quarantined`."""
    create_or_check(url, spec, {})
    names = []
    for number, rows in enumerate(shards):
        bad = (quarantined or []) if number == 0 else []
        with ShardWriter(work / "data.parquet", spec, source_of(number)) as writer:
            writer.append(rows)
            writer.add_quarantined(bad)
        write_quarantine(work / "quarantine.parquet", bad)
        names.append(name_of(number))
        commit_shard(
            url, names[-1], work / "data.parquet", work / "quarantine.parquet" if bad else None,
            spec=spec, source=source_of(number),
        )  # fmt: skip
    write_summary(url, planned=names, failed={}, run={"seconds": 1.0})
    record_version(url, refresh_index(url, spec), by="tokenize_corpus")
    return url


@pytest.fixture
def small(tmp_path: Path) -> str:
    """Three shards of 20 rows, two samples of the first quarantined."""
    shards = [make_rows(20, first=20 * number) for number in range(3)]
    return write_dataset(str(tmp_path / "tokens"), tmp_path, shards, quarantined=BAD)


def content(folder: str | Path) -> dict[str, bytes]:
    """All files, but the two in which times are."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and path.name not in ("_index.parquet", "_progress.json")
    }


def keys_of(url: str) -> list[str]:
    return [row.key for row in TokenDataset(url).rows()]


def edit(url: str, *arguments: str) -> int:
    return main([f"input.url={url}", *arguments])


@pytest.mark.slow
def test_a_thousand_of_a_hundred_thousand_rows(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = [make_rows(10_000, first=10_000 * number) for number in range(10)]
    url = write_dataset(str(tmp_path / "tokens"), tmp_path, shards)
    before = pq.read_table(tmp_path / "tokens/data")
    gone = {f"image-{number:06d}" for number in range(7, 100_000, 100)}
    (tmp_path / "keys.txt").write_text("\r\n".join(sorted(gone)) + "\n\n")
    with caplog.at_level("INFO"):
        assert edit(url, f"remove.keys=@{tmp_path}/keys.txt") == EXIT_DONE
    assert "1,000 rows with" in caplog.text and "99,000 rows are left; version 2 (" in caplog.text
    assert verify_dataset(url) == []
    kept = before.filter([key not in gone for key in before["key"].to_pylist()])
    assert kept.num_rows == 99_000
    assert pq.read_table(tmp_path / "tokens/data").equals(kept)
    summary = TokenDataset(url).summary
    assert summary is not None
    assert (summary["statistics"]["num_images"], summary["run"]) == (99_000, {"seconds": 1.0})
    removed = read_removed(url)
    assert removed.hashes == {hash_key(key) for key in gone}
    assert all(b"image-" not in data for name, data in content(url).items() if not name.startswith("data/"))
    assert [version.number for version in read_versions(url)] == [1, 2]
    with pytest.raises(Exception, match=r"version 1 \(\w+\) cannot be read any more, 10 of its 10"):
        read_training_set(url, version=1)


# A process that sends itself a signal before its n-th change of a file below a folder, and counts these changes.
_SIGNALLED = """
import os, sys
folder, last, sent, told = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
del sys.argv[1:5]
count = 0
def watch(event, arguments):
    global count
    place = {"os.rename": 1, "os.link": 1, "os.remove": 0}.get(event)
    if place is not None and str(arguments[place]).startswith(folder):
        count += 1
        if count == last:
            os.kill(os.getpid(), sent)
        with open(told, "w") as file:
            file.write(str(count))
sys.addaudithook(watch)
from tatok_pipe.edit_tokens import main
main.leave_with()
"""


def run_until(url: str, change: int, told: Path, *arguments: str, sent: int = signal.SIGKILL) -> int:
    """The exit code of the command in a process of its own that gets the signal before that change of a file; 0: never.
    How many changes it made is `told`."""
    return subprocess.run(
        [sys.executable, "-c", _SIGNALLED, url, str(change), str(int(sent)), str(told), f"input.url={url}", *arguments],
        cwd=Path(__file__).parents[1], env=os.environ, capture_output=True, timeout=300, check=False,
    ).returncode  # fmt: skip


@pytest.mark.slow
def test_killed_at_ten_points_and_run_again_it_comes_to_the_same_bytes(tmp_path: Path) -> None:
    shards = [make_rows(300, first=300 * number) for number in range(6)]
    whole = write_dataset(str(tmp_path / "whole"), tmp_path, shards, quarantined=BAD)
    keys = keys_of(whole)
    pq.write_table(pa.table({"key": keys, "place": range(len(keys))}), tmp_path / "places.parquet")
    assert edit(whole, f"join.table={tmp_path}/places.parquet") == EXIT_DONE
    Path(whole, "report.html").write_text("<img alt='of image-000003'>")
    gone = [f"image-{number:06d}" for number in range(3, 1800, 50)]
    (tmp_path / "keys.txt").write_text("\n".join([*gone, f"{name_of(1)}/image-000310"]))
    request = (f"remove.keys=@{tmp_path}/keys.txt", "remove.where=label=3 and num_tokens < 8")

    def copy(name: str) -> str:
        return str(shutil.copytree(whole, tmp_path / name))

    assert run_until(copy("expected"), 0, tmp_path / "count", *request) == EXIT_DONE
    expected, num_changes = content(tmp_path / "expected"), int((tmp_path / "count").read_text())
    assert num_changes > 20 and "report.html" not in expected
    for number in range(10):
        url = copy(f"killed-{number}")
        change = 2 + number * (num_changes - 2) // 9
        assert run_until(url, change, tmp_path / "count", *request) == -9
        if number in (3, 6):  # and once more, on the way of the second attempt
            assert run_until(url, 1 + num_changes // 4, tmp_path / "count", *request) in (-9, EXIT_DONE)
        assert edit(url, *request) == EXIT_DONE
        assert content(url) == expected, f"killed before change {change} of {num_changes}"
        assert verify_dataset(url) == []
        shutil.rmtree(url)
    # Asked to stop, it ends with what it has in work.
    url = copy("stopped")
    code = run_until(url, num_changes // 3, tmp_path / "count", *request, sent=signal.SIGTERM)
    assert code == EXIT_INTERRUPTED and 0 < int((tmp_path / "count").read_text()) < num_changes
    assert edit(url, *request) == EXIT_DONE
    assert content(url) == expected and verify_dataset(url) == []


def test_what_is_quarantined_under_a_key_goes_too(small: str) -> None:
    assert edit(small, "remove.keys=image-000003") == EXIT_DONE
    dataset = TokenDataset(small)
    assert [row for _, row in dataset.quarantined()] == BAD[:1]
    assert dataset.statistics.quarantine_reasons == {"NotAnImage": 1}
    assert verify_dataset(small) == []
    assert edit(small, "remove.keys=bad") == EXIT_DONE  # and a key that has no row
    assert storage.list_files(f"{small}/quarantine") == {}
    assert len(keys_of(small)) == 59
    assert verify_dataset(small) == []
    assert [version.number for version in read_versions(small)] == [1, 2, 3]


def test_a_key_of_one_token_shard(tmp_path: Path) -> None:
    url = write_dataset(str(tmp_path / "tokens"), tmp_path, [make_rows(3), make_rows(3, seed=1)])
    first, second = keys_of(url)[:3], keys_of(url)[3:]
    assert first == second
    assert edit(url, f"remove.keys={name_of(1)}/{first[0]}") == EXIT_DONE
    assert keys_of(url) == [*first, *second[1:]]
    assert edit(url, f"remove.keys={first[1]}") == EXIT_DONE
    assert keys_of(url) == [first[0], first[2], second[2]]
    assert verify_dataset(url) == []


def test_an_image_goes_with_all_its_crops(tmp_path: Path, token_spec: TokenSpec) -> None:
    spec = TokenSpec(**{**vars(TINY), "encoding": {"crops": {"per_image": 2}}})
    rows = [
        TokenRecord(**{**vars(row), "crop": crop}) for row in make_rows(2100) for crop in range(2)
    ]  # more than a row group
    url = write_dataset(str(tmp_path / "tokens"), tmp_path, [rows], spec=spec)
    assert edit(url, "remove.where=crop=1 and (key='image-000001' or key=\"image-001023\")") == EXIT_DONE
    gone = ("image-000001", "image-001023")
    assert keys_of(url) == [row.key for row in rows if row.key not in gone]
    assert verify_dataset(url) == []


def test_rows_by_what_is_in_their_columns(small: str, caplog: pytest.LogCaptureFixture) -> None:
    labels = {row.key: row.label for row in TokenDataset(small).rows()}
    with caplog.at_level("INFO"):
        assert edit(small, "remove.where=label=3", "remove.keys=image-000050") == EXIT_DONE
    assert keys_of(small) == [key for key, label in labels.items() if label != 3 and key != "image-000050"]
    assert verify_dataset(small) == []
    before = content(small)
    caplog.clear()
    with caplog.at_level("INFO"):  # once more: it was done
        assert edit(small, "remove.where=label=3", "remove.keys=image-000050") == EXIT_DONE
    assert "all that was asked for was removed before; version 2" in caplog.text
    assert content(small) == before
    assert_told(
        main, [f"input.url={small}", "remove.where=label=3"], "nothing to remove; no row is what remove.where"
    )


def test_all_rows_of_a_shard(small: str) -> None:
    assert edit(small, "remove.where=key < 'image-000020'") == EXIT_DONE
    assert TokenDataset(small).shard_metadata(name_of(0)).num_rows == 0
    assert len(keys_of(small)) == 40 and verify_dataset(small) == []


def test_a_dry_run_changes_nothing(small: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path(small, "_index.parquet").unlink()
    before = content(small)
    assert edit(small, "remove.where=num_tokens > 2", "--dry-run") == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{small}: version 1 (") and lines[0].endswith("), 3 token shards, 60 images")
    assert lines[1] == "to be removed: 60 rows and 1 quarantined sample in 3 token shards"
    assert lines[2] == "to be written anew: 3 token shards"
    assert lines[3].startswith("not undone, as nobody can know of them from here: generators trained on")
    assert content(small) == before and not Path(small, "_index.parquet").exists()


def test_the_report_goes_and_it_is_told_how_to_make_it_anew(
    small: str, caplog: pytest.LogCaptureFixture
) -> None:
    Path(small, "report.html").write_text("with pictures")
    with caplog.at_level("INFO"):
        assert edit(small, "remove.keys=image-000001") == EXIT_DONE
    assert not Path(small, "report.html").exists()
    told = f"report.html was removed, as it may show what was; python -m tatok_pipe.inspect_tokens input.url={small}"
    assert told in caplog.text
    assert "not undone, as nobody can know of them from here: generators trained on earlier" in caplog.text
    assert "_input.parquet" not in caplog.text
    Path(small, "_input.parquet").write_bytes(b"")
    with caplog.at_level("INFO"):
        assert edit(small, "remove.keys=image-000002") == EXIT_DONE
    assert "_input.parquet goes on naming the images" in caplog.text


def test_rows_that_came_back_are_found_and_go_again(small: str) -> None:
    old = storage.read_bytes(data_url(small, name_of(1)))
    assert edit(small, "remove.keys=image-000025") == EXIT_DONE
    right = content(small)
    storage.publish_bytes(old, data_url(small, name_of(1)), exclusive=False)
    found = {each.file: each for each in verify_dataset(small)}
    back = found[f"data/{name_of(1)}.parquet"]
    assert (back.kind, back.message) == (Damage.REMOVED, "has 1 rows that were removed")
    assert "edit_tokens on this dataset" in back.advice
    assert edit(small) == EXIT_DONE  # without being told what
    assert content(small) == right
    assert verify_dataset(small) == []


def test_a_kill_between_data_and_quarantine_file_is_made_up_for(
    small: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = Path(quarantine_url(small, name_of(0)))
    old = path.read_bytes()
    assert edit(small, "remove.keys=image-000003") == EXIT_DONE
    right = content(small)
    path.write_bytes(old)  # as it was before the second of the two files was written
    (found,) = verify_dataset(small)
    assert found.kind == Damage.QUARANTINE
    assert edit(small, "remove.keys=image-000003") == EXIT_DONE
    assert content(small) == right and verify_dataset(small) == []
    # One of other samples is no such thing.
    write_quarantine(path, [*BAD, BAD[0]])
    assert edit(small, "remove.keys=image-000004") == EXIT_FAILED_SHARDS
    assert f"first {name_of(0)}: its quarantine file holds" in caplog.text
    assert "image-000004" in keys_of(small)


def test_a_broken_shard_is_left_and_named(small: str, caplog: pytest.LogCaptureFixture) -> None:
    path = Path(data_url(small, name_of(1)))
    table, metadata = pq.read_table(path), dict(pq.read_metadata(path).metadata or {})
    metadata.pop(b"ARROW:schema")
    metadata[b"tatok.content_digest"] = b'"' + b"0" * 64 + b'"'
    pq.write_table(table.replace_schema_metadata(metadata), path, write_page_checksum=True)
    broken = path.read_bytes()
    assert edit(small, "remove.where=label >= 0") == EXIT_FAILED_SHARDS
    assert (
        f"1 token shards are not whole, and were left, first {name_of(1)}: its rows have digest"
        in caplog.text
    )
    assert path.read_bytes() == broken
    assert [row.key for name in (name_of(0), name_of(2)) for row in TokenDataset(small).rows(name)] == []


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], r"nothing to remove; give remove.keys or remove.where"),
        (["remove.keys="], r"remove.keys=: empty"),
        (["remove.keys=nobody"], r"1 of 1 keys of remove.keys are not there, first 'nobody'"),
        (
            ["remove.keys=@{folder}/some.txt"],
            r"2 of 3 keys of remove.keys are not there, first '000001-\w+/image-000001'; give keys as",
        ),
        (["remove.keys=@{folder}/none.txt"], r"remove.keys=@.*/none.txt: not found; expected a text file"),
        (
            ["remove.keys=@{folder}/empty.txt"],
            r"remove.keys=@.*/empty.txt: nothing to remove; expected a key a line",
        ),
        (["remove.keys=@{folder}/binary.txt"], r"remove.keys=@.*/binary.txt: is no text in UTF-8"),
        (["remove.keys=@{folder}"], r"remove.keys=@.*: not found; expected a text file"),
        (["remove.where=lable=3"], r"remove.where=lable=3: no column lable; expected one of key, label"),
        (["remove.where=label=99"], r"nothing to remove; no row is what remove.where asks for"),
        (["remove.keyz=a"], r"remove.keys"),
        (["remove.keys=\udcff"], r"1 of 1 keys of remove.keys are not there, first '\\udcff'"),
        (["remove.where=key='\udcff'"], r"remove.where=key="),
        (["input.url=/nowhere", "remove.keys=a"], r"/nowhere: no _dataset.json there"),
    ],
)
def test_a_mistake_is_one_line(small: str, tmp_path: Path, given: list[str], told: str) -> None:
    (tmp_path / "some.txt").write_text(f"image-000001\nnobody\n{name_of(1)}/image-000001\n")
    (tmp_path / "empty.txt").write_text("\n \n")
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    before = content(small)
    assert_told(main, [f"input.url={small}", *(each.format(folder=tmp_path) for each in given)], told)
    assert content(small) == before and read_removed(small) == Removed()


def test_a_dataset_whose_run_is_not_finished(small: str, tmp_path: Path) -> None:
    given = [f"input.url={small}", "remove.keys=image-000001"]
    summary = json.loads(Path(small, "_summary.json").read_text())
    planned = [*TokenDataset(small).shards, token_shard_name("/images/cut.tar")]
    write_summary(small, planned=planned, failed={})
    assert_told(
        main, given, "1 of 4 shards that its run planned are missing; let the tokenize_corpus command"
    )
    Path(small, "_summary.json").unlink()
    assert_told(main, given, r"the run that makes it has not come to its end \(no _summary.json\)")
    # One that could not do all shards, and said so, is finished.
    write_summary(small, planned=planned, failed={"/images/cut.tar": "is cut off"})
    assert edit(small, "remove.keys=image-000001") == EXIT_DONE
    found = json.loads(Path(small, "_summary.json").read_text())
    assert (found["failed_shards"], found["num_shards_planned"]) == ({"/images/cut.tar": "is cut off"}, 4)
    assert found["statistics"]["num_images"] == summary["statistics"]["num_images"] - 1


def test_two_at_once_are_refused(small: str) -> None:
    with hold_output(small, StopSignal()):
        told = f"^input.url={small}: a run that lives writes there"
        assert_told(main, [f"input.url={small}", "remove.keys=image-000001"], told, code=3)
    Path(small, "_removed.parquet").write_bytes(b"not this")
    assert_told(main, [f"input.url={small}", "remove.keys=image-000001"], "_removed.parquet: is broken")
    assert [(each.kind, each.file) for each in verify_dataset(small)] == [
        (Damage.REMOVED, "_removed.parquet")
    ]


@pytest.mark.s3
def test_on_s3(s3_url: str, tmp_path: Path) -> None:
    shards = [make_rows(20, first=20 * number) for number in range(3)]
    local = write_dataset(str(tmp_path / "tokens"), tmp_path, shards, quarantined=BAD)
    url = write_dataset(f"{s3_url}/tokens", tmp_path, shards, quarantined=BAD)
    storage.publish_bytes(b"image-000003\nimage-000041", f"{s3_url}/keys.txt", exclusive=True)
    for each in (local, url):
        assert edit(each, f"remove.keys=@{s3_url}/keys.txt", "remove.where=label=1") == EXIT_DONE
        assert verify_dataset(each) == []
    assert content(local) == {name: storage.read_bytes(storage.join(url, name)) for name in content(local)}
