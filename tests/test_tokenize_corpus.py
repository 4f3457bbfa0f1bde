"""The job as users start it: real processes, real Ray actors, a real S3 server; killed, interrupted, repeated."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tatok_pipe import storage, tokenize_corpus
from tatok_pipe.commands.demo import server as demo_server
from tatok_pipe.commands.tokenize_corpus import setup as tokenize_setup
from tatok_pipe.commands.tokenize_corpus.options import TokenizeCorpusConfig
from tatok_pipe.config.load import load_config
from tatok_pipe.runs.progress_file import read_progress
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import token_shard_name
from tests.entries import error_lines

from .entries import assert_told
from .pictures import crop_members, hostile_members, small_tokenizer, write_shard

pytestmark = pytest.mark.ray

NUM_SHARDS = 6
COPIES = 40  # of each crop, so that a shard takes long enough to be killed in


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "tatok_pipe.tokenize_corpus", *arguments]


def run(*arguments: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments),
        capture_output=True,
        text=True,
        env={**os.environ, **(env or {})},
        timeout=240,
        check=False,
    )


def digests(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.glob("data/*.parquet"))
    }


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return small_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("shards")
    urls = []
    for i in range(NUM_SHARDS):
        crops = crop_members(4, first=4 * i)
        members = [(f"{copy}-{name}", data) for copy in range(COPIES) for name, data in crops]
        urls.append(write_shard(folder / f"{i:06d}.tar", members + (hostile_members()[0] if i == 2 else [])))
    return urls


@pytest.fixture(scope="module")
def undisturbed(
    checkpoint: str, shards: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, str]:
    """Digests of the token shards of one run with one actor that nothing happened to."""
    output = tmp_path_factory.mktemp("undisturbed")
    folder = Path(shards[0]).parent
    done = run(
        f"input.shards={folder}", f"output.url={output}", f"tokenizer.checkpoint={checkpoint}", "actors.max=1"
    )
    assert done.returncode == 0, done.stderr
    assert f"{NUM_SHARDS} of {NUM_SHARDS} shards" in done.stderr
    assert "Traceback" not in done.stderr
    dataset = TokenDataset(str(output))
    quarantined = len(hostile_members()[2])
    assert dataset.num_rows == NUM_SHARDS * 4 * COPIES + len(hostile_members()[1])
    assert dataset.summary is not None
    assert dataset.summary["statistics"]["num_quarantined"] == quarantined == len(list(dataset.quarantined()))
    return digests(output)


@pytest.mark.slow
def test_two_actors_and_another_order_give_the_same_bytes(
    checkpoint: str, shards: list[str], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    listing = tmp_path / "list.txt"
    listing.write_text("\n".join([shards[4], shards[1], shards[5], shards[0], shards[3], shards[2]]))
    done = run(
        f"input.shards=@{listing}", f"output.url={tmp_path}/out", f"tokenizer.checkpoint={checkpoint}",
        "actors.min=2", "actors.max=2", "actors.cpus=1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "out") == undisturbed
    # Once more: nothing is left to do, and nothing changes.
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    start = time.monotonic()
    again = run(
        f"input.shards=@{listing}", f"output.url={tmp_path}/out", f"tokenizer.checkpoint={checkpoint}"
    )
    assert again.returncode == 0 and "0 to do" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    assert time.monotonic() - start < 30
    # And other settings are refused, with what is there and what was asked for.
    other = run(
        f"input.shards=@{listing}", f"output.url={tmp_path}/out", f"tokenizer.checkpoint={checkpoint}",
        "dtf.rule=budget", "dtf.value=2",
    )  # fmt: skip
    assert other.returncode == 3
    assert "threshold" in other.stderr and "budget" in other.stderr and "Traceback" not in other.stderr


@pytest.mark.slow
def test_an_interrupted_run_is_completed_by_the_same_command(
    checkpoint: str, shards: list[str], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    copies = tmp_path / "shards"
    copies.mkdir()
    arguments = (
        f"output.url={tmp_path}/out",
        f"tokenizer.checkpoint={checkpoint}",
        "actors.max=1",
        "actors.cpus=1",
    )
    # The shard's URL is part of the bytes, so the run reads the originals; what it has read is spoilt afterwards.
    originals = {url: Path(url).read_bytes() for url in shards}
    an_hour_ago = time.time() - 3600
    for url in shards:  # a time that settles that a file is as it was
        os.utime(url, (an_hour_ago, an_hour_ago))
    process = subprocess.Popen(
        command(f"input.shards={Path(shards[0]).parent}", *arguments),
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 180
        while len(digests(tmp_path / "out")) < 2:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it: everybody gets it
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == 4, stderr
        assert "the same command does the rest" in stderr and "Traceback" not in stderr
        told = read_progress(str(tmp_path / "out"))
        assert told is not None and (told.status, told.exit_code) == ("interrupted", 4)
        done_before = digests(tmp_path / "out")
        assert told.shards_done == len(done_before)
        assert 2 <= len(done_before) < NUM_SHARDS
        for url in shards:
            if f"{token_shard_name(url)}.parquet" in done_before:
                Path(url).write_bytes(bytes(len(originals[url])))  # not to be read again
                os.utime(url, (an_hour_ago, an_hour_ago))
        done = run(f"input.shards={Path(shards[0]).parent}", *arguments)
        assert done.returncode == 0, done.stderr
        assert f"{len(done_before)} done before" in done.stderr
        assert digests(tmp_path / "out") == undisturbed
    finally:
        process.kill()
        for url, data in originals.items():
            Path(url).write_bytes(data)


@pytest.mark.s3
def test_s3_to_s3_with_a_shard_that_cannot_be_read(
    checkpoint: str, shards: list[str], s3_server: demo_server.S3Server, s3_url: str, tmp_path: Path
) -> None:
    for i in range(3):
        storage.publish_file(shards[i], f"{s3_url}/in/{i}.tar", exclusive=True)
    storage.publish_bytes(Path(shards[3]).read_bytes()[:20_000], f"{s3_url}/in/3.tar", exclusive=True)
    arguments = (
        f"input.shards={s3_url}/in/*.tar", f"output.url={s3_url}/out", f"tokenizer.checkpoint={checkpoint}",
        "actors.min=2", "actors.max=2",
    )  # fmt: skip
    done = run(*arguments, env=s3_server.environment())
    assert done.returncode == 1
    assert "3 of 4 shards" in done.stderr
    assert f"failed {s3_url}/in/3.tar" in done.stderr
    assert s3_server.secret_key not in done.stderr
    dataset = TokenDataset(f"{s3_url}/out")
    assert dataset.num_rows == 3 * 4 * COPIES + len(hostile_members()[1])
    assert dataset.summary is not None
    assert list(dataset.summary["failed_shards"]) == [f"{s3_url}/in/3.tar"]
    told = read_progress(f"{s3_url}/out")
    assert told is not None and (told.status, told.exit_code) == ("failed", 1)
    assert (told.shards_planned, told.shards_done, told.shards_failed) == (4, 3, 1)
    assert (told.images, told.quarantined) == (dataset.num_rows, len(hostile_members()[2]))
    assert told.tokens_per_image == round(dataset.statistics.mean_tokens, 2)
    assert dataset.shard_metadata(dataset.shards[0]).source.etag
    # Mended, the same command does just this shard.
    storage.publish_file(shards[3], f"{s3_url}/in/3.tar", exclusive=False)
    done = run(*arguments, env=s3_server.environment())
    assert done.returncode == 0, done.stderr
    assert "3 done before, 1 to do" in done.stderr
    assert json.loads(storage.read_bytes(f"{s3_url}/out/_summary.json"))["failed_shards"] == {}
    told = read_progress(f"{s3_url}/out")
    assert told is not None and told.status == "done"
    assert (told.shards_planned, told.shards_done, told.shards_failed) == (4, 4, 0)


@pytest.mark.slow
def test_shards_without_an_image_are_told_once(checkpoint: str, tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    members = crop_members(3)
    for number in range(9):
        names = [(f"shot {number} at 10.11.{i}.png", members[0][1]) for i in range(2)]
        write_shard(folder / f"bad-{number}.tar", names)
    write_shard(folder / "good.tar", [*members, ("a.json", b'{"x": NaN}'), ("a.png", members[0][1])])
    arguments = (f"input.shards={folder}", f"output.url={tmp_path}/out", f"tokenizer.checkpoint={checkpoint}")
    done = run(*arguments, "--dry-run")
    assert done.returncode == 0 and not (tmp_path / "out").exists()
    assert (
        "looked into 8 shards: 7 would fail, of 4 samples in the others 4 would be rows, 0 quarantined"
        in done.stdout
    )
    assert done.stdout.count("a key ends at the first dot") == 1 and "stored as null" in done.stdout
    for _ in range(2):  # once more, since they are not done
        done = run(*arguments)
        assert done.returncode == 1
        lines = [line for line in done.stderr.splitlines() if "a key ends at the first dot" in line]
        assert len(lines) == 2 and all(" ERROR " in line for line in lines)  # when it comes, and at the end
        assert "8 more shards failed like it" in done.stderr and "Traceback" not in done.stderr
    summary = TokenDataset(str(tmp_path / "out")).summary
    assert summary is not None and len(summary["failed_shards"]) == 9
    assert summary["statistics"]["num_images"] == 4


@pytest.mark.slow
def test_a_dry_run_tells_the_plan_and_writes_nothing(
    checkpoint: str, shards: list[str], tmp_path: Path
) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for url in shards[:3]:
        shutil.copy(url, folder)
    arguments = (f"input.shards={folder}", f"output.url={tmp_path}/out", f"tokenizer.checkpoint={checkpoint}")
    done = run(*arguments, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "3 image shards: 0 done and skipped, 3 to do" in done.stdout
    # From a sample of 96 of the 489 images, so roughly.
    images = int(re.search(r"about ([\d,]+) images", done.stdout)[1].replace(",", ""))  # type: ignore[index]
    assert 300 < images < 800
    assert "tokenized here" in done.stdout and "1 actor at" in done.stdout
    assert not (tmp_path / "out").exists()

    assert run(*arguments).returncode == 0
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    shutil.copy(shards[3], folder)
    done = run(*arguments, "--dry-run")
    assert "4 image shards: 3 done and skipped, 1 to do" in done.stdout
    assert "3 shards tokenized before" in done.stdout and "as in the last run" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before
    refused = run(*arguments, "--dry-run", "dtf.rule=none")
    assert refused.returncode == 3 and "Traceback" not in refused.stderr

    # A source that changed: said, left alone, and made anew, as was asked.
    names = {shard: f"{token_shard_name(str(folder / Path(shard).name))}.parquet" for shard in shards[:4]}
    old = digests(tmp_path / "out")
    shutil.copy(shards[4], folder / Path(shards[1]).name)
    done = run(*arguments)
    assert done.returncode == 2 and len(error_lines(done.stderr)) == 1
    assert "1 of 3 image shards changed" in done.stderr and "input.on_source_change=retokenize" in done.stderr
    assert digests(tmp_path / "out") == old
    done = run(*arguments, "input.on_source_change=retokenize")
    assert done.returncode == 0, done.stderr
    assert "made anew" in done.stderr and "4 image shards, 2 done before, 2 to do" in done.stderr
    new = digests(tmp_path / "out")
    assert [name for name in old if new[name] != old[name]] == [names[shards[1]]] and len(new) == 4
    summary = TokenDataset(str(tmp_path / "out")).summary
    assert summary is not None
    assert summary["statistics"]["num_images"] == len(list(TokenDataset(str(tmp_path / "out")).rows()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["output.uri=x"], "output.url"),
        (["input.shards=/nowhere/*.tar"], "input.shards: /nowhere"),
        (
            ["input.shards="],
            "input.shards=: empty; expected a URL or path, or leave it out for its default, demo",
        ),
        (["output.url="], "output.url=: empty"),
        (["tokenizer.checkpoint=/nowhere"], "tokenizer.checkpoint=/nowhere"),
        (["dtf.rule=sometimes"], "threshold"),
        (["dtf.target_tokens=100000"], "dtf.target_tokens=100000"),
        (["actors.min=3", "actors.max=2"], "actors.max=2"),
        (["nowhere.yaml"], "nowhere.yaml"),
        (["input.crops.kind=five"], "input.crops.kind=five: expected one of center, ten_crop, random"),
        (["input.crops.flip=random"], "input.crops.flip='random': expected no or both with kind=center"),
        (["input.crops.count=3"], "input.crops.count=3: is for kind=random"),
        (["input.crops.kind=ten_crop", "input.crops.scale=1.01"], "input.crops.scale=1.01: of 129 pixels"),
    ],
)
def test_a_mistake_is_told(arguments: list[str], message: str, shards: list[str], tmp_path: Path) -> None:
    given = [f"input.shards={shards[0]}", f"output.url={tmp_path}/out", *arguments]
    assert_told(tokenize_corpus.main, given, message)
    assert not (tmp_path / "out").exists()


def test_tokens_are_not_written_among_images_of_their_format(tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    pq.write_table(pa.table({"image": [b"not decoded here"]}), images / "0.parquet")
    for inside in (images, images / "tokens", f"{images}/a/../b"):
        given = [f"input.shards={images}", f"output.url={inside}"]
        assert_told(
            tokenize_corpus.main, given, rf"^output\.url={inside}: inside input\.shards={images}, where"
        )
    assert [path.name for path in images.iterdir()] == ["0.parquet"]


def test_other_crops_are_refused(checkpoint: str, shards: list[str], tmp_path: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    given = [
        f"input.shards={shards[0]}", f"tokenizer.checkpoint={checkpoint}",
        "encode.precision=fp32", "encode.batch_size=4",
    ]  # fmt: skip
    made: dict[str, list[str]] = {
        "center": [],
        "ten": ["input.crops.kind=ten_crop"],
        "random": ["input.crops.kind=random", "input.crops.count=3"],
    }
    for name, crops in made.items():
        given_here = [*given, f"output.url={tmp_path}/{name}", *crops]
        config = load_config(TokenizeCorpusConfig, given_here, prog="", description="")
        spec = tokenize_setup.make_spec(config, tokenizer)
        assert spec.crops_per_image == {"center": 1, "ten": 10, "random": 3}[name]
        assert ("crops" in spec.encoding) == (name != "center")
        create_or_check(f"{tmp_path}/{name}", spec, {})
        assert tokenize_setup.make_job(config, spec).crops == config.input.crops
    for name, crops, message in (
        ("center", made["ten"], r"encoding.crops.kind: unset, not \"ten_crop\""),
        ("ten", made["center"], r"encoding.crops.kind: \"ten_crop\", not unset"),
        ("ten", [*made["ten"], "input.crops.scale=1.2"], r"encoding.crops.scale: 1.1, not 1.2\)"),
        ("random", [*made["random"], "input.crops.seed=5"], r"encoding.crops.seed: 0, not 5\)"),
    ):
        arguments = [*given, f"output.url={tmp_path}/{name}", *crops]
        assert_told(tokenize_corpus.main, arguments, message, code=3)


def test_scores_are_recorded_where_they_are_asked_for(checkpoint: str, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(checkpoint)
    given = [
        f"output.url={tmp_path}/out", f"tokenizer.checkpoint={checkpoint}", "encode.precision=fp32",
        "encode.batch_size=4",
    ]  # fmt: skip
    config = load_config(TokenizeCorpusConfig, given, prog="", description="")
    plain = tokenize_setup.make_spec(config, tokenizer)
    assert not plain.has_scores and "scores" not in plain.encoding  # as datasets that were begun before
    config = load_config(TokenizeCorpusConfig, [*given, "record.scores=true"], prog="", description="")
    spec = tokenize_setup.make_spec(config, tokenizer)
    assert spec.has_scores and spec.differences(plain) == ["encoding.scores: true, not unset"]
    assert tokenize_setup.make_job(config, spec).spec.has_scores


def test_a_mistake_is_one_line(shards: list[str], tmp_path: Path) -> None:
    done = run(f"input.shards={shards[0]}", f"output.url={tmp_path}/out", "output.uri=x")
    assert done.returncode == 2
    assert "output.url" in done.stderr and "Traceback" not in done.stderr
    assert len(error_lines(done.stderr)) == 1
