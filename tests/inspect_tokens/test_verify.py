"""Verified and repaired by the command: what it tells, what it removes, and the same bytes once it is made again."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tatok_pipe import storage
from tatok_pipe.errors import EXIT_DONE
from tatok_pipe.inspect_tokens import main
from tatok_pipe.tokens.format import token_shard_name
from tatok_pipe.tokens.spec import FORMAT_VERSION
from tests.inspect_tokens.small import Made, tokenize


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Made:
    """The dataset, for this test alone. Its image shards are the same."""
    shutil.copytree(made.url, tmp_path / "copied")
    return replace(made, url=str(tmp_path / "copied"))


def parquet_files(url: str) -> dict[str, bytes]:
    return {
        f"{folder}/{name}": storage.read_bytes(storage.join(url, folder, name))
        for folder in ("data", "quarantine")
        for name in storage.list_files(storage.join(url, folder))
    }


def break_some(url: str, shards: list[str]) -> None:
    """Eight flipped bytes in the first shard's data file; no quarantine file any more for the third one."""
    data = storage.join(url, "data", f"{token_shard_name(shards[0])}.parquet")
    content = bytearray(storage.read_bytes(data))
    third = len(content) // 3
    content[third : third + 8] = bytes(value ^ 0xFF for value in content[third : third + 8])
    storage.publish_bytes(bytes(content), data, exclusive=False)
    if len(shards) > 2:
        storage.remove(storage.join(url, "quarantine", f"{token_shard_name(shards[2])}.parquet"))


def test_verify_a_whole_dataset(copied: Made, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir(copied.url))
    assert main([f"input.url={copied.url}", "--verify"]) == EXIT_DONE
    assert capsys.readouterr().out == f"{copied.url}: 3 shards verified, nothing is wrong\n"
    assert main([f"input.url={copied.url}", "--repair"]) == EXIT_DONE
    assert capsys.readouterr().out == f"{copied.url}: 3 shards verified, nothing is wrong\n"
    assert sorted(os.listdir(copied.url)) == before  # and no report


def test_verify_repair_tokenize_again(copied: Made, capsys: pytest.CaptureFixture[str]) -> None:
    before = parquet_files(copied.url)
    break_some(copied.url, copied.shards)
    damaged = parquet_files(copied.url)
    names = [token_shard_name(shard) for shard in copied.shards]
    assert main([f"input.url={copied.url}", "--verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert any(line.startswith(f"unreadable: data/{names[0]}.parquet: ") for line in lines)
    assert any(
        line.startswith(f"quarantine: quarantine/{names[2]}.parquet: 2 samples were") for line in lines
    )
    assert all(
        f"tokenize_corpus makes it again from {shard}" in "".join(lines) for shard in copied.shards[:3:2]
    )
    assert lines[2] == f"{copied.url}: 3 shards verified, 2 findings"
    assert parquet_files(copied.url) == damaged

    assert main([f"input.url={copied.url}", "--repair"]) == EXIT_DONE
    lines = capsys.readouterr().out.splitlines()[3:]
    assert (
        f"data/{names[0]}.parquet: removed with its quarantine file, tokenize_corpus makes it again" in lines
    )
    assert "_summary.json: written anew" in lines
    assert lines[-1].startswith("2 token shards to be made again: run the tokenize_corpus command")
    assert list(parquet_files(copied.url)) == [f"data/{names[1]}.parquet"]

    tokenize(copied.url, copied.checkpoint, copied.shards)
    assert parquet_files(copied.url) == before
    assert main([f"input.url={copied.url}", "--verify"]) == EXIT_DONE


def test_repair_leaves_what_no_tokenizer_could_make_again(
    copied: Made, capsys: pytest.CaptureFixture[str]
) -> None:
    break_some(copied.url, copied.shards)
    damaged = parquet_files(copied.url)
    away = Path(copied.checkpoint).with_suffix(".away")
    Path(copied.checkpoint).rename(away)
    try:
        assert main([f"input.url={copied.url}", "--repair"]) == 1
        output = capsys.readouterr().out
        assert "left: it could not be made again, its tokenizer" in output
        assert output.splitlines()[-1] == "2 findings left, with damage"
        assert parquet_files(copied.url) == damaged
        named = [f"input.url={copied.url}", "--repair", f"tokenizer.checkpoint={away}"]
        assert main(named) == EXIT_DONE
    finally:
        away.rename(copied.checkpoint)


def test_what_is_harmless_does_not_fail_a_repair(copied: Made, capsys: pytest.CaptureFixture[str]) -> None:
    young = Path(copied.url, "data", ".x.parquet.0123456789abcdef.tmp")
    young.write_bytes(b"")
    assert main([f"input.url={copied.url}", "--verify"]) == 1
    assert main([f"input.url={copied.url}", "--repair"]) == EXIT_DONE
    assert "it may belong to a running job" in capsys.readouterr().out
    assert young.exists()
    os.utime(young, (0, 0))
    assert main([f"input.url={copied.url}", "--repair"]) == EXIT_DONE
    assert main([f"input.url={copied.url}", "--verify"]) == EXIT_DONE
    Path(copied.url, "data", "notes.txt").write_text("mine")
    assert main([f"input.url={copied.url}", "--repair"]) == 1
    assert Path(copied.url, "data", "notes.txt").exists()


def test_a_broken_description_is_found_and_removed(copied: Made, capsys: pytest.CaptureFixture[str]) -> None:
    """The tokenize_corpus command then writes it anew."""
    description = Path(copied.url, "_dataset.json")
    description.write_text(f'{{"format": {FORMAT_VERSION}}}')
    assert main([f"input.url={copied.url}", "--verify"]) == 1
    assert "_dataset.json" in capsys.readouterr().out and description.exists()
    assert main([f"input.url={copied.url}", "--repair"]) == 0
    assert not description.exists()


def test_progress_is_told_now_and_then(
    copied: Made, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tatok_pipe.commands.inspect_tokens.run._PROGRESS_EVERY_S", 0.0)
    with caplog.at_level("INFO", logger="tatok_pipe.inspect_tokens"):
        main([f"input.url={copied.url}", "--verify"])
    lines = [record.message for record in caplog.records if "verified" in record.message]
    assert len(lines) == 3
    assert re.fullmatch(r"3 of 3 shards verified, [\d.,]+ shards/s, 0 findings", lines[-1])


@pytest.mark.s3
def test_verify_and_repair_on_s3(made: Made, s3_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    shards = [storage.join(s3_url, "images", Path(shard).name) for shard in made.shards[:3]]
    for source, target in zip(made.shards, shards, strict=False):
        storage.publish_file(source, target, exclusive=True)
    url = storage.join(s3_url, "tokens")
    tokenize(url, made.checkpoint, shards)
    before = parquet_files(url)
    assert main([f"input.url={url}", "--verify"]) == EXIT_DONE
    break_some(url, shards)
    assert main([f"input.url={url}", "--verify"]) == 1
    assert main([f"input.url={url}", "--repair"]) == EXIT_DONE
    assert "2 token shards to be made again" in capsys.readouterr().out
    tokenize(url, made.checkpoint, shards)
    assert parquet_files(url) == before
    assert main([f"input.url={url}", "--verify"]) == EXIT_DONE
