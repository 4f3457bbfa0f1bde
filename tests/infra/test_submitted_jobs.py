"""Jobs as users submit them: a Ray head with its job server, an S3 server, the real `ray job submit`."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tatok_pipe import storage
from tatok_pipe.commands.demo.server import S3Server
from tatok_pipe.runs.job import SUMMARY
from tatok_pipe.tokens.checking.verify import verify_dataset
from tatok_pipe.tokens.dataset import TokenDataset
from tests.infra.ray_head import BIN, RayHead
from tests.pictures import crop_members, hostile_members, small_tokenizer, write_shard

pytestmark = [pytest.mark.ray, pytest.mark.s3]

REPOSITORY = Path(__file__).resolve().parents[2]
NUM_SMALL, NUM_LARGE = 3, 12  # shards of the two corpora
COPIES = 120  # of each crop in a large shard: they take longer than `ray job stop` does


@dataclass(frozen=True)
class Corpus:
    """What lies in the bucket."""

    url: str
    small: str  # image shards, one of them with hostile members
    large: str
    tokenizer: str


@pytest.fixture(scope="module")
def corpus(s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Corpus]:
    folder = tmp_path_factory.mktemp("corpus")
    url = f"s3://{s3_server.bucket}/{uuid.uuid4().hex}"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in s3_server.environment().items():
            patch.setenv(name, value)
        crops = crop_members(4)
        for i in range(NUM_SMALL):
            shard = write_shard(folder / f"small-{i}.tar", crops + (hostile_members()[0] if i == 2 else []))
            storage.publish_file(shard, f"{url}/small/{i}.tar", exclusive=True)
        copies = [(f"{copy}-{name}", data) for copy in range(COPIES) for name, data in crops]
        large = write_shard(folder / "large.tar", copies)
        for i in range(NUM_LARGE):
            storage.publish_file(large, f"{url}/large/{i}.tar", exclusive=True)
        tokenizer = Path(small_tokenizer(folder / "tokenizer"))
        for path in tokenizer.iterdir():
            storage.publish_file(path, f"{url}/tokenizer-base/tokenizer/{path.name}", exclusive=True)
        yield Corpus(
            url, f"{url}/small/*.tar", f"{url}/large/*.tar", tokenizer=f"{url}/tokenizer-base/tokenizer"
        )


def ray_job(head: RayHead, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(BIN / "ray"), "job", *arguments],
        cwd=REPOSITORY, env=head.env, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def submit(
    head: RayHead, corpus: Corpus, shards: str, output: str, *options: str, submission_id: str
) -> subprocess.CompletedProcess[str]:
    return ray_job(
        head, "submit", f"--submission-id={submission_id}", "--working-dir=.", *options, "--",
        "python", "-m", "tatok_pipe.tokenize_corpus", f"input.shards={shards}", f"output.url={output}",
        f"tokenizer.checkpoint={corpus.tokenizer}", "actors.max=1", "actors.cpus=1", "progress.every_s=1",
    )  # fmt: skip


def status(head: RayHead, submission_id: str) -> str:
    told = ray_job(head, "status", submission_id)
    words = re.findall(r"PENDING|RUNNING|SUCCEEDED|FAILED|STOPPED", (told.stdout + told.stderr).upper())
    assert words, told
    return words[-1]


def digests(url: str) -> dict[str, str]:
    dataset = TokenDataset(url)
    return {
        name: hashlib.sha256(storage.read_bytes(dataset.shard_url(name))).hexdigest()
        for name in dataset.shards
    }


def test_a_submitted_job_succeeds_and_its_id_is_taken(
    head: RayHead, corpus: Corpus, s3_server: S3Server
) -> None:
    output = f"{corpus.url}/whole"
    done = submit(head, corpus, corpus.small, output, submission_id="whole")
    assert done.returncode == 0, done.stdout + done.stderr
    assert status(head, "whole") == "SUCCEEDED"
    (line,) = [line for line in done.stdout.splitlines() if SUMMARY in line]
    summary = json.loads(line.partition(SUMMARY)[2])
    assert (summary["status"], summary["exit_code"]) == ("done", 0)
    assert (summary["submission_id"], summary["shards_done"]) == ("whole", NUM_SMALL)
    assert s3_server.secret_key not in done.stdout + done.stderr
    assert not verify_dataset(output)
    assert TokenDataset(output).num_rows == NUM_SMALL * 4 + len(hostile_members()[1])

    again = submit(head, corpus, corpus.small, f"{corpus.url}/again", submission_id="whole")
    assert again.returncode != 0
    assert "submission_id whole already exists" in again.stdout + again.stderr
    assert not storage.exists(f"{corpus.url}/again/_dataset.json")


@pytest.mark.slow
def test_a_stopped_job_is_completed_by_the_same_command(head: RayHead, corpus: Corpus) -> None:
    output = f"{corpus.url}/stopped"
    submitted = submit(head, corpus, corpus.large, output, "--no-wait", submission_id="first")
    assert submitted.returncode == 0, submitted.stdout + submitted.stderr
    deadline = time.monotonic() + 120
    while not storage.exists(f"{output}/_dataset.json") or not TokenDataset(output).shards:
        assert time.monotonic() < deadline, ray_job(head, "logs", "first").stdout
        time.sleep(0.1)
    stopped = ray_job(head, "stop", "first")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert status(head, "first") == "STOPPED"
    before = digests(output)
    assert 1 <= len(before) < NUM_LARGE
    resumed = submit(head, corpus, corpus.large, output, submission_id="second")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    assert f"{len(before)} done before, {NUM_LARGE - len(before)} to do" in resumed.stdout
    assert status(head, "second") == "SUCCEEDED"
    assert digests(output).items() >= before.items()
    assert not verify_dataset(output)
    assert TokenDataset(output).num_rows == NUM_LARGE * 4 * COPIES


@pytest.mark.slow
def test_a_night_with_nothing_new_is_short_and_changes_nothing(head: RayHead, corpus: Corpus) -> None:
    for path in ("0.tar", "1.tar"):
        data = storage.read_bytes(f"{corpus.url}/small/{path}")
        storage.publish_bytes(data, f"{corpus.url}/incoming/{path}", exclusive=True)

    def night(number: int) -> tuple[str, float]:
        start = time.monotonic()
        done = subprocess.run(
            [REPOSITORY / "jobs/nightly_tokenize.sh"],
            env={**head.env, "TATOK_IMAGES": corpus.url, "TATOK_BUCKET": corpus.url, "TATOK_RUN": str(number)},
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout, time.monotonic() - start

    def objects() -> dict[str, tuple[str, object]]:
        filesystem, path = storage.open_filesystem(f"{corpus.url}/tokens/incoming")
        filesystem.invalidate_cache()
        found = filesystem.find(path, detail=True)
        return {name: (info["ETag"], info["LastModified"]) for name, info in found.items()}

    told, _ = night(1)
    assert "2 image shards, 0 done before, 2 to do" in told
    before = objects()
    assert len([name for name in before if "/data/" in name]) == 2
    told, seconds = night(2)
    assert "2 image shards, 2 done before, 0 to do" in told
    assert seconds < 30
    assert objects() == before
