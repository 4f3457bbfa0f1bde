"""The report on datasets that the real tokenizer made."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from tatok_pipe import storage
from tatok_pipe.errors import EXIT_DONE, EXIT_REFUSED, EXIT_USAGE, RefusedError, UserError
from tatok_pipe.inspect_tokens import main
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.format import token_shard_name
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.versions import record_version
from tests.entries import assert_told, error_lines
from tests.inspect_tokens.small import Made, save_random_tokenizer, tokenize
from tests.token_datasets import TINY, make_rows, write_token_dataset


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
