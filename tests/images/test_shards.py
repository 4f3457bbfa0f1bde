"""Shards: every run of files becomes one sample or one explained refusal, and a broken shard is named."""

from __future__ import annotations

import base64
import gc
import io
import json
import pickle
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_pipe.images.fields import MAX_KEY_CHARACTERS, MAX_METADATA_BYTES
from tatok_pipe.images.formats.table import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.notices import EMPTY, GAP, JSON_LABEL, MENDED_JSON, Notices
from tatok_pipe.images.shard_errors import InterleavedShard, ShardError, UnusableShard
from tatok_pipe.images.webdataset.samples import read_samples
from tatok_pipe.records import ImageSample, Quarantined
from tests.pictures import crop_members, write_shard

webdataset = pytest.importorskip("webdataset")
REAL_SHARDS = sorted((Path(__file__).parents[3] / "shared/data").glob("*/*.tar"))[::13]


def pack(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read_noting(data: bytes, **limits) -> tuple[list[ImageSample | Quarantined], list[tuple[str, str, int]]]:
    """Samples, and what was told: text, example, number of samples."""
    notices = Notices()
    stream = io.BytesIO(data)
    samples = list(read_samples(stream, shard="x.tar", limits=ShardLimits(**limits), notices=notices))
    return samples, [(notice.text, notice.example, notice.num_samples) for notice in notices.all]


def read(data: bytes, **limits) -> list[ImageSample | Quarantined]:
    return list(read_samples(io.BytesIO(data), shard="s3://bucket/x.tar", limits=ShardLimits(**limits)))


def only(*files: tuple[str, bytes], **limits) -> ImageSample | Quarantined:
    samples = read(pack(*files), **limits)
    assert len(samples) == 1
    return samples[0]


def refused(*files: tuple[str, bytes], **limits) -> tuple[str, str]:
    sample = only(*files, **limits)
    assert isinstance(sample, Quarantined)
    assert sample.num_bytes == sum(len(data) for _, data in files)
    return sample.stage, sample.error


def test_a_whole_sample():
    files = [
        ("d/a.jpg", b"pixels"),
        ("d/a.cls", b" 7\n"),
        ("d/a.txt", "Käse".encode()),
        ("d/a.json", b'{"x": 1}'),
    ]
    expected = ImageSample("d/a", b"pixels", 7, "Käse", '{"x": 1}')
    assert only(*files) == only(*reversed(files)) == expected


def test_all_but_the_image_may_be_missing():
    assert only(("a.jpg", b"pixels")) == ImageSample("a", b"pixels")


@pytest.mark.parametrize("extension", IMAGE_EXTENSIONS)
def test_image_extensions_in_any_case(extension):
    assert only((f"a.{extension.upper()}", b"pixels")) == ImageSample("a", b"pixels")


@pytest.mark.parametrize("extension", UNREAD_EXTENSIONS)
def test_an_image_that_is_not_read_says_so_unless_there_is_another(extension):
    refused = only((f"a.{extension.upper()}", b"pixels"), ("a.cls", b"1"))
    assert isinstance(refused, Quarantined)
    assert (refused.stage, refused.error) == ("shard", "UnsupportedFormat")
    assert refused.message == f"files .{extension}, .cls: .{extension} is not read; convert it to JPEG or PNG"
    assert only((f"a.{extension}", b"other"), ("a.jpg", b"pixels")) == ImageSample("a", b"pixels")


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


@pytest.mark.parametrize(
    "name",
    ["README", ".hidden.jpg", "d/._a.jpg", "__meta__/a.jpg", "__header__"],
)
def test_names_of_no_sample(name):
    assert only(("a.jpg", b"1"), (name, b"x"), ("a.cls", b"3")) == ImageSample("a", b"1", 3)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("a.jpg", "a"),
        ("./a.jpg", "./a"),
        ("v1.2/a.jpg", "v1.2/a"),
        ("../../../etc/passwd.jpg", "../../../etc/passwd"),
        ("/abs/a.jpg", "/abs/a"),
        ("C:\\a.jpg", "C:\\a"),
        ("a b/ü.jpg", "a b/ü"),
    ],
)
def test_keys(name, key):
    assert only((name, b"1")) == ImageSample(key, b"1")


def test_extension_is_everything_behind_the_first_dot():
    sample = only(("a.jpg", b"1"), ("a.mask.png", b"2"), ("a.tar.gz", b"3"))
    assert sample == ImageSample("a", b"1")


def test_pickles_are_never_loaded(tmp_path):
    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    trap = pickle.dumps(Trap())
    assert only(("a.pyd", trap), ("a.jpg", b"1"), ("a.pkl", trap), ("a.pickle", trap)) == ImageSample(
        "a", b"1"
    )
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (b"0", 0), (b"-3", -3), (b"+3\r\n", 3), (b"007", 7), (b"\t2147483647", 2**31 - 1), (b"3.0", 3), (b"True", 1),
        (b"\xef\xbb\xbf5", 5), (b"None", None), (b"nan\n", None),
    ],
)  # fmt: skip
def test_labels(value, label):
    assert only(("a.jpg", b"1"), ("a.cls", value)) == ImageSample("a", b"1", label)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"cat",
        b"3.5",
        b"inf",
        b"1e3",
        b"\xff",
        b"[3]",
        b"1 2",
        b"1_000",
        "٣".encode(),
        b"2147483648",
        b"9" * 5000,
    ],
)
def test_bad_labels(value):
    assert refused(("a.jpg", b"1"), ("a.cls", value)) == ("metadata", "BadLabel")


@pytest.mark.parametrize("value", [b"", b"{", b"{'a': 1}", b"\xff", b"[" * 100_000])
def test_bad_json(value):
    assert refused(("a.jpg", b"1"), ("a.json", value)) == ("metadata", "BadJson")


def test_captions():
    assert only(("a.jpg", b"1"), ("a.caption", b"short")) == ImageSample("a", b"1", caption="short")
    both = [("a.jpg", b"1"), ("a.caption", b"short"), ("a.txt", b"\xef\xbb\xbflong")]
    assert only(*both) == ImageSample("a", b"1", caption="long")  # without its byte order mark
    assert refused(("a.jpg", b"1"), ("a.txt", b"caf\xe9")) == ("metadata", "BadCaption")


@pytest.mark.parametrize(
    ("files", "label"),
    [
        ({"label": b"3"}, 3), ({"cls.txt": b"3"}, 3), ({"class": b"3"}, 3), ({"LABEL.TXT": b"3"}, 3),
        ({"label": b"3", "cls": b"4"}, 4), ({"cls": b"cat", "class_id": b"5"}, 5),
        ({"json": b'{"label": 6}'}, 6), ({"json": b'{"label": 6}', "cls": b"4"}, 4),
        ({"json": b'{"name": "owl"}'}, None), ({"npy": b"3"}, None), ({"index": b"3"}, None),
    ],
)  # fmt: skip
def test_where_labels_are(files, label):
    sample = only(("a.jpg", b"1"), *((f"a.{name}", data) for name, data in files.items()))
    assert isinstance(sample, ImageSample) and sample.label == label


def test_captions_in_json_count_where_there_is_no_file():
    told = ("a.json", b'{"caption": "told"}')
    assert isinstance(sample := only(("a.jpg", b"1"), told), ImageSample) and sample.caption == "told"
    sample = only(("a.jpg", b"1"), told, ("a.text", b"written"))
    assert isinstance(sample, ImageSample) and sample.caption == "written"


def test_what_is_there_and_not_taken_is_told():
    files = [
        ("a.jpg", b"1"), ("a.cls", b"1"), ("a.coarse_label", b"0"), ("b.jpg", b"1"), ("b.json", b'{"label": "cat"}'),
        ("c.jpg", b"1"), ("c.cls", b"None"), ("d.jpg", b"1"), ("d.json", b'{"x": NaN}'), ("e.jpg", b"1"),
        ("e.2021.png", b"1"), ("f.jpg", b"1"), ("f.class_name.txt", b"cat"), ("README", b""), ("g.jpg", b"1"),
        ("._g.jpg", b"1"), ("LICENSE", b""), ("h.jpg", b"1"), ("h.seg.png", b"1"),
    ]  # fmt: skip
    samples, told = read_noting(pack(*files))
    assert [sample.label for sample in samples if isinstance(sample, ImageSample)] == [1, *[None] * 7]
    assert [text for text, _, _ in told[1:4]] == [JSON_LABEL, GAP, MENDED_JSON]
    assert told[0][0].startswith("the label is .cls; .coarse_label is not taken") and told[0][1:] == ("a", 1)
    assert told[1][1].startswith("b: \"label\" holds 'cat', expected a label")
    assert "no images of their own" in told[4][0] and told[4][1:] == ("e.2021.png", 2)
    assert "without an extension" in told[5][0] and told[5][1:] == ("README", 2)
    assert told[6][0].startswith("there is no label; .class_name.txt is not taken")
    assert len(told) == 7
    assert read_noting(pack(*files[:2]))[1] == []


def test_what_is_ignored_needs_not_be_right():
    bad = [("a.jpg", b"1"), ("a.cls", b"cat"), ("a.txt", b"\xff"), ("a.txt", b"\xff"), ("a.json", b"{")]
    ignore = ["label", "caption", "meta"]
    assert read_noting(pack(*bad), ignore=ignore) == ([ImageSample("a", b"1")], [])
    assert only(*bad[:2], ("a.json", b'{"label": 1}'), ignore=["label"]) == ImageSample(
        "a", b"1", meta='{"label": 1}'
    )
    with pytest.raises(ValueError, match=r"ignore=\[key\]: expected a list from label, caption, meta"):
        ShardLimits(ignore=["key"])


def test_a_shard_without_a_sample():
    assert read_noting(pack()) == ([], [(EMPTY, "", 1)])
    with pytest.raises(
        UnusableShard, match="^x.tar: none of 2 files has an extension, as 'd/0001' has none; name"
    ):
        read_noting(pack(("d/0001", b"1"), ("0002", b"1"), ("._a.jpg", b"1")))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["Screenshot 2021-01-01 at 10.11.12.png"],
            "first dot of a name, so .11.12.png is no image; leave no other",
        ),
        (["photo.2021.01.JPG", "photo.2021.02.JPG"], "first dot of a name, so .2021.01.jpg is no image"),
        (["n01440764.tar"], ".tar is an archive; unpack it, and give what was in it as shards of their own"),
        (["a.tar.gz"], ".tar.gz is an archive"),
    ],
)
def test_why_there_is_no_image(names: list[str], message: str):
    (sample,) = read(pack(*((name, b"1") for name in names)))
    assert isinstance(sample, Quarantined) and sample.error == "NoImage" and message in sample.message


def test_images_in_base64_are_decoded():
    image = b"\x89PNG\r\n\x1a\n and so on and so on"
    samples, told = read_noting(pack(("a.png", base64.b64encode(image)), ("b.png", image)))
    assert samples == [ImageSample("a", image), ImageSample("b", image)]
    assert told == [("the images are base64 text or data: URIs: decoded", "a", 1)]


def test_shard_stage_refusals():
    assert refused(("a.cls", b"1"), ("a.npy", b"123")) == ("shard", "NoImage")
    assert refused(("a.jpg", b"1"), ("a.png", b"2")) == ("shard", "AmbiguousImage")
    assert refused(("a.jpg", b"1"), ("a.JPG", b"2")) == ("shard", "AmbiguousImage")
    assert refused(("a.jpg", b"1"), ("a.cls", b"2"), ("a.cls", b"2")) == ("shard", "DuplicateField")
    assert refused(("a.jpg", b"12345"), max_member_bytes=4) == ("shard", "TooManyBytes")
    assert refused(("a.jpg", b"1"), ("a.json", b"[1,2]"), max_member_bytes=4) == ("shard", "TooManyBytes")
    kept = only(("a.jpg", b"1234"), ("a.npy", b"12345"), max_member_bytes=4)
    assert kept == ImageSample("a", b"1234")


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


def test_long_keys_are_refused_and_cut_short():
    fits, long = "k" * MAX_KEY_CHARACTERS, "k" * (MAX_KEY_CHARACTERS + 1)
    assert only((f"{fits}.jpg", b"1")) == ImageSample(fits, b"1")
    samples = read(pack((f"{long}.jpg", b"1"), (f"{long}.cls", b"1"), (f"{long}!.jpg", b"1")))
    assert [sample.error for sample in samples if isinstance(sample, Quarantined)] == ["LongKey"] * 2
    assert len({sample.key for sample in samples}) == 2 and all(len(sample.key) < 300 for sample in samples)


def test_metadata_has_a_limit_of_its_own():
    fits = b"9" * MAX_METADATA_BYTES
    assert isinstance(only(("a.jpg", b"1"), ("a.txt", fits)), ImageSample)
    sample = only(("a.jpg", b"1"), ("a.txt", fits + b"9"))
    assert isinstance(sample, Quarantined)
    assert (sample.error, sample.message) == (
        "TooManyBytes",
        ".txt: 16777217 bytes, more than the limit of metadata, 16777216",
    )
    assert isinstance(only(("a.jpg", fits + b"9")), ImageSample)


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
