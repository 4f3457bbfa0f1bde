"""Conditions on rows: what they mean, by a plain evaluation, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from tatok_pipe.tokens.editing.where import parse_where
from tatok_pipe.tokens.spec import token_schema
from tests.token_datasets import TINY

SCHEMA = token_schema(TINY)
ROWS: list[dict[str, Any]] = [
    {"key": key, "label": label, "caption": caption, "num_tokens": tokens, "entropy_total": nats, "crop": 0}
    for key, label, caption, tokens, nats in (
        ("a", 3, "a cat", 10, 0.5),
        ("b", 3, None, 40, 2.5),
        ("it's", None, 'so "it" is', 10, 2.25),
        ("and", -1, "", 7, 0.0),
    )
]
TABLE = pa.table({name: pa.array([row[name] for row in ROWS], SCHEMA.field(name).type) for name in ROWS[0]})

MEANINGS: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
    ("label=3", lambda row: row["label"] == 3),
    ("label == 3", lambda row: row["label"] == 3),
    ("  label  =  +3.0 ", lambda row: row["label"] == 3),
    ("label=-1", lambda row: row["label"] == -1),
    ("label != 3", lambda row: row["label"] not in (3, None)),
    ("label <> 3", lambda row: row["label"] not in (3, None)),
    ("not label = 3", lambda row: row["label"] not in (3, None)),
    ("not not label = 3", lambda row: row["label"] == 3),
    ("label is null", lambda row: row["label"] is None),
    (
        "label is not null and num_tokens < 40",
        lambda row: row["label"] is not None and row["num_tokens"] < 40,
    ),
    ("num_tokens >= 1e1", lambda row: row["num_tokens"] >= 10),
    ("num_tokens <= 10 and num_tokens > 7", lambda row: 7 < row["num_tokens"] <= 10),
    ("entropy_total > .5", lambda row: row["entropy_total"] > 0.5),
    ("key='a'", lambda row: row["key"] == "a"),
    ("key = \"a\" or key = 'b'", lambda row: row["key"] in "ab"),
    ("key = 'it''s'", lambda row: row["key"] == "it's"),
    ('caption = "so ""it"" is"', lambda row: row["caption"] == 'so "it" is'),
    ("caption = ''", lambda row: row["caption"] == ""),
    ("key = 'and' or label in (3, 5)", lambda row: row["key"] == "and" or row["label"] == 3),
    ("label=3 or label=-1 and num_tokens=7", lambda row: row["label"] in (3, -1)),
    ("(label=3 or label=-1) and num_tokens=7", lambda row: row["label"] == -1),
    ("label=3 AND NOT num_tokens=40", lambda row: row["label"] == 3 and row["num_tokens"] != 40),
    ("label = 99", lambda row: False),
]


@pytest.mark.parametrize(("text", "meaning"), MEANINGS)
def test_a_condition_is_true_of_the_rows_that_it_means(
    text: str, meaning: Callable[[dict[str, Any]], Any]
) -> None:
    where = parse_where(text, SCHEMA)
    assert where.rows(TABLE.select(list(where.columns))).tolist() == [
        number for number, row in enumerate(ROWS) if meaning(row)
    ]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "ends where a column is expected"),
        ("label", "ends where a comparison is expected"),
        ("label=", "ends where a value is expected"),
        ("lable=3", "no column lable; expected one of key, label, caption"),
        ("patch_codes=3", "column patch_codes holds lists; expected one of key"),
        ("and=3", "'and': expected a column"),
        ("3=label", "'3': expected a column"),
        ("label='3'", "label is a number, not '3'"),
        ("label=true", "label is a number, not true"),
        ("label=3.5", "label is a whole number of 32 bits, not 3.5"),
        ("label=2147483648", "label is a whole number of 32 bits, not 2147483648"),
        ("key=3", "key is text, not 3; write '3'"),
        ("label=3 num_tokens=4", "'num_tokens' is too much"),
        ("label=3 and", "ends where a column is expected"),
        ("(label=3", r"the end: expected '\)'"),
        ("label in 3", r"'3': expected '\('"),
        ("label is 3", "'3': expected 'null'"),
        ("label in ()", r"label is a number, not \)"),
        ("label like 3", "'like' after label: expected =, !="),
        ("label=3; x", "cannot be read from '; x' on"),
        ("label=3x", "cannot be read from '3x' on"),
        ("key='a", 'cannot be read from "\'a" on'),
        ("(" * 60 + "label=3" + ")" * 60, "more than 50 parentheses"),
    ],
)
def test_anything_else_is_told_in_one_line(text: str, told: str) -> None:
    with pytest.raises(ValueError, match=told) as caught:
        parse_where(text, SCHEMA)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("type", "values"),
    [
        ("int64", [2**53, 2**53 + 1, -(2**63), 2**63 - 1]),
        ("uint64", [2**53, 2**53 + 1, 2**64 - 2, 2**64 - 1]),
        ("float16", [0.5, 0.1, 2.5, -3.5, 65504.0]),
        ("float32", [0.5, 1.5, 2.5, -3.5]),
        ("bool", [False, True]),
    ],
)
def test_every_value_of_a_joined_column_is_its_own(type: str, values: list[Any]) -> None:
    column = np.array(values, np.float16) if type == "float16" else pa.array(values, pa.type_for_alias(type))
    table = pa.table({"x": column})
    for number, value in enumerate(values):
        text = str(int(value)) if type == "bool" else str(value)
        assert parse_where(f"x = {text}", table.schema).rows(table).tolist() == [number]
        assert parse_where(f"x in ({text})", table.schema).rows(table).tolist() == [number]
        larger = [place for place, each in enumerate(values) if each > value]
        assert parse_where(f"x > {text}", table.schema).rows(table).tolist() == larger


def test_what_truth_values_and_whole_numbers_are_told() -> None:
    schema = pa.schema([("good", pa.bool_()), ("id", pa.uint64())])
    for text, told in (
        ("good = true", "good is 0 or 1, not true"),
        ("good = 2", "good is 0 or 1, not 2"),
        ("id = 18446744073709551616", "id is a whole number of 64 bits"),
        ("id = 1e999999", "id is a whole number of 64 bits"),
        ("id = 1e-999999", "id is a whole number of 64 bits"),
    ):
        with pytest.raises(ValueError, match=told):
            parse_where(text, schema)
