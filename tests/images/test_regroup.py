"""Members in any order: every key becomes one row or one refusal, the same as if the shard had been sorted."""

from __future__ import annotations

import io
import random
import tarfile

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.shard_errors import InterleavedShard, ShardError
from tatok_pipe.images.webdataset.regroup import read_regrouped
from tatok_pipe.images.webdataset.samples import read_samples
from tatok_pipe.records import ImageSample, Quarantined

Files = list[tuple[str, bytes]]


def pack(files: Files) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def regroup(*versions: bytes, max_kept_bytes: int = 1 << 20, **limits) -> list[ImageSample | Quarantined]:
    """What comes where the first reading finds the first version, and the second one the last."""
    streams = [io.BytesIO(versions[0]), io.BytesIO(versions[-1])]
    samples = read_regrouped(
        lambda: streams.pop(0), shard="x.tar", limits=ShardLimits(**limits), max_kept_bytes=max_kept_bytes
    )
    result = list(samples)
    assert not streams
    return result


def test_grouped_by_extension():
    files = [(f"{key}.jpg", key.encode()) for key in "abc"]
    files += [(f"{key}.cls", b"%d" % i) for i, key in enumerate("abc")]
    files += [("b.txt", b"a caption"), ("a.json", b"{}")]
    with pytest.raises(InterleavedShard):
        list(read_samples(io.BytesIO(pack(files)), shard="x.tar"))
    assert regroup(pack(files)) == [
        ImageSample("a", b"a", 0, None, "{}"),
        ImageSample("b", b"b", 1, "a caption"),
        ImageSample("c", b"c", 2),
    ]


def test_what_is_told_is_told_once():
    files = [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.cls", b"None"), ("b.coarse_label", b"1"), ("README", b"")]
    notices = Notices()
    data = pack(files)
    samples = list(read_regrouped(lambda: io.BytesIO(data), shard="x.tar", notices=notices))
    assert samples == [ImageSample("a", b"1"), ImageSample("b", b"2")]
    assert [(notice.example, notice.num_samples) for notice in notices.all] == [
        ("README", 1),
        ("a", 1),
        ("b", 1),
    ]
    assert regroup(pack([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.cls", b"cat")]), ignore=["label"]) == samples


def test_samples_come_where_their_image_is_and_refusals_where_they_begin():
    files = [
        ("text.txt", b"x"), ("late.cls", b"1"), ("two.cls", b"5"), ("one.jpg", b"1"), ("bad.cls", b"cat"),
        ("two.jpg", b"2"), ("late.jpg", b"3"), ("bad.jpg", b"4"), ("two.png", b"5"), ("one.cls", b"6"),
        ("text.json", b"{}"), ("twice.cls", b"7"), ("twice.jpg", b"8"), ("one.npy", b""), ("twice.cls", b"7"),
    ]  # fmt: skip
    samples = regroup(pack(files))
    got = [(s.key, s.error if isinstance(s, Quarantined) else s.label) for s in samples]
    assert got == [
        ("text", "NoImage"),
        ("two", "AmbiguousImage"),
        ("one", 6),
        ("late", 1),
        ("bad", "BadLabel"),
        ("twice", "DuplicateField"),
    ]
    assert {s.key: s.num_bytes for s in samples if isinstance(s, Quarantined)} == {
        "text": 3, "two": 3, "bad": 4, "twice": 3,
    }  # fmt: skip


def test_limits_hold_as_in_one_reading():
    files = [("a.jpg", b"12345"), ("b.jpg", b"12"), ("a.cls", b"1"), ("b.cls", b"2")]
    samples = regroup(pack(files), max_member_bytes=4)
    assert [getattr(s, "error", None) for s in samples] == ["TooManyBytes", None]
    with pytest.raises(ShardError, match="max_members=3"):
        regroup(pack(files), max_members=3)
    with pytest.raises(ShardError, match="no end-of-archive marker"):
        list(read_regrouped(lambda: io.BytesIO(pack(files)[: 8 * 512]), shard="x.tar"))


def test_what_is_kept_is_bounded():
    files = [(f"{i}.{kind}", b"1") for kind in ("jpg", "cls") for i in range(100)]
    assert len(regroup(pack(files), max_kept_bytes=100 * 800)) == 100
    with pytest.raises(ShardError, match="of 100 samples take more than the 65000 bytes.*sorted by name$"):
        regroup(pack(files), max_kept_bytes=65_000)
    captions = [(f"{i}.txt", bytes(1000)) for i in range(100)]
    with pytest.raises(ShardError, match="sorted by name"):
        regroup(pack(files + captions), max_kept_bytes=100 * 800)


@pytest.mark.parametrize(
    "second",
    [
        [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.cls", b"1")],
        [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.cls", b"1"), ("b.cls", b"22")],
        [("a.jpg", b"1"), ("b.jpg", b"2"), ("a.cls", b"1"), ("c.cls", b"2")],
        [("a.jpg", b"1"), ("b.jpg", bytes(10)), ("a.cls", b"1"), ("b.cls", b"2")],
    ],
)
def test_another_file_at_the_second_reading_is_noticed(second: Files):
    first = pack([("a.jpg", b"1"), ("b.jpg", b"2"), ("a.cls", b"1"), ("b.cls", b"2")])
    assert len(regroup(first, first)) == 2
    with pytest.raises(ShardError, match="changed while it was read"):
        regroup(first, pack(second), max_member_bytes=9)


SAMPLES = st.dictionaries(
    st.sampled_from(["a", "b", "c", "dir/a"]),
    st.dictionaries(
        st.sampled_from(["jpg", "png", "cls", "txt", "npy"]), st.sampled_from([b"1", b"22"]), min_size=1
    ),
)


@settings(max_examples=200, deadline=None)
@given(samples=SAMPLES, seed=st.integers(0, 1 << 30))
def test_any_order_gives_what_the_sorted_shard_gives(samples: dict[str, dict[str, bytes]], seed: int):
    files = [(f"{key}.{name}", data) for key, fields in samples.items() for name, data in fields.items()]
    expected = {s.key: s for s in read_samples(io.BytesIO(pack(files)), shard="x.tar")}
    random.Random(seed).shuffle(files)
    got = regroup(pack(files))
    assert len(got) == len(expected) == len(samples)
    for sample in got:
        if isinstance(sample, ImageSample):
            assert sample == expected[sample.key]
        else:  # messages list the files in their order
            other = expected[sample.key]
            assert isinstance(other, Quarantined) and sample.error == other.error
    images = [name.rpartition(".")[0] for name, _ in files if name.endswith((".jpg", ".png"))]
    order = {key: images.index(key) for key in set(images)}
    places = [order[s.key] for s in got if isinstance(s, ImageSample)]
    assert places == sorted(places)
