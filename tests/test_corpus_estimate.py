from __future__ import annotations

from dataclasses import replace

import pyarrow as pa
import pytest

from tatok_pipe.commands.tokenize_corpus.estimate import Estimate, Sample, estimate, format_plan
from tatok_pipe.commands.tokenize_corpus.options import OnSourceChange
from tatok_pipe.commands.tokenize_corpus.plan import CorpusPlan, SourceChange
from tatok_pipe.storage import ShardFile
from tatok_pipe.tokens.format import ShardSource, empty_statistics
from tatok_pipe.tokens.index_file import INDEX_SCHEMA, Index
from tatok_pipe.tokens.spec import TokenSpec

SAMPLE = Sample(num_images=64, num_bytes=6_400_000, num_tokens=3200, output_bytes=12_800, seconds=2.0)


def make_plan(
    spec: TokenSpec,
    *,
    num_done: int,
    todo: list[int | None],
    num_changed: int = 0,
    on_source_change: OnSourceChange = "error",
) -> CorpusPlan:
    """Done shards have 1 MB, 10 images, 400 tokens and 2 kB of output each."""
    rows = [
        {
            "name": f"done-{index}", "size_bytes": 2000, "version": "", "source_url": f"s3://b/done-{index}.tar",
            "source_size_bytes": 1_000_000, "source_etag": "", "num_rows": 10, "num_tokens": 400,
            "num_quarantined": 1,
        }
        for index in range(num_done)
    ]  # fmt: skip
    shards = [ShardFile(f"s3://b/todo-{index}.tar", size) for index, size in enumerate(todo)]
    changed = [
        SourceChange(
            f"done-{index}",
            ShardFile(f"s3://b/done-{index}.tar", 7),
            ShardSource(f"s3://b/done-{index}.tar", 1_000_000, "old"),
        )
        for index in range(num_changed)
    ]
    if on_source_change == "retokenize":
        shards = [change.shard for change in changed] + shards
    names = [f"{index}" for index in range(len(shards) + num_done)]
    names = names[: len(names) - (num_changed if on_source_change == "retokenize" else 0)]
    index = Index(pa.Table.from_pylist(rows, INDEX_SCHEMA), empty_statistics(spec))
    return CorpusPlan(names, shards, changed, index, on_source_change)


def test_from_shards_done_before(token_spec: TokenSpec) -> None:
    plan = make_plan(token_spec, num_done=4, todo=[2_000_000, 3_000_000])
    found = estimate(plan, num_actors=5, run={"images_per_s_per_actor": 2.0, "seconds": 9})
    # 5 MB at 10 images, 400 tokens and 2 kB a MB; 50 images over 5 actors at 2 a second.
    assert found.seconds == pytest.approx(5.0)
    assert replace(found, seconds=5.0) == Estimate(
        50, 2000, 10_000, 5.0, "4 shards tokenized before", "5 actors at 2 images/s each, as in the last run"
    )
    assert format_plan(plan, found) == [
        "6 image shards: 4 done and skipped, 2 to do, 5.00 MB to read",
        "about 50 images, 2,000 tokens (40.0 an image), 10.0 kB of output, 5.0 s",
        "estimated: images, tokens and output from 4 shards tokenized before; "
        "time from 5 actors at 2 images/s each, as in the last run",
    ]


def test_from_a_sample(token_spec: TokenSpec) -> None:
    plan = make_plan(token_spec, num_done=0, todo=[64_000_000_000])
    found = estimate(plan, num_actors=1, sample=SAMPLE)
    # 10,000 samples of 6.4 MB; 32 images a second.
    assert found == Estimate(
        640_000, 32_000_000, 128_000_000, 20_000.0, "the first 64 images, tokenized here",
        "1 actor at 32 images/s each, as this machine did",
    )  # fmt: skip
    assert format_plan(plan, found)[1] == (
        "about 640,000 images, 32,000,000 tokens (50.0 an image), 128 MB of output, 5.6 h"
    )


def test_crops_are_called_crops(token_spec: TokenSpec) -> None:
    plan = make_plan(token_spec, num_done=0, todo=[64_000_000_000])
    found = estimate(plan, num_actors=1, sample=SAMPLE, row_name="crop")
    assert format_plan(plan, found, row_name="crop")[1:] == [
        "about 640,000 crops, 32,000,000 tokens (50.0 a crop), 128 MB of output, 5.6 h",
        "estimated: crops, tokens and output from the first 64 crops, tokenized here; "
        "time from 1 actor at 32 crops/s each, as this machine did",
    ]


def test_shards_say_more_than_a_sample(token_spec: TokenSpec) -> None:
    plan = make_plan(token_spec, num_done=1, todo=[1_000_000])
    found = estimate(plan, num_actors=1, sample=SAMPLE)
    assert (found.num_images, found.num_tokens, found.seconds) == (10, 400, 10 / 32)
    assert found.rates_origin == "1 shard tokenized before"
    assert found.speed_origin.endswith("as this machine did")


@pytest.mark.parametrize("run", [None, {}, {"images_per_s_per_actor": None}, {"images_per_s_per_actor": 0}])
def test_time_is_not_invented(token_spec: TokenSpec, run: dict | None) -> None:
    plan = make_plan(token_spec, num_done=1, todo=[1_000_000])
    found = estimate(plan, num_actors=8, run=run)
    assert (found.num_images, found.seconds, found.speed_origin) == (10, None, "")
    lines = format_plan(plan, found)
    assert lines[1].endswith("2.00 kB of output, ? time")
    assert lines[2] == "estimated: images, tokens and output from 1 shard tokenized before"
    assert estimate(plan, run={"images_per_s_per_actor": 3}).seconds is None  # how many actors?


def test_nothing_is_known(token_spec: TokenSpec) -> None:
    plan = make_plan(token_spec, num_done=0, todo=[1_000_000, None])
    for sample in (None, SAMPLE, Sample(0, 0, 0, 0, 0.0)):  # one size is unknown, so the sample says nothing
        found = estimate(plan, num_actors=2, run={"images_per_s_per_actor": 2.0}, sample=sample)
        assert found == Estimate(None, None, None, None, "", "")
    assert format_plan(plan, found) == [
        "2 image shards: 0 done and skipped, 2 to do, 1.00 MB and 1 shard of unknown size to read",
        "about ? images, ? tokens, ? of output, ? time",
        "nothing to estimate from yet",
    ]
    unknown = make_plan(token_spec, num_done=0, todo=[None])
    assert format_plan(unknown, found)[0].endswith("1 to do, ? bytes to read")


def test_shards_of_unknown_size_count_as_the_mean(token_spec: TokenSpec) -> None:
    plan = make_plan(token_spec, num_done=2, todo=[500_000, None, None])
    assert estimate(plan).num_images == 25  # 2.5 MB


def test_nothing_to_do(token_spec: TokenSpec) -> None:
    plan = make_plan(token_spec, num_done=3, todo=[])
    found = estimate(plan, num_actors=2, sample=SAMPLE)
    assert found == Estimate(0, 0, 0, 0.0, "", "")
    assert format_plan(plan, found) == [
        "3 image shards: 3 done and skipped, 0 to do, 0 B to read",
        "nothing to do",
    ]


def test_changed_shards_are_named(token_spec: TokenSpec) -> None:
    plan = make_plan(token_spec, num_done=6, todo=[1], num_changed=5, on_source_change="retokenize")
    lines = format_plan(plan, estimate(plan))
    assert lines[0] == "7 image shards: 1 done and skipped, 6 to do, 36 B to read"
    assert lines[1] == "5 shards changed since tokenized: tokenized again"
    assert lines[2] == "  s3://b/done-0.tar (was 1000000 bytes, ETag old, is 7 bytes)"
    assert lines[5] == "  and 2 more"
    plan = make_plan(token_spec, num_done=6, todo=[1], num_changed=1, on_source_change="ignore")
    assert (
        format_plan(plan, estimate(plan))[1]
        == "1 shard changed since tokenized: their tokens stay as they are"
    )


def test_shards_of_other_input_are_told(token_spec: TokenSpec) -> None:
    plan = make_plan(token_spec, num_done=2, todo=[1])
    other = CorpusPlan(plan.names[1:], plan.todo, [], plan.index)
    assert "1 token shard there already of other input: left alone" in format_plan(other, estimate(other))


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(0.0, "0 s"), (3.21, "3.2 s"), (89, "89 s"), (90, "1.5 min"), (5399, "90 min"), (5400, "1.5 h"),
     (200_000, "56 h"), (259_200, "3.0 days"), (86_400_000, "1,000 days")],
)  # fmt: skip
def test_times_have_two_digits(token_spec: TokenSpec, seconds: float, shown: str) -> None:
    plan = make_plan(token_spec, num_done=1, todo=[1])
    assert format_plan(plan, Estimate(1, 1, 1, seconds, "x", "y"))[1].endswith(f", {shown}")
