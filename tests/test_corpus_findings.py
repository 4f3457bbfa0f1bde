"""What a run tells of its shards: everything once, and nothing a thousand times."""

from __future__ import annotations

from tatok_pipe.commands.corpus_findings import Findings
from tatok_pipe.images.notices import Notice
from tatok_pipe.images.shard_errors import UnusableShard
from tatok_pipe.runs.shard_work import ShardResult


def no_image(shard: str, key: str) -> str:
    words = key.replace(" ", ".")
    reason = (
        f"none of 4 samples gives a row (4 NoImage, first {key!r}: files .{words}.png, none of them an image)"
    )
    return str(UnusableShard(shard, 4, reason, "mend the shard"))


def test_shards_that_fail_alike_are_told_once() -> None:
    findings = Findings()
    told = []
    words = ["a cat", "it's a dog", "2021-01-01 at 10", "owl"]
    for number in range(1000):
        url = f"s3://bucket/{number:06d}.tar"
        told += findings.add(ShardResult(url, error=no_image(url, words[number % 4])))[0]
    told += findings.add(ShardResult("s3://bucket/x.tar", error="s3://bucket/x.tar: cut off at byte 5"))[0]
    assert [line.partition("gives")[0] for line in told] == [
        "failed: s3://bucket/000000.tar: none of 4 samples ",
        "failed: s3://bucket/x.tar: cut off at byte 5",
    ]
    assert [line.partition(" gives")[0] for line in findings.failure_lines()] == [
        "failed s3://bucket/000000.tar: none of 4 samples",
        "999 more shards failed like it: s3://bucket/000001.tar, s3://bucket/000002.tar, ...; _summary.json names "
        "them all",
        "failed s3://bucket/x.tar: cut off at byte 5",
    ]
    assert len(findings.failed) == 1001


def test_causes_without_end_are_told_to_an_end() -> None:
    findings = Findings()
    letters = "abcdefghij"
    told = [
        line
        for number in range(1000)
        for line in findings.add_failure(
            f"{number}.tar", "".join(letters[int(digit)] for digit in f"{number:03d}")
        )
    ]
    lines = findings.failure_lines()
    assert len(told) == 20 and len(lines) == 21
    assert lines[-1] == "980 more shards failed; _summary.json names them all"


def test_other_causes_are_told_apart() -> None:
    findings = Findings()
    for number, error in enumerate(
        [
            "cut off at byte 9",
            "cut off at byte 700",
            "column label: string holds 'cat', expected",
            "not a tar archive",
        ]
    ):
        findings.add(ShardResult(f"{number}.tar", error=f"{number}.tar: {error}"))
    findings.add(ShardResult("4.tar", error="4.tar: column label: string holds 'it\\'s', expected"))
    causes = {shard: line for line in findings.failure_lines() for shard in [line.split()[1]]}
    assert len(causes) == 5
    told = [
        findings.add_failure(f"{i}.tar", f"{i}.tar: column label: string holds 'dog', expected")
        for i in (7, 8)
    ]
    assert told == [[], []]


def test_notices_are_counted() -> None:
    findings = Findings()
    told = []
    for number in range(1000):
        notices = (
            Notice("JSON holds NaN", f"key{number}", 3),
            *([Notice("empty", "", 1)] if number == 5 else []),
        )
        told += findings.add(ShardResult(f"/d/{number}.tar", notices=notices))[1]
    assert told == [
        "3 samples: JSON holds NaN; first: /d/0.tar: key0",
        "empty; first: /d/5.tar",
    ]
    assert findings.notice_lines() == ["1,000 shards: 3,000 samples: JSON holds NaN; first: /d/0.tar: key0"]
    assert findings.figures == {"notices": {"JSON holds NaN": 1000, "empty": 1}}
    assert Findings().figures == {}


def test_refusals_have_an_example_and_no_secret() -> None:
    findings = Findings()
    url = "https://store/a.tar?X-Amz-Signature=secret"
    for example in ("k: files .npy", "l: files .npy"):
        findings.add(ShardResult(url, refusals=(Notice("NoImage", example, 2),)))
    (line,) = findings.refusal_lines()
    assert line.startswith("quarantined 4: NoImage; first in https://store/a.tar") and line.endswith(
        ": k: files .npy"
    )
    assert "secret" not in line and findings.explain("Corrupt") == ""
    (told,) = findings.add(ShardResult(url, error="gone"))[0]
    assert "secret" not in told and "secret" not in str(findings.failed)
