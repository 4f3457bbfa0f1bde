from __future__ import annotations

import dataclasses
import json

import pyarrow as pa
import pytest

from tatok_pipe.tokens.spec import TokenSpec, code_type, quarantine_schema, token_schema


def test_json_round_trip(token_spec: TokenSpec) -> None:
    assert TokenSpec.from_json(json.loads(json.dumps(token_spec.to_json()))) == token_spec


def test_json_of_another_shape(token_spec: TokenSpec) -> None:
    with pytest.raises(ValueError, match="token spec has fields"):
        TokenSpec.from_json({**token_spec.to_json(), "extra": 1})
    with pytest.raises(ValueError, match="token spec has fields"):
        TokenSpec.from_json({})


def test_differences_name_the_field(token_spec: TokenSpec) -> None:
    other = dataclasses.replace(
        token_spec,
        tokenizer_fingerprint="sha256:00",
        dtf=dataclasses.replace(token_spec.dtf, value=0.5),
        encoding={},
    )
    assert token_spec.differences(token_spec) == []
    assert token_spec.differences(other) == [
        "dtf.value: 0.25, not 0.5",
        'encoding.precision: "float32", not unset',
        f'tokenizer_fingerprint: "{token_spec.tokenizer_fingerprint}", not "sha256:00"',
    ]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_globals": -1}, "num_globals=-1: expected at least 0"),
        ({"num_patches": 15}, "num_patches=15: expected"),
        ({"num_patches": 512 * 512, "image_size": 512, "patch_size": 1}, "at most 65536"),
        ({"patch_size": 7}, "patch_size=7"),
        ({"patch_vocab": 0}, "patch_vocab=0"),
        ({"tokenizer_fingerprint": ""}, "fingerprint"),
    ],
)
def test_what_cannot_be(token_spec: TokenSpec, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(token_spec, **changes)


def test_codes_take_the_smallest_type() -> None:
    assert code_type(1 << 16) == pa.uint16()
    assert code_type((1 << 16) + 1) == pa.uint32()


def test_schema_is_format_1(token_spec: TokenSpec) -> None:
    # Written out by hand from the format's description: a change here is a new format version.
    described = [
        ("key", "string", False),
        ("label", "int32", True),
        ("caption", "string", True),
        ("meta", "string", True),
        ("width", "int32", False),
        ("height", "int32", False),
        ("crop", "int16", False),
        ("global_codes", "fixed_size_list<element: uint16 not null>[3]", False),
        ("patch_codes", "list<element: uint32 not null>", False),
        ("patch_positions", "list<element: uint16 not null>", False),
        ("num_tokens", "int32", False),
        ("entropy_total", "float", False),
        ("entropy_dropped", "float", False),
        ("mutual_information", "float", True),
        ("patch_entropy", "list<element: float not null>", True),
    ]
    assert [(each.name, str(each.type), each.nullable) for each in token_schema(token_spec)] == described
    assert [(each.name, str(each.type), each.nullable) for each in quarantine_schema()] == [
        ("key", "string", False),
        ("stage", "string", False),
        ("error", "string", False),
        ("message", "string", False),
        ("num_bytes", "int64", False),
    ]
