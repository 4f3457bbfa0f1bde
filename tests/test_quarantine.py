"""What was quarantined: taken out of the image shards to be looked at, and tried again once it was mended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe import inspect_tokens, tokenize_corpus
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS
from tatok_pipe.tokens.checking.verify import verify_dataset
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.format import token_shard_name
from tests.entries import assert_told
from tests.inspect_tokens.small import tokenize
from tests.pictures import Member, crop_members, hostile_members, small_tokenizer, write_shard

BROKEN: list[Member] = [
    ("dir/a é.jpg", b"\xff\xd8\xff and no more"),
    ("twice.jpg", b"<html>"),
    ("twice.cls", b"1"),
    ("label.png", crop_members(1)[0][1]),
    ("label.cls", b"three"),
    ("none.txt", b"a sample without an image"),
]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


def write_corpus(folder: Path) -> list[str]:
    """A shard without a broken sample, one with hostile ones, one with some of each stage."""
    crops = crop_members(3)
    return [
        write_shard(folder / "good.tar", crops),
        write_shard(folder / "hostile.tar", hostile_members()[0]),
        write_shard(folder / "some.tar", [*crops, *BROKEN, ("twice.jpg", crops[0][1])]),
    ]


def export(url: str, folder: str, *arguments: str) -> int:
    return inspect_tokens.main([f"input.url={url}", f"quarantine.export={folder}", *arguments])


def lines(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "quarantine.jsonl").read_text().splitlines()]


def test_broken_samples_are_written_with_their_reasons(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards, out, url = write_corpus(tmp_path), tmp_path / "export", str(tmp_path / "tokens")
    tokenize(url, checkpoint, shards)
    assert export(url, str(out)) == EXIT_DONE
    found = {(line["shard"], line["key"], line["stage"]): line for line in lines(out)}
    told = list(TokenDataset(url).quarantined())
    assert len(found) == len(told)
    for name, row in told:
        line = found[name, row.key, row.stage]
        assert (line["error"], line["message"], line["num_bytes"]) == (row.error, row.message, row.num_bytes)
    name, data = token_shard_name(shards[2]), dict(BROKEN)
    png = data["label.png"].startswith(b"\x89PNG")
    assert {(key, stage): line["file"] for (shard, key, stage), line in found.items() if shard == name} == {
        ("dir/a é", "decode"): f"{name}/000000-dir_a_.jpg",
        ("twice", "decode"): f"{name}/000001-twice.bin",
        ("label", "metadata"): f"{name}/000002-label.{'png' if png else 'jpg'}",
        ("none", "shard"): None,
        ("twice", "shard"): None,  # which came again
    }
    assert found[name, "twice", "shard"]["no_file"].startswith("the sample has no single image")
    for member, key, stage in (
        ("dir/a é.jpg", "dir/a é", "decode"), ("twice.jpg", "twice", "decode"), ("label.png", "label", "metadata")
    ):  # fmt: skip
        assert (out / found[name, key, stage]["file"]).read_bytes() == data[member]
    hostile = {member.rpartition(".")[0]: content for member, content in hostile_members()[0]}
    for (shard, key, stage), line in found.items():
        if shard == token_shard_name(shards[1]) and stage == "decode":
            assert (out / line["file"]).read_bytes() == hostile[key]
    files = [path for path in out.rglob("*") if path.is_file()]
    assert len(files) == 1 + sum(line["file"] is not None for line in found.values())
    assert f"{len(files) - 1} of {len(told)} quarantined samples of 2 token shards" in capsys.readouterr().out


def test_an_image_shard_that_is_gone_is_told(
    checkpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards, out, url = write_corpus(tmp_path), tmp_path / "export", str(tmp_path / "tokens")
    tokenize(url, checkpoint, shards)
    Path(shards[1]).unlink()
    assert export(url, str(out)) == EXIT_FAILED_SHARDS
    assert "1 image shards could not be read: " in caplog.text and "hostile.tar" in caplog.text
    gone = [line for line in lines(out) if line["source"] == shards[1]]
    assert gone and all(line["file"] is None and line["no_file"] for line in gone)
    assert any(line["file"] for line in lines(out))
    tokenize(f"{tmp_path}/good", checkpoint, shards[:1])
    assert export(f"{tmp_path}/good", f"{tmp_path}/nothing") == EXIT_DONE
    assert not Path(tmp_path, "nothing").exists()
    assert_told(
        inspect_tokens.main, [f"input.url={url}", "quarantine.export=/proc/nothing"],
        r"quarantine.export=/proc/nothing: cannot be written \(",
    )  # fmt: skip
    assert_told(
        inspect_tokens.main, [f"input.url={url}", "quarantine.export=x", "--verify"],
        "^quarantine.export=x: expected null with verify",
    )  # fmt: skip


@pytest.mark.ray
@pytest.mark.slow
def test_what_was_mended_is_tried_again_and_nothing_else(
    checkpoint: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards, out = write_corpus(tmp_path), tmp_path / "tokens"
    given = [f"input.shards={tmp_path}/*.tar", f"output.url={out}", f"tokenizer.checkpoint={checkpoint}"]
    assert tokenize_corpus.main(given) == EXIT_DONE
    names = [token_shard_name(shard) for shard in shards]
    times = {name: (out / f"data/{name}.parquet").stat().st_mtime_ns for name in names}
    before = TokenDataset(str(out))
    assert before.version.number == 1
    bytes_before = (out / f"data/{names[1]}.parquet").read_bytes()
    rows = {row.key for row in before.rows(names[2])}
    # Mended: all that was broken is an image now.
    picture = crop_members(1)[0][1]
    mended = [("a.jpg", picture), ("twice.jpg", picture), ("label.jpg", picture), ("none.jpg", picture)]
    write_shard(Path(shards[2]), [*crop_members(3), *mended])
    with caplog.at_level("INFO"):
        assert tokenize_corpus.main([*given, "input.only=quarantined"]) == EXIT_DONE
    assert "2 token shards are made anew, since samples of them were quarantined" in caplog.text
    assert (out / f"data/{names[0]}.parquet").stat().st_mtime_ns == times[names[0]]
    assert (out / f"data/{names[1]}.parquet").stat().st_mtime_ns > times[names[1]]
    assert (out / f"data/{names[1]}.parquet").read_bytes() == bytes_before  # was not mended
    after = TokenDataset(str(out))
    assert {row.key for row in after.rows(names[2])} == rows | {"a", "twice", "label", "none"}
    assert os.listdir(out / "quarantine") == [f"{names[1]}.parquet"]
    assert after.version.number == 2
    assert verify_dataset(str(out)) == []
    assert_told(
        tokenize_corpus.main,
        [*given, "input.only=quarantined", "input.on_source_change=retokenize"],
        "^input.on_source_change=retokenize: expected error, report or ignore with only=quarantined",
    )
    (out / "_removed.parquet").write_bytes(b"what must not come back cannot be known")
    assert_told(tokenize_corpus.main, given, r"_removed.parquet: is broken \(.*; put back what was there")
