"""Labels, captions, keys and JSON: the same values whatever they are written as, and nothing lost without a word."""

from __future__ import annotations

import json
import math
import re
import uuid
from decimal import Decimal
from typing import Any

import duckdb
import polars
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_pipe.images.fields import (
    LABEL_NAMES,
    MetadataError,
    choose_label,
    is_label_like,
    parse_json,
    read_caption,
    read_key,
    read_label,
)

INT32 = st.integers(-(2**31), 2**31 - 1)


def spellings(number: int) -> list[Any]:
    """A number as pandas, databases, JSON and people write it."""
    text = str(number)
    return [
        number, float(number), Decimal(number), Decimal(f"{number}.00"), text, f" {text}\r\n", f"{text}.0", f"{text}.",
        text.encode(), b"\xef\xbb\xbf" + text.encode(), f"{text}.000\n".encode(), [number], [text], [float(number)],
    ]  # fmt: skip


@given(INT32)
def test_a_number_is_the_same_label_however_it_is_written(number: int) -> None:
    assert {read_label(value, "x") for value in spellings(number)} == {number}


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (True, 1), (False, 0), ("True", 1), (b"false", 0), ("+3", 3), ("007", 7), ("-0.0", 0),
        (None, None), (math.nan, None), (Decimal("nan"), None), ([], None), ([None], None), ("nan", None),
        (b"None", None), ("NULL", None), ("<NA>", None),
    ],
)  # fmt: skip
def test_other_labels_and_gaps(value: Any, label: int | None) -> None:
    found = read_label(value, "x")
    assert found == label and type(found) is type(label)


@pytest.mark.parametrize(
    "value",
    [
        0.5, math.inf, -math.inf, Decimal("0.1"), "", " ", "cat", "n01440764", "1e3", "0x10", "1_000", "1,5", "٣", "½",
        "3.1", "1 2", b"\xff", b"", 2**31, -(2**31) - 1, 1e300, "9" * 5000, [1, 2], [[1]], {"id": 1}, ["cat"], b"[3]",
    ],
)  # fmt: skip
def test_what_is_no_label_is_refused_in_one_line(value: Any) -> None:
    with pytest.raises(MetadataError) as caught:
        read_label(value, "column label: string")
    assert caught.value.error == "BadLabel"
    assert str(caught.value).startswith("column label: string holds ") and len(str(caught.value)) < 300
    assert "input.limits.ignore=[label]" in str(caught.value) and "\n" not in str(caught.value)


def test_the_first_label_is_chosen() -> None:
    assert choose_label([]) is None
    assert choose_label([("a", None), ("b", b"nan")]) is None
    assert choose_label([("a", None), ("b", "4"), ("c", 5)]) == 4
    assert choose_label([("a", "cat"), ("b", "4")]) == 4
    with pytest.raises(MetadataError, match="^a holds 'cat'"):
        choose_label([("a", "cat"), ("b", None), ("c", "dog")])


def test_names_like_a_label() -> None:
    others = [
        "coarse_label",
        "category",
        "class_name",
        "labelIdx",
        "my_class_id",
        "categories",
        "target_text",
    ]
    assert all(is_label_like(name) for name in [*LABEL_NAMES, *others])
    names = ["image", "classic", "labelled_by", "json", "mask", "targeted", "superclassing", "txt", "npy"]
    assert not any(is_label_like(name) for name in names)


def test_captions() -> None:
    assert read_caption(b"\xef\xbb\xbfa", "x") == read_caption([b"a"], "x") == "a"
    assert read_caption(None, "x") is read_caption([], "x") is None
    with pytest.raises(
        MetadataError, match=r"x holds a list of 2, expected one caption; keep one.*=\[caption\]"
    ):
        read_caption([b"a", b"b"], "x")


def test_keys() -> None:
    number = uuid.uuid4()
    values: list[tuple[Any, str | None]] = [
        (b"a/b", "a/b"), (b"\xff", "\\xff"), (5, "5"), (5.0, "5"), (Decimal("7"), "7"), (math.nan, None), (None, None),
        (number, str(number)), (2**63, str(2**63)),
    ]  # fmt: skip
    assert [read_key(value, "x") for value, _ in values] == [key for _, key in values]
    with pytest.raises(MetadataError, match="^x holds 0.5, expected a key: text or a whole number"):
        read_key(0.5, "x")


def strict(text: str) -> Any:
    """What RFC 8259 makes of it: Python reads constants that it does not have."""

    def refuse(name: str) -> Any:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def without_constants(value: Any) -> Any:
    """The value with None for what is not finite, by another road than text."""
    if isinstance(value, dict):
        return {key: without_constants(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_constants(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


TEXTS = st.text(max_size=8) | st.sampled_from(['NaN", "', "-Infinity", '\\"NaN', "\\", "Infinity:"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(TEXTS, children, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60)
@given(JSON, st.booleans(), st.sampled_from([None, 1]))
def test_what_python_writes_becomes_strict_json(value: Any, ascii: bool, indent: int | None) -> None:
    written = json.dumps(value, ensure_ascii=ascii, indent=indent)
    found = parse_json(written.encode())
    assert strict(found.text) == found.value == without_constants(value)
    if not found.is_mended:
        assert found.text == written  # not a byte of it is another one
    is_strict = json.dumps(without_constants(value), ensure_ascii=ascii, indent=indent) == written
    assert found.is_mended is not is_strict


def test_mended_json_is_read_by_databases() -> None:
    row = '{"aesthetic": NaN, "s": "NaN, \\"Infinity\\"", "l": [-Infinity, 1.5, Infinity], "width": 64}'
    text = parse_json(row.encode()).text
    assert text == '{"aesthetic": null, "s": "NaN, \\"Infinity\\"", "l": [null, 1.5, null], "width": 64}'
    with pytest.raises(polars.exceptions.ComputeError):
        polars.Series([row]).str.json_decode(polars.Struct({"width": polars.Int64}))
    decoded = polars.Series([text]).str.json_decode(
        polars.Struct({"aesthetic": polars.Float64, "s": polars.String, "width": polars.Int64})
    )
    assert decoded.to_list() == [{"aesthetic": None, "s": 'NaN, "Infinity"', "width": 64}]
    found = duckdb.execute("SELECT json_valid(?), json_extract(?, '$.width')::int", [text, text]).fetchall()
    assert found == [(True, 64)]


@pytest.mark.parametrize(
    ("value", "label", "caption"),
    [
        ({"label": 3, "caption": "c"}, 3, "c"), ({"class_id": "7"}, 7, None), ({"cls": 1.0, "label": None}, 1, None),
        ({"label": math.nan}, None, None), ({"x": {"label": 3}}, None, None), ([{"label": 3}], None, None),
        ({"label": "cat", "class_id": 2, "caption": 5}, 2, None), ({"name": "diamondback"}, None, None),
        (5, None, None),
    ],
)  # fmt: skip
def test_what_json_says(value: Any, label: int | None, caption: str | None) -> None:
    found = parse_json(json.dumps(value).encode())
    assert (found.label(), found.caption()) == (label, caption)


def test_names_in_json_are_no_labels() -> None:
    with pytest.raises(MetadataError, match=re.escape("\"label\" holds 'cat', expected")):
        parse_json(b'{"label": "cat"}').label()
