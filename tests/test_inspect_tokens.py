"""The report on datasets that the real tokenizer made."""

from __future__ import annotations

import io
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from tatok_pipe import storage
from tatok_pipe.encoding.shard_tokenizer import ShardTokenizer, TokenizeJob, token_spec
from tatok_pipe.errors import EXIT_DONE, EXIT_REFUSED, EXIT_USAGE, RefusedError, UserError
from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.demo import held_out_crops, write_demo_corpus
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.inspect_tokens import main
from tatok_pipe.tokenizer.calibration import calibrate_ladders
from tatok_pipe.tokenizer.checkpoint import load_tokenizer, save_tokenizer
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import (
    DTFConfig,
    GlobalQuantizerConfig,
    GridStackConfig,
    StackConfig,
    TaTokConfig,
)
from tatok_pipe.tokenizer.trainer import to_model_input
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import token_shard_name
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.spec import FORMAT_VERSION
from tatok_pipe.tokens.summary import write_summary
from tatok_pipe.tokens.versions import record_version
from tests.entries import assert_told, error_lines
from tests.token_datasets import TINY, make_rows, write_token_dataset

STACK = StackConfig(width=32, depth=1, heads=2)
GRID = GridStackConfig(width=32, depth=1, heads=2, attend_every=1)
# A shard of which no sample gives an image fails, so there is one.
BAD_SAMPLES = {
    "bad_1.jpg": b"\xff\xd8\xff and no more",
    "bad_2.jpg": b"<html>",
    "bad_2.cls": b"3",
    "good.jpg": held_out_crops(crops_per_source=1)[0].image,
}


@dataclass(frozen=True)
class Made:
    url: str  # of the dataset
    checkpoint: str
    shards: list[str]


def save_random_tokenizer(url: str, *, seed: int) -> str:
    torch.manual_seed(seed)
    codebook = GlobalQuantizerConfig(codebook_size=64)
    model = TaTok(TaTokConfig(32, 8, 2, 0, GRID, GRID, STACK, codebook, codebook))
    decoded = [
        decode_image(sample.image, PreprocessConfig(32))[0] for sample in held_out_crops(crops_per_source=4)
    ]
    ladders = calibrate_ladders(model.eval(), to_model_input(np.stack(decoded), "cpu"))
    return save_tokenizer(url, model, ladders=ladders, training={})


def tokenize(url: str, checkpoint: str, shards: list[str], *, planned: list[str] | None = None) -> None:
    """What tokenize_corpus does, in this process."""
    tokenizer = load_tokenizer(checkpoint)
    kept = tokenizer.filter(DTFConfig(target_tokens=10))
    spec = token_spec(tokenizer, kept, encoding={})
    create_or_check(url, spec, {"tokenizer": {"checkpoint": checkpoint}, "source": "demo"})
    job = TokenizeJob(
        checkpoint, url, spec, kept, PreprocessConfig(32), ShardLimits(), "fp32", 4, True, False
    )  # fmt: skip
    worker = ShardTokenizer(job, device="cpu", num_threads=1)
    failed = {result.url: result.error for result in map(worker, shards) if result.error}
    names = [token_shard_name(shard) for shard in (shards if planned is None else planned)]
    write_summary(url, planned=names, failed=failed)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """35 images and two bad ones in three shards; a fourth shard failed."""
    folder = tmp_path_factory.mktemp("inspect")
    shards = write_demo_corpus(folder / "images", num_shards=2, crops_per_source=2).shards
    for name, members in (("bad", BAD_SAMPLES), ("cut", {"a.jpg": b"x"})):
        path = folder / f"{name}.tar"
        with tarfile.open(path, "w") as tar:
            for member, data in members.items():
                header = tarfile.TarInfo(member)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
        shards.append(str(path))
    Path(shards[3]).write_bytes(Path(shards[3]).read_bytes()[:700])
    checkpoint = str(folder / "tokenizer")
    save_random_tokenizer(checkpoint, seed=0)
    tokenize(str(folder / "tokens"), checkpoint, shards)
    return Made(str(folder / "tokens"), checkpoint, shards)


def inspect(made: Made, tmp_path: Path, *arguments: str) -> str:
    """The page that the entry writes with these arguments."""
    target = tmp_path / "report.html"
    assert main([f"input.url={made.url}", f"output.report={target}", *arguments]) == EXIT_DONE
    return target.read_text(encoding="utf-8")


def table(text: str) -> dict[str, str]:
    pairs = (re.split("  +", line, maxsplit=1) for line in text.splitlines())
    return {label: value for label, value in pairs}


def count_pictures(page: str) -> tuple[int, int, int]:
    """Originals, kept patches, reconstructions."""
    words = ("Original crop of", "Kept patches of", "Reconstruction of")
    return tuple(page.count(f'alt="{word}') for word in words)  # type: ignore[return-value]


def test_table_says_what_is_in_the_dataset(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inspect(made, tmp_path)
    lines = table(capsys.readouterr().out)
    opened = TokenDataset(made.url)
    rows = list(opened.rows())
    assert lines["dataset"] == made.url
    assert lines["shards"] == "4 planned, 3 committed, 1 missing, 1 failed"
    assert lines["failed"].startswith(made.shards[3]) and "cut off" in lines["failed"]
    assert lines["images"] == "35"
    assert lines["quarantined"] == "2: Corrupt 1, NotAnImage 1"
    mean = sum(record.num_tokens for record in rows) / 35
    assert lines["tokens/image"].startswith(f"{mean:.1f} ± ")
    assert lines["fixed rate"] == f"18 tokens/image, {18 / mean:.2f} times as many"
    total = sum(record.entropy_total for record in rows) / 35
    assert lines["entropy"].startswith(f"{total:.1f} nats/image, ")
    assert re.fullmatch(r"threshold on gain, value [\d.e-]+, at least 1 patch", lines["filter"])
    assert re.fullmatch(r"Spearman -?\d\.\d\d with tokens/image \(n = 33\)", lines["JPEG bytes/pixel"])
    assert lines["report"] == str(tmp_path / "report.html")


def test_page_shows_images_with_originals_and_reconstructions(made: Made, tmp_path: Path) -> None:
    page = inspect(made, tmp_path)
    assert count_pictures(page) == (12, 12, 12)
    assert page.count("PSNR\N{NO-BREAK SPACE}") == 12
    assert "n = 35 images: all images." in page
    assert "No reconstructions" not in page and "missing:" not in page.partition("<h2>Shards")[0]
    for bad in ("NotAnImage", "Corrupt", "bad_1", "bad_2"):
        assert bad in page


def test_same_dataset_same_bytes(made: Made, tmp_path: Path) -> None:
    first = inspect(made, tmp_path)
    assert inspect(made, tmp_path) == first
    assert len(first) < 1_000_000


def test_default_report_lies_in_the_dataset(made: Made) -> None:
    assert main([f"input.url={made.url}", "gallery.images=1"]) == EXIT_DONE
    page = (Path(made.url) / "report.html").read_text(encoding="utf-8")
    assert count_pictures(page) == (3, 3, 3)
    assert len(TokenDataset(made.url).shards) == 3  # it does not disturb the dataset


def test_only_the_table(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(os.listdir(made.url))
    assert main([f"input.url={made.url}", "output.report=none"]) == EXIT_DONE
    lines = table(capsys.readouterr().out)
    assert lines["images"] == "35" and "report" not in lines
    assert lines["JPEG bytes/pixel"].startswith("Spearman")
    assert sorted(os.listdir(made.url)) == before


def test_sources_that_are_gone(made: Made, tmp_path: Path) -> None:
    hidden = [(Path(shard), Path(shard).with_suffix(".away")) for shard in made.shards]
    for path, away in hidden:
        path.rename(away)
    try:
        page = inspect(made, tmp_path)
    finally:
        for path, away in hidden:
            away.rename(path)
    assert count_pictures(page) == (0, 12, 12)
    assert (
        "12 of 12 originals missing, their kept patches are shown on the reconstruction: " in page
        and "No such file" in page
    )
    assert "n = 0: no source image was read. 3 image shards could not be read: " in page


def test_no_image_shard_is_opened_when_none_may_be(made: Made, tmp_path: Path) -> None:
    page = inspect(made, tmp_path, "input.image_shards=0")
    assert count_pictures(page) == (0, 12, 12)
    assert "on the reconstruction: input.image_shards=0 allows no more image shards to be read" in page


def test_tokenizer_that_is_not_found(made: Made, tmp_path: Path) -> None:
    away = Path(made.checkpoint).with_suffix(".away")
    Path(made.checkpoint).rename(away)
    try:
        page = inspect(made, tmp_path)
        assert count_pictures(page) == (12, 12, 0)
        notice = re.search(r'<p class="notice">(No reconstructions: .*?)</p>', page)
        assert notice and made.checkpoint in notice[1] and "packaged" in notice[1]
        named = inspect(made, tmp_path, f"tokenizer.checkpoint={away}")
        assert count_pictures(named) == (12, 12, 12)
    finally:
        away.rename(made.checkpoint)


def test_tokenizer_that_is_another(made: Made, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    fingerprint = save_random_tokenizer(other, seed=1)
    with pytest.raises(UserError, match=f"tokenizer.checkpoint={other} is {fingerprint[:12]}"):
        inspect(made, tmp_path, f"tokenizer.checkpoint={other}")


def test_shard_of_another_tokenizer(made: Made, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    save_random_tokenizer(other, seed=1)
    tokenize(str(tmp_path / "mixed"), other, made.shards[:1])
    tokenize(str(tmp_path / "tokens"), made.checkpoint, made.shards[:1])
    name = token_shard_name(made.shards[0])
    shard = f"data/{name}.parquet"
    (tmp_path / "tokens" / shard).write_bytes((tmp_path / "mixed" / shard).read_bytes())
    with pytest.raises(RefusedError, match=f"{name}.parquet: was made with other settings") as caught:
        inspect(replace(made, url=str(tmp_path / "tokens")), tmp_path)
    assert caught.value.exit_code == EXIT_REFUSED


@pytest.mark.parametrize("shards", [[], [3]])
def test_dataset_without_rows(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str], shards: list[int]
) -> None:
    url = str(tmp_path / "tokens")
    tokenize(url, made.checkpoint, [made.shards[place] for place in shards])
    page = inspect(replace(made, url=url), tmp_path)
    assert "The dataset has no images yet." in page
    assert table(capsys.readouterr().out)["images"] == "0"


def test_one_image(made: Made, tmp_path: Path) -> None:
    url = str(tmp_path / "tokens")
    with tarfile.open(made.shards[0]) as full, tarfile.open(tmp_path / "one.tar", "w") as one:
        for member in full.getmembers()[:3]:
            one.addfile(member, full.extractfile(member))
    tokenize(url, made.checkpoint, [str(tmp_path / "one.tar")])
    page = inspect(replace(made, url=url), tmp_path)
    assert count_pictures(page) == (1, 1, 1)


def test_run_that_did_not_finish(made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = str(tmp_path / "tokens")
    tokenize(url, made.checkpoint, made.shards[:1])
    (tmp_path / "tokens" / "_summary.json").unlink()
    page = inspect(replace(made, url=url), tmp_path)
    assert count_pictures(page)[0] > 0
    shards = table(capsys.readouterr().out)["shards"]
    assert shards == "an unknown number planned, 1 committed, 0 missing, 0 failed (no run has finished)"


def test_report_that_cannot_be_written(made: Made, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"output\.report=.*cannot be written"):
        main([f"input.url={made.url}", f"output.report={tmp_path}/file/report.html"])


@pytest.mark.parametrize("key", ["input.image_shards", "gallery.images"])
def test_counts_below_zero(key: str) -> None:
    with pytest.raises(UserError, match=f"{key}=-1: expected at least 0"):
        main([f"{key}=-1"])


def test_what_is_no_dataset_is_told_in_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tatok_pipe.inspect_tokens", f"input.url={tmp_path}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == EXIT_USAGE and not done.stdout
    assert len(error_lines(done.stderr)) == 1
    assert f"error: {tmp_path}: no _dataset.json there" in done.stderr


@pytest.mark.s3
def test_everything_on_s3(made: Made, s3_url: str, tmp_path: Path) -> None:
    shards = [storage.join(s3_url, "images", Path(shard).name) for shard in made.shards[:2]]
    for source, target in zip(made.shards, shards, strict=False):
        storage.publish_file(source, target, exclusive=True)
    checkpoint = storage.join(s3_url, "tokenizer")
    save_random_tokenizer(checkpoint, seed=0)
    tokenize(storage.join(s3_url, "tokens"), checkpoint, shards)
    assert main([f"input.url={s3_url}/tokens"]) == EXIT_DONE
    page = storage.read_bytes(storage.join(s3_url, "tokens", "report.html")).decode()
    assert count_pictures(page) == (12, 12, 12)
    tokenize(str(tmp_path / "tokens"), made.checkpoint, made.shards[:2])
    local = inspect(Made(str(tmp_path / "tokens"), made.checkpoint, made.shards[:2]), tmp_path)
    pictures = re.compile(r'<img[^>]+src="data:[^>]+>')
    assert pictures.findall(page) == pictures.findall(local)


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


def test_the_report_is_of_the_version_that_was_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = str(tmp_path / "tokens")
    given = [f"input.url={url}", "output.report=none"]
    for number in (1, 2):
        write_token_dataset(url, [make_rows(6, first=6 * shard) for shard in range(number)])
        record_version(url, refresh_index(url, TINY), by="test")
    assert main([*given]) == EXIT_DONE
    lines = table(capsys.readouterr().out)
    assert lines["images"] == "12" and lines["version"].startswith("version 2 (")
    assert main([*given, "input.version=1"]) == EXIT_DONE
    lines = table(capsys.readouterr().out)
    assert lines["images"] == "6" and lines["version"].startswith("version 1 (")
    assert_told(main, [*given, "input.version=3"], "has no version 3; it has 1 to 2")
    for flag in ("--verify", "--repair"):
        assert_told(main, [*given, "input.version=1", flag], "^input.version=1: expected null with verify")
