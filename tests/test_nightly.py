"""A night's run over what came in: a new image shard, and one that was written again with the same size."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tatok_pipe import storage
from tatok_pipe.runs.job import SUMMARY
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.format import token_shard_name
from tests.pictures import crop_members, small_tokenizer, write_shard

pytestmark = [pytest.mark.ray, pytest.mark.slow]
NIGHTLY = Path(__file__).parents[1] / "configs/tokenize/nightly.yaml"


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.s3)])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Where image shards and tokens are."""
    yield str(tmp_path) if request.param == "local" else request.getfixturevalue("s3_url")


def put_shard(folder: Path, place: str, number: int, *, labels: int) -> int:
    """An image shard of four pictures whose labels begin with one of two digits; its size."""
    members = crop_members(4, first=4 * number)
    members = [
        (name, str(labels + index // 2).encode() if name.endswith(".cls") else data)
        for index, (name, data) in enumerate(members)
    ]
    path = Path(write_shard(folder / f"{number}.tar", members))
    storage.publish_file(path, f"{place}/incoming/{number}.tar", exclusive=False)
    return path.stat().st_size


def night(place: str, tokenizer: str, *options: str) -> tuple[int, dict[str, object], str]:
    """Exit code, summary and stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "tatok_pipe.tokenize_corpus", str(NIGHTLY), f"input.shards={place}/incoming",
         f"tokenizer.checkpoint={tokenizer}", f"output.url={place}/tokens", "actors.max=1", *options],
        env=os.environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "Traceback" not in done.stderr, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if SUMMARY in line]
    summary = json.loads(line.partition(SUMMARY)[2])
    assert summary["exit_code"] == done.returncode
    return done.returncode, summary, done.stderr


def look(place: str) -> tuple[dict[int, str], dict[int, list[int | None]]]:
    """Digests of the token shards, and the labels in them, by the number of the image shard."""
    dataset = TokenDataset(f"{place}/tokens")
    digests, labels = {}, {}
    for number in range(3):
        name = token_shard_name(f"{place}/incoming/{number}.tar")
        if name in dataset.shards:
            digests[number] = hashlib.sha256(storage.read_bytes(dataset.shard_url(name))).hexdigest()
            labels[number] = [row.label for row in dataset.rows() if row.key in KEYS[number]]
    return digests, labels


KEYS = {
    number: {name.partition(".")[0] for name, _ in crop_members(4, first=4 * number)} for number in range(3)
}


def test_the_new_one_is_done_and_the_changed_one_is_told(place: str, tmp_path: Path) -> None:
    tokenizer, folder = small_tokenizer(tmp_path / "tokenizer"), tmp_path / "made"
    folder.mkdir()
    sizes = [put_shard(folder, place, number, labels=10 * (number + 1)) for number in range(2)]
    code, summary, _ = night(place, tokenizer)
    assert (code, summary["shards_done"], summary["status"]) == (0, 2, "done")
    first, labels = look(place)
    assert labels == {0: [10, 11, 12, 13], 1: [20, 21, 22, 23]}

    assert put_shard(folder, place, 1, labels=50) == sizes[1]
    put_shard(folder, place, 2, labels=30)
    for num_before, num_done in ((2, 1), (3, 0)):  # it is told until it is settled
        code, summary, told = night(place, tokenizer)
        assert (code, summary["status"]) == (1, "failed"), told
        assert (summary["shards_done_before"], summary["shards_done"]) == (num_before, num_done)
        assert "1 image shards changed since they were tokenized, and kept their tokens: " in told
        assert (
            f"{storage.redact(place)}/incoming/1.tar" in told and "input.on_source_change=retokenize" in told
        )
        second, labels = look(place)
        assert labels == {0: [10, 11, 12, 13], 1: [20, 21, 22, 23], 2: [30, 31, 32, 33]}
        assert {number: second[number] for number in first} == first

    code, summary, told = night(place, tokenizer, "input.on_source_change=retokenize")
    assert (code, summary["status"], summary["shards_done"]) == (0, "done", 1), told
    third, labels = look(place)
    assert labels[1] == [50, 51, 52, 53]
    assert {**third, 1: ""} == {**second, 1: ""} and third[1] != second[1]
    code, summary, _ = night(place, tokenizer)
    assert (code, summary["shards_done_before"], summary["shards_done"]) == (0, 3, 0)
