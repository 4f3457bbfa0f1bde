"""One sample: which of its files are its image, label, caption and JSON, and what refuses it."""

from __future__ import annotations

import base64
import pickle
from pathlib import Path

import pytest

from tatok_pipe.images.fields import MAX_KEY_CHARACTERS, MAX_METADATA_BYTES
from tatok_pipe.images.formats.table import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.notices import GAP, JSON_LABEL, MENDED_JSON
from tatok_pipe.records import ImageSample, Quarantined
from tests.images.tars import only, pack, read, read_noting, refused


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
