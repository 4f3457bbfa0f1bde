from __future__ import annotations

import dataclasses
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from torch import nn

from tatok_pipe import storage
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.tokens.commit import commit_shard, committed_shards, plan
from tatok_pipe.tokens.dataset import TokenDataset, records_to_tensors
from tatok_pipe.tokens.dataset_file import create_or_check, describe
from tatok_pipe.tokens.format import (
    ShardSource,
    ShardWriter,
    empty_statistics,
    token_shard_name,
    write_quarantine,
)
from tatok_pipe.tokens.layout import INDEX_FILE, data_url
from tatok_pipe.tokens.spec import FilterSpec, TokenSpec
from tatok_pipe.tokens.summary import write_summary
from tests.token_datasets import TINY, make_rows, write_token_dataset

MakeRecords = Callable[..., list[TokenRecord]]
DESCRIPTION = {"tokenizer": {"depth": 4}, "source": "s3://bucket/{0..2}.tar"}
BAD = Quarantined("bad", "decode", "NotAnImage", "cannot identify image file", 10)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def output(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where a dataset goes: a local directory, or a prefix on S3."""
    return str(tmp_path / "out") if request.param == "local" else request.getfixturevalue("s3_url")


def finish_shard(
    output: str,
    spec: TokenSpec,
    shard: str,
    records: list[TokenRecord],
    directory: Path,
    quarantined: tuple[Quarantined, ...] = (),
    source: ShardSource | None = None,
) -> bool:
    """What a worker does once an image shard is encoded."""
    source = source or ShardSource(shard, 1000, "e")
    with ShardWriter(directory / "data.parquet", spec, source) as writer:
        writer.append(records)
        writer.add_quarantined(quarantined)
    if quarantined:
        write_quarantine(directory / "quarantine.parquet", quarantined)
    local_quarantine = directory / "quarantine.parquet" if quarantined else None
    return commit_shard(
        output,
        token_shard_name(shard),
        directory / "data.parquet",
        local_quarantine,
        spec=spec,
        source=source,
    )


def test_from_first_to_last_file(
    output: str, tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    shards = [f"s3://bucket/{index}.tar" for index in range(3)]
    rows = {
        shard: make_token_records(token_spec, 20 + index, seed=index) for index, shard in enumerate(shards)
    }
    create_or_check(output, token_spec, DESCRIPTION)
    assert committed_shards(output) == set()
    assert plan(shards, committed_shards(output)) == shards

    assert finish_shard(output, token_spec, shards[1], rows[shards[1]], tmp_path, (BAD,))
    assert plan(shards, committed_shards(output)) == [shards[0], shards[2]]
    create_or_check(output, token_spec, {"another": "description"})  # a second run goes on

    assert finish_shard(output, token_spec, shards[0], rows[shards[0]], tmp_path)
    names = [token_shard_name(shard) for shard in shards]
    summary = write_summary(
        output, planned=names, failed={shards[2]: "TruncatedTar: unexpected end"}, run={"seconds": 1.5}
    )
    dataset = TokenDataset(output)
    assert dataset.summary == summary == json.loads(json.dumps(summary))
    assert (summary["num_shards_planned"], summary["num_shards_committed"]) == (3, 2)
    assert summary["missing_shards"] == [names[2]]
    assert summary["failed_shards"] == {shards[2]: "TruncatedTar: unexpected end"}
    assert summary["run"] == {"seconds": 1.5}

    assert finish_shard(output, token_spec, shards[2], rows[shards[2]], tmp_path)
    summary = write_summary(output, planned=names, failed={})
    assert summary["missing_shards"] == [] and summary["failed_shards"] == {}
    everything = empty_statistics(token_spec)
    everything.update([record for records in rows.values() for record in records])
    everything.add_quarantined([BAD])
    everything.bytes_in = 3000
    assert summary["statistics"] == everything.to_json()
    assert summary["figures"] == everything.to_summary()

    assert dataset.num_rows == 41  # as it was when it was opened
    dataset = TokenDataset(output)
    assert (dataset.spec, dataset.description) == (token_spec, DESCRIPTION)
    assert dataset.shards == names
    assert dataset.num_rows == 63
    keys = [record.key for record in dataset.rows()]
    assert keys == [record.key for shard in shards for record in rows[shard]]
    assert [record.key for record in dataset.rows(names[1])] == [record.key for record in rows[shards[1]]]
    assert list(dataset.quarantined()) == [(names[1], BAD)]
    assert dataset.shard_metadata(names[1]).source.url == shards[1]
    np.testing.assert_array_equal(dataset.row("image-000021").patch_codes, rows[shards[2]][21].patch_codes)
    with pytest.raises(UserError, match="no row with key 'nobody' in 3 shards"):
        dataset.row("nobody")


def test_another_tokenizer_or_dtf_is_refused(output: str, token_spec: TokenSpec) -> None:
    create_or_check(output, token_spec, DESCRIPTION)
    before = storage.read_bytes(storage.join(output, "_dataset.json"))
    other = dataclasses.replace(token_spec, tokenizer_fingerprint="sha256:ff")
    with pytest.raises(RefusedError) as raised:
        create_or_check(output, other, DESCRIPTION)
    for part in (output, token_spec.tokenizer_fingerprint, "sha256:ff", "output.url"):
        assert part in str(raised.value)
    other = dataclasses.replace(token_spec, dtf=dataclasses.replace(token_spec.dtf, value=0.5))
    with pytest.raises(RefusedError, match=r"dtf\.value: 0\.25, not 0\.5"):
        create_or_check(output, other, DESCRIPTION)
    assert storage.read_bytes(storage.join(output, "_dataset.json")) == before


def test_of_two_first_runs_one_is_refused(output: str, token_spec: TokenSpec) -> None:
    other = dataclasses.replace(token_spec, tokenizer_fingerprint="sha256:ff")
    barrier = threading.Barrier(2)

    def begin(spec: TokenSpec) -> bool:
        barrier.wait()
        try:
            create_or_check(output, spec, DESCRIPTION)
        except RefusedError:
            return False
        return True

    with ThreadPoolExecutor(2) as pool:
        began = list(pool.map(begin, [token_spec, other]))
    assert sorted(began) == [False, True]
    assert TokenDataset(output).spec == (token_spec, other)[began.index(True)]


def test_a_committed_shard_is_never_touched(
    output: str, tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    create_or_check(output, token_spec, DESCRIPTION)
    records = make_token_records(token_spec, 10)
    assert finish_shard(output, token_spec, "s3://b/0.tar", records, tmp_path, (BAD,)) is True
    assert finish_shard(output, token_spec, "s3://b/0.tar", records[:5], tmp_path) is False
    dataset = TokenDataset(output)
    assert dataset.num_rows == 10
    assert len(list(dataset.quarantined())) == 1


def test_a_shard_committed_with_other_settings_is_refused(
    output: str, tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    """Also where `_dataset.json` was replaced between the two jobs, so that nothing else stands between them."""
    create_or_check(output, token_spec, DESCRIPTION)
    records = make_token_records(token_spec, 3)
    finish_shard(output, token_spec, "s3://b/0.tar", records, tmp_path, (BAD,))
    other = dataclasses.replace(token_spec, tokenizer_fingerprint="sha256:other")
    with pytest.raises(
        RefusedError,
        match='made with other settings .*tokenizer_fingerprint: "sha256:abab.*, not "sha256:other"',
    ):
        finish_shard(output, other, "s3://b/0.tar", records, tmp_path)
    assert len(list(TokenDataset(output).quarantined())) == 1  # nothing was touched


@pytest.mark.parametrize(
    ("source", "changed"),
    [
        (ShardSource("s3://b/0.tar", 1000, "e"), False),
        (ShardSource("s3a://b/0.tar", 1000, ""), False),
        (ShardSource("s3://b/0.tar", 1001, "e"), True),
        (ShardSource("s3://b/0.tar", 1000, "f"), True),
    ],
)
def test_an_image_shard_that_changed_between_attempts_is_told(
    tmp_path: Path, token_spec: TokenSpec, source: ShardSource, changed: bool
) -> None:
    output = str(tmp_path / "out")
    finish_shard(output, token_spec, "s3://b/0.tar", [], tmp_path)
    if not changed:
        assert finish_shard(output, token_spec, "s3://b/0.tar", [], tmp_path, source=source) is False
        return
    with pytest.raises(
        OSError, match=r"s3://b/0\.tar: the image shard changed between two attempts: .*1000 bytes"
    ):
        finish_shard(output, token_spec, "s3://b/0.tar", [], tmp_path, source=source)


def test_the_loser_of_a_race_is_checked_too(
    output: str, tmp_path: Path, token_spec: TokenSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    create_or_check(output, token_spec, DESCRIPTION)
    other = dataclasses.replace(token_spec, dtf=FilterSpec("none", "gain", 0.0, 1))
    finish_shard(output, other, "s3://b/0.tar", [], tmp_path)
    monkeypatch.setattr(storage, "exists", lambda url: False)  # it looked before the other one committed
    with pytest.raises(RefusedError, match=r"dtf\.rule"):
        finish_shard(output, token_spec, "s3://b/0.tar", [], tmp_path)
    assert finish_shard(output, other, "s3://b/0.tar", [], tmp_path) is False


@pytest.mark.parametrize("second", [(), (dataclasses.replace(BAD, key="other"),)])
def test_an_attempt_that_died_before_its_commit_leaves_no_trace(
    output: str,
    tmp_path: Path,
    token_spec: TokenSpec,
    make_token_records: MakeRecords,
    second: tuple[Quarantined, ...],
) -> None:
    create_or_check(output, token_spec, DESCRIPTION)
    name = token_shard_name("s3://b/0.tar")
    write_quarantine(tmp_path / "left.parquet", [BAD])
    storage.publish_file(
        tmp_path / "left.parquet", storage.join(output, "quarantine", f"{name}.parquet"), exclusive=False
    )
    assert committed_shards(output) == set()
    assert list(TokenDataset(output).quarantined()) == []
    assert finish_shard(
        output, token_spec, "s3://b/0.tar", make_token_records(token_spec, 3), tmp_path, second
    )
    assert list(TokenDataset(output).quarantined()) == [(name, row) for row in second]


def test_a_foreign_shard_is_found_out(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    output = str(tmp_path / "out")
    create_or_check(output, token_spec, DESCRIPTION)
    other = dataclasses.replace(token_spec, dtf=FilterSpec("none", "gain", 0.0, 1))
    finish_shard(output, other, "s3://b/0.tar", make_token_records(other, 3), tmp_path)
    with pytest.raises(RefusedError, match=r"0-.*\.parquet.*dtf\.rule"):
        write_summary(output, planned=[], failed={})


def test_rows_of_a_shard_with_other_settings_are_refused(tmp_path: Path) -> None:
    mine, other = str(tmp_path / "mine"), str(tmp_path / "other")
    write_token_dataset(mine, [make_rows(2), make_rows(3, first=2)])
    write_token_dataset(
        other,
        [make_rows(2), make_rows(3, first=2)],
        spec=dataclasses.replace(TINY, dtf=FilterSpec("none", "gain", 0.0, 1)),
    )
    name = TokenDataset(mine).shards[1]
    Path(mine, "data", f"{name}.parquet").write_bytes(Path(other, "data", f"{name}.parquet").read_bytes())
    rows = TokenDataset(mine).rows()
    assert [next(rows).key for _ in range(2)] == ["image-000000", "image-000001"]
    with pytest.raises(RefusedError, match=rf"{name}.parquet: was made with other settings .*dtf.rule"):
        next(rows)


def test_what_is_no_dataset(tmp_path: Path, token_spec: TokenSpec) -> None:
    with pytest.raises(UserError, match="no _dataset.json there"):
        TokenDataset(str(tmp_path))
    for content, message in (("{", "is broken"), ("[]", "no format version"), ('{"format": 2}', "version 2")):
        (tmp_path / "_dataset.json").write_text(content)
        with pytest.raises(UserError, match=message):
            TokenDataset(str(tmp_path))
        with pytest.raises(UserError, match=message):
            create_or_check(str(tmp_path), token_spec, {})


def test_dataset_without_a_finished_run(tmp_path: Path, token_spec: TokenSpec) -> None:
    create_or_check(str(tmp_path), token_spec, {})
    dataset = TokenDataset(str(tmp_path))
    assert dataset.summary is None
    assert dataset.num_rows == 0
    assert list(dataset.rows()) == []
    assert write_summary(str(tmp_path), planned=[], failed={})["figures"]["mean_tokens"] is None


def test_tensors_by_hand(token_spec: TokenSpec, make_token_records: MakeRecords) -> None:
    first, second = make_token_records(token_spec, 2)
    first = dataclasses.replace(
        first,
        global_codes=np.array([7, 8, 9], np.uint16),
        patch_codes=np.array([69_999, 0], np.uint32),
        patch_positions=np.array([1, 15], np.uint16),
    )
    second = dataclasses.replace(
        second, patch_codes=np.zeros(0, np.uint32), patch_positions=np.zeros(0, np.uint16)
    )
    global_codes, patch_codes, keep = records_to_tensors([first, second], num_globals=3, num_patches=16)
    assert (global_codes.dtype, patch_codes.dtype, keep.dtype) == (torch.int64, torch.int64, torch.bool)
    assert global_codes.tolist() == [[7, 8, 9], second.global_codes.tolist()]
    assert patch_codes.tolist() == [[0, 69_999] + [0] * 14, [0] * 16]
    assert keep.tolist() == [[False, True] + [False] * 13 + [True], [False] * 16]
    assert [tuple(each.shape) for each in records_to_tensors([], num_globals=3, num_patches=16)] == [
        (0, 3),
        (0, 16),
        (0, 16),
    ]


class Painter(nn.Module):
    """Paints each kept patch in a grey that is its code, dropped ones black: what went in can be read off."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1 / 70_001))

    def decode(
        self, global_codes: torch.Tensor, patch_codes: torch.Tensor, keep: torch.Tensor
    ) -> torch.Tensor:
        assert global_codes.shape[1] == 3
        grey = torch.where(keep, (patch_codes + 1) * self.scale, 0.0)
        return grey.reshape(-1, 1, 4, 4).repeat_interleave(8, 2).repeat_interleave(8, 3).expand(-1, 3, -1, -1)


def test_decode_hands_the_rows_to_the_model(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    create_or_check(str(tmp_path), token_spec, {})
    records = make_token_records(token_spec, 5)
    images = TokenDataset(str(tmp_path)).decode(records, Painter())
    assert images.shape == (5, 3, 32, 32)
    assert not images.requires_grad
    for image, record in zip(images, records, strict=True):
        positions = image[0, ::8, ::8].flatten().nonzero().flatten()
        assert positions.tolist() == record.patch_positions.tolist()
        codes = image[0, ::8, ::8].flatten()[positions].double() * 70_001 - 1
        assert codes.round().long().tolist() == record.patch_codes.tolist()


def test_bytes_of_a_dataset_do_not_depend_on_the_order_of_shards(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    shards = [f"s3://bucket/{index}.tar" for index in range(3)]
    contents = []
    for number, order in enumerate(itertools.islice(itertools.permutations(shards), 0, 6, 5)):
        output = tmp_path / f"out-{number}"
        create_or_check(str(output), token_spec, DESCRIPTION)
        for shard in order:
            finish_shard(str(output), token_spec, shard, make_token_records(token_spec, 9), tmp_path, (BAD,))
        write_summary(str(output), planned=[token_shard_name(shard) for shard in shards], failed={})
        # The index is a cache that names when each file was written.
        files = sorted(path for path in output.rglob("*") if path.is_file() and path.name != INDEX_FILE)
        contents.append({str(path.relative_to(output)): path.read_bytes() for path in files})
    assert contents[0] == contents[1]
    assert len(contents[0]) == 9


def test_planning_does_not_wait_for_torch() -> None:
    module = "tatok_pipe.commands.tokenize_corpus.estimate"
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'ray' in sys.modules)"
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_hugging_face_reads_the_folder(
    tmp_path: Path, token_spec: TokenSpec, make_token_records: MakeRecords
) -> None:
    """The rows, and nothing of the index or the quarantine, which are Parquet files, too."""
    url = str(tmp_path / "out")
    create_or_check(url, token_spec, DESCRIPTION)
    for number in range(2):
        shard = f"s3://bucket/{number}.tar"
        finish_shard(url, token_spec, shard, make_token_records(token_spec, 5, seed=number), tmp_path, (BAD,))
    write_summary(url, planned=[], failed={})
    found = datasets.load_dataset(url, cache_dir=str(tmp_path / "cache"), split="train")
    assert isinstance(found, datasets.Dataset)
    rows = list(TokenDataset(url).rows())
    assert [(row["key"], row["patch_codes"]) for row in found.to_list()] == [
        (row.key, row.patch_codes.tolist()) for row in rows
    ]


def test_a_readme_of_the_user_is_left(tmp_path: Path, token_spec: TokenSpec) -> None:
    (tmp_path / "README.md").write_text("mine")
    create_or_check(str(tmp_path), token_spec, DESCRIPTION)
    assert (tmp_path / "README.md").read_text() == "mine"


def test_a_run_after_one_that_came_to_nothing_is_described(output: str, token_spec: TokenSpec) -> None:
    create_or_check(output, token_spec, {"source": "s3://wrong/*.tar"})
    describe(output, token_spec, DESCRIPTION)
    assert TokenDataset(output).description == DESCRIPTION
    assert TokenDataset(output).spec == token_spec


def test_what_its_run_has_not_done_is_told(tmp_path: Path) -> None:
    url = str(tmp_path / "tokens")
    write_token_dataset(url, [make_rows(2), make_rows(3, first=2)])
    assert TokenDataset(url).unfinished == "the run that makes it has not come to its end (no _summary.json)"
    names = TokenDataset(url).shards
    write_summary(url, planned=[*names, "later-00000000"], failed={})
    assert TokenDataset(url).unfinished == "1 of 3 shards that its run planned are missing"
    write_summary(url, planned=names, failed={})
    assert TokenDataset(url).unfinished == ""
    Path(data_url(url, names[0])).unlink()
    assert TokenDataset(url).unfinished == ""  # nothing that the run had not done; --verify tells of it
    (tmp_path / "tokens/_summary.json").write_text("{}")
    assert TokenDataset(url).unfinished == ""
