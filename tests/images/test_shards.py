"""Shards: every run of files becomes one sample or one explained refusal, and a broken shard is named."""

from __future__ import annotations

import gc
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.notices import EMPTY
from tatok_pipe.images.shard_errors import InterleavedShard, ShardError, UnusableShard
from tatok_pipe.images.webdataset.samples import read_samples
from tatok_pipe.records import ImageSample, Quarantined
from tests.images.tars import only, pack, read, read_noting
from tests.pictures import crop_members, write_shard

webdataset = pytest.importorskip("webdataset")
REAL_SHARDS = sorted((Path(__file__).parents[3] / "shared/data").glob("*/*.tar"))[::13]


def test_written_and_read_by_webdataset():
    samples = [ImageSample(f"k/{i:03d}", bytes([i]) * i * 100, i, f"no {i}", f"[{i}]") for i in range(1, 30)]
    buffer = io.BytesIO()
    with webdataset.TarWriter(buffer) as tar:
        for s in samples:
            fields = {"jpg": s.image, "cls": s.label, "txt": s.caption, "json": json.loads(s.meta or "")}
            tar.write({"__key__": s.key, **fields})
    assert read(buffer.getvalue()) == samples


def test_a_writer_that_nobody_closed_leaves_no_marker():
    buffer = io.BytesIO()
    tar = webdataset.TarWriter(buffer)
    tar.write({"__key__": "a", "jpg": b"pixels"})
    del tar
    gc.collect()
    with pytest.raises(ShardError, match="no end-of-archive marker.*require_end_marker=false"):
        read(buffer.getvalue())
    assert read(buffer.getvalue(), require_end_marker=False) == [ImageSample("a", b"pixels")]


@pytest.mark.skipif(not REAL_SHARDS, reason="no shards of ImageNet and CIFAR-10 in ../shared/data")
def test_known_shards_as_webdataset_reads_them():
    check_against_webdataset(REAL_SHARDS)


def test_shards_of_photographs_as_webdataset_reads_them(tmp_path):
    write_shard(tmp_path / "photographs.tar", [
        *crop_members(60), ("last.jpg", b"pixels"), ("last.cls", b"7"), ("last.json", b'{"kind": "photo"}')
    ])  # fmt: skip
    check_against_webdataset([tmp_path / "photographs.tar"])


def check_against_webdataset(paths):
    for path in paths:
        with open(path, "rb") as stream:
            ours = [s for s in read_samples(stream, shard=path.name) if isinstance(s, ImageSample)]
        with open(path, "rb") as stream:
            files = webdataset.tariterators.tar_file_expander([{"url": path.name, "stream": stream}])
            theirs = list(webdataset.tariterators.group_by_keys(files))
        assert len(ours) == len(theirs) > 50
        for sample, fields in zip(ours, theirs, strict=True):
            assert (sample.key, sample.image, sample.label) == (
                fields["__key__"],
                fields.get("jpg") or fields["png"],
                int(fields["cls"]),
            )
            assert sample.meta == (fields["json"].decode() if "json" in fields else None)


def test_a_shard_without_a_sample():
    assert read_noting(pack()) == ([], [(EMPTY, "", 1)])
    with pytest.raises(
        UnusableShard, match="^x.tar: none of 2 files has an extension, as 'd/0001' has none; name"
    ):
        read_noting(pack(("d/0001", b"1"), ("0002", b"1"), ("._a.jpg", b"1")))


def test_a_linked_image_is_not_lost_in_silence():
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        info = tarfile.TarInfo("b.jpg")
        info.type, info.linkname = tarfile.LNKTYPE, "a.jpg"
        tar.addfile(info)
    (sample,) = read(buffer.getvalue())
    assert (
        isinstance(sample, Quarantined)
        and sample.error == "NoImage"
        and "links do not count" in sample.message
    )


def test_a_key_with_a_second_image_is_a_duplicate():
    files = [
        ("a.jpg", b"1"),
        ("b.jpg", b"2"),
        ("a.png", b"3"),
        ("a.cls", b"3"),
        ("b.jpg", b"4"),
        ("c.jpg", b"5"),
    ]
    samples = read(pack(*files))
    assert [(s.key, s.error if isinstance(s, Quarantined) else s.image) for s in samples] == [
        ("a", b"1"),
        ("b", b"2"),
        ("a", "DuplicateKey"),
        ("b", "DuplicateKey"),
        ("c", b"5"),
    ]
    assert isinstance(samples[2], Quarantined) and samples[2].num_bytes == 2
    assert "files .png, .cls come after another sample of this key" in samples[2].message


@pytest.mark.parametrize(
    "names",
    [
        ["z.jpg", "a.jpg", "b.jpg", "a.cls", "b.cls"],  # grouped by extension
        ["z.jpg", "a.cls", "b.jpg", "a.jpg"],  # the label first
        ["z.jpg", "a.npy", "b.jpg", "a.npz"],  # no image at all
    ],
)
def test_a_key_with_its_image_elsewhere_is_interleaving(names: list[str]):
    reader = read_samples(io.BytesIO(pack(*((name, b"1") for name in names))), shard="s3://bucket/x.tar")
    got = [next(reader), next(reader), next(reader)]
    assert [sample.key for sample in got] == ["z", "a", "b"]
    with pytest.raises(InterleavedShard) as caught:
        next(reader)
    assert str(caught.value) == (
        "s3://bucket/x.tar: the files of sample 'a' do not follow one another, after 3 samples; "
        "read it with regroup=True, or pack it again sorted by name"
    )
    assert caught.value.num_samples == 3


def test_one_key_over_and_over_is_one_refusal():
    kinds = [("a.jpg", b"1"), ("a.cls", b"1"), ("a.npy", b"1")]
    sample = only(*kinds * 3000)
    assert isinstance(sample, Quarantined) and sample.num_bytes == 9000
    assert sample.message == "3000 images (" + ", ".join([".jpg"] * 8) + ", ...), expected one"
    sample = only(*kinds[1:] * 3000)
    assert isinstance(sample, Quarantined) and sample.error == "DuplicateField"
    sample = only(*kinds[2:] * 3000)
    assert isinstance(sample, Quarantined)
    assert sample.message == "files " + ", ".join([".npy"] * 8) + " and 2992 more, none of them an image"


def test_limits_of_the_shard_say_what_to_raise():
    data = pack(("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3"))
    for limits, samples in [({"max_members": 2}, 1), ({"max_shard_bytes": 2048}, 1)]:
        name, value = next(iter(limits.items()))
        with pytest.raises(
            ShardError, match=f"{name}={value}.*after {samples} samples; split.* or raise {name}$"
        ):
            read(data, **limits)


def test_shard_error_names_the_shard_and_counts():
    data = pack(("a.jpg", b"1"), ("b.jpg", b"2"), ("c.jpg", b"3"))
    reader = read_samples(io.BytesIO(data[:2600]), shard="s3://bucket/x.tar")
    assert next(reader) == ImageSample("a", b"1")
    with pytest.raises(ShardError) as caught:
        next(reader)  # b is whole, but whether it is complete nobody knows
    assert str(caught.value) == (
        "s3://bucket/x.tar: cut off at byte 2600, 472 bytes before the end of a member, after 1 samples; "
        "write or copy the shard again"
    )
    assert caught.value.num_samples == 1


def test_errors_of_the_stream_pass_through():
    class Failing(io.BytesIO):
        def read(self, size=-1):
            raise ConnectionResetError("peer")

    with pytest.raises(ConnectionResetError):
        list(read_samples(Failing(), shard="x"))


KEYS = st.sampled_from(["a", "b", "c", "dir/a", "dir/b"])
FIELDS = st.dictionaries(
    st.sampled_from(["jpg", "png", "cls", "txt", "json", "npy"]), st.binary(max_size=1200), min_size=1
)


def find_interleaving(runs: list[tuple[str, dict[str, bytes]]]) -> int:
    """Where the first run is that, with an earlier one of its key, makes one sample; len(runs) if nowhere."""
    has_image = [bool({"jpg", "png"} & set(fields)) for _, fields in runs]
    pairs = ((i, j) for j in range(len(runs)) for i in range(j) if runs[i][0] == runs[j][0])
    return next((j for i, j in pairs if not (has_image[i] and has_image[j])), len(runs))


def expected_samples(runs: list[tuple[str, dict[str, bytes]]]) -> list[tuple[str, bytes | str]]:
    """What each run must become, by a slower road: key, and the image or the error class."""
    seen: set[str] = set()
    results: list[tuple[str, bytes | str]] = []
    for key, fields in runs:
        images = [fields[e] for e in ("jpg", "png") if e in fields]
        if key in seen:
            results.append((key, "DuplicateKey"))
        elif len(images) != 1:
            results.append((key, "AmbiguousImage" if images else "NoImage"))
        else:
            results.append((key, images[0]))
        seen.add(key)
    return results


@settings(max_examples=200, deadline=None)
@given(runs=st.lists(st.tuples(KEYS, FIELDS), max_size=5), cut=st.floats(0, 1))
def test_any_shard_cut_anywhere(runs, cut):
    runs = [run for i, run in enumerate(runs) if i == 0 or run[0] != runs[i - 1][0]]
    runs = [(key, fields | {"cls": b"1", "json": b"{}", "txt": b""}) for key, fields in runs]
    data = pack(*((f"{key}.{name}", value) for key, fields in runs for name, value in fields.items()))
    body = sum(512 + -(-len(value) // 512) * 512 for _, fields in runs for value in fields.values())
    interleaved = find_interleaving(runs)
    expected = expected_samples(runs[:interleaved])

    got: list[tuple[str, bytes | str]] = []
    num_bytes = round(cut * (body + 1024))
    error = None
    try:
        for sample in read_samples(io.BytesIO(data[:num_bytes]), shard="x"):
            got.append((sample.key, sample.image if isinstance(sample, ImageSample) else sample.error))
    except ShardError as reason:
        error = reason
    assert got == expected[: len(got)]  # never a wrong sample
    if num_bytes >= body + 512 and interleaved == len(runs):
        assert error is None and len(got) == len(expected)
    else:
        assert error is not None and error.num_samples == len(got)
        if num_bytes >= body + 512:
            assert isinstance(error, InterleavedShard) and len(got) == interleaved


@pytest.mark.parametrize("name", ["max_member_bytes", "max_members", "max_shard_bytes", "max_page_bytes"])
def test_limits_refuse(name: str):
    with pytest.raises(ValueError, match=f"{name}=0: expected at least 1"):
        ShardLimits(**{name: 0})  # pyright: ignore[reportArgumentType]
