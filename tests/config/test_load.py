"""Loading: what arrives, in which order of precedence, and the one line a user gets for a mistake."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_pipe.config.load import from_dict, to_dict, to_yaml
from tatok_pipe.errors import UserError
from tests.config.declared import (
    ActorsConfig,
    DtfConfig,
    JobConfig,
    LadderConfig,
    OutputConfig,
    load,
    refuse,
)


def test_defaults_then_file_then_arguments_in_any_order(write):
    path = write("actors: {min: 2, seed: 7}\ndtf:\n  rule: budget\n")
    config = load("actors.min=3", path, "name=x", "name=y")
    assert (config.actors.min, config.actors.seed, config.dtf.rule, config.name) == (3, 7, "budget", "y")
    assert config.dtf.min_patches == 1
    assert load() == JobConfig()
    with pytest.raises(AttributeError):
        config.name = "z"


def test_default_file_is_read_only_without_another(write):
    default, other = write("name: default"), write("actors.min: 5", "other.yaml")
    assert load(default_file=default).name == "default"
    assert load(other, default_file=default).name == "job"
    assert load(other, default_file=default).actors.min == 5
    assert "no such file" in refuse(default_file="absent.yaml")


def test_empty_files_and_empty_sections_set_nothing(write):
    assert load(write("")) == JobConfig()
    assert load(write("# nothing\noutput:\n  # url: x\ndtf:\n")) == JobConfig()


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("ouput.url=x", "unknown key ouput.url; did you mean output.url?"),
        ("target_tokens=5", "unknown key target_tokens; did you mean dtf.target_tokens?"),
        ("output.ulr=x", "unknown key output.ulr; did you mean output.url?"),
        ("tokens.seed=x", "unknown key tokens.seed; did you mean actors.seed?"),
        ("output.url.x=1", "unknown key output.url.x; did you mean output.url?"),
        ("=1", "unknown key ''; --help lists every key"),
        ("zzzzzz=1", "unknown key zzzzzz; --help lists every key"),
        ("actors.min=abc", "actors.min=abc: expected a whole number (int), got 'abc'"),
        ("actors.min=[1]", "actors.min=[1]: expected a whole number (int), got '[1]'"),
        ("actors.min=null", "actors.min=null: expected a whole number (int), got null"),
        ("name=null", "name=null: expected text (str), got null"),
        ("input.augment=1", "input.augment=1: expected true or false (bool), got '1'"),
        (
            "dtf.target_tokens=many",
            "dtf.target_tokens=many: expected a number (float), got 'many'",
        ),
        (
            "actors.levels=8",
            "actors.levels=8: expected a list such as [8, 8, 8] (list of int), got '8'",
        ),
        (
            "actors.levels=[8, x]",
            "actors.levels=[8, x]: expected a list such as [8, 8, 8] (list of int), got the list [8, x]",
        ),
        (
            "actors.levels=[8,8",
            "actors.levels=[8,8: expected a list such as [8, 8, 8] (list of int), got '[8,8'",
        ),
        (
            "dtf.rule=thresh",
            "dtf.rule=thresh: expected one of threshold, budget, none, got 'thresh'",
        ),
        ("dtf.min_patches=-1", "dtf.min_patches=-1: expected at least 0"),
        ("dtf.target_tokens=0.5", "dtf: the target lies below the floor"),
        (
            "output=x",
            "output=x: a section; set its options instead: output.url, output.tags",
        ),
        (
            "dtf=null",
            "dtf=null: a section; set its options instead: "
            "dtf.rule, dtf.target_tokens, dtf.min_patches, dtf.ladder.…",
        ),
        (
            "--actors.min=4",
            "--actors.min=4: unknown flag; the flags are --help and --print-config, "
            "and options are written without dashes: key=value",
        ),
        ("actors.min", "actors.min: no value; write actors.min=VALUE"),
        ("nonsense", "nonsense: neither an existing config file nor key=value"),
        ("absent.yaml", "absent.yaml: no such file (a config file is read from the local disk)"),
        (
            "runs/lr=1/absent.yaml",
            "runs/lr=1/absent.yaml: no such file (a config file is read from the local disk)",
        ),
        (
            "name=${oc.env:HOME}",
            "name=${oc.env:HOME}: ${...} is not expanded here; "
            "write the value itself, or leave it to the shell, in double quotes",
        ),
        ("name=???", "name: no value given, expected text (str); write name=VALUE"),
        ("actors.min=a\nb", "actors.min='a\\nb': expected a whole number (int), got \"'a\\\\nb'\""),
    ],
)
def test_refused_arguments(argument: str, message: str):
    assert refuse(argument) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ouput: {url: x}", "unknown key ouput; did you mean output?"),
        ("output: {uri: x}", "unknown key output.uri; did you mean output.url?"),
        ("'': {name: x}", "unknown key ''; --help lists every key"),
        ("outputs:", "unknown key outputs; did you mean output?"),
        ("output: x", "output=x: a section; set its options instead: output.url, output.tags"),
        ("actors:\n  min:", "actors.min=null: expected a whole number (int), got null"),
        ("actors: {min: ~}", "actors.min=null: expected a whole number (int), got null"),
        ("actors: {min: [1, 2]}", "actors.min=[1, 2]: expected a whole number (int), got the list [1, 2]"),
        ("name: {a: b}", "name={'a': 'b'}: expected text (str), got a mapping"),
        ("output: {url: x}\noutput.url: y", "output.url is given twice; keep one"),
        (
            "name: ${x}",
            "name=${x}: ${...} is not expanded here; write the value itself, or leave it to the shell",
        ),
    ],
)
def test_refused_content_of_a_file(text: str, message: str, write):
    path = write(text)
    assert refuse(path).startswith(f"{path}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\nactors:\n  min: [1\n", ", line 4: not valid YAML: "),
        (
            "name: x\n\tactors: 1\n",
            ", line 2: not valid YAML: found character '\\t' that cannot start any token",
        ),
        ("name: x\nname: y\n", ", line 2: name is given twice; keep one"),
        ("actors:\n  min: 1\n  min: 1\n", ", line 3: min is given twice; keep one"),
        ("actors:\n  min: 1\nname: x\nactors:\n  seed: 1\n", ", line 4: actors is given twice; keep one"),
        ("[1]: x", ", line 1: expected the name of an option as key"),
        ("name: a\n---\nname: b\n", ", line 2: not valid YAML: but found another document"),
        ("name: \x07", ", not valid YAML: "),
        ("actors: &a {min: *a}", ", not valid YAML: nested without end"),
        ("- a\n- b\n", ": expected a mapping of options (key: value) at the top level, got the list [a, b]"),
        ("name=x", ": expected a mapping of options (key: value) at the top level, got 'name=x'"),
    ],
)
def test_refused_yaml(text: str, message: str, write):
    path = write(text)
    assert refuse(path).startswith(path + message)


def test_refused_files(tmp_path: Path, write):
    assert refuse(str(tmp_path)) == f"{tmp_path}: a directory; expected the path of a YAML file"
    first, second = write("name: a"), write("name: b", "second.yaml")
    assert refuse(first, second).startswith(f"two config files, {first} and {second}")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert refuse(str(binary)).startswith(f"{binary}: cannot be read as text")
    assert load(write("name: a", "lr=1/c.yaml")).name == "a"  # a file, although its path holds "="


def test_an_argument_supplies_what_a_file_leaves_open(write):
    path = write("name: ???\nactors: {min: 2}")
    assert refuse(path) == "name: no value given, expected text (str); write name=VALUE"
    assert load(path, "name=x").name == "x"


def test_printed_config_loads_to_the_same_config(capsys, write):
    argv = [
        "input.shards=s3://b/{0..7}.tar",
        "name=0012",
        "actors.note=yes",
        "output.tags=['null', '1e6', '']",
    ]
    argv += ["actors.levels=[]", "dtf.target_tokens=1e-7", "dtf.min_patches=0"]
    config = load(*argv)
    assert (config.name, config.actors.note, config.output.tags) == ("0012", "yes", ["null", "1e6", ""])
    with pytest.raises(SystemExit) as caught:
        load("--print-config", *argv)
    assert caught.value.code == 0
    assert load(write(capsys.readouterr().out)) == config


texts = st.text().filter(lambda text: "${" not in text and text != "???")


@settings(deadline=None, max_examples=50)
@given(
    st.builds(
        JobConfig,
        name=texts,
        output=st.builds(OutputConfig, url=texts, tags=st.lists(texts)),
        actors=st.builds(
            ActorsConfig,
            min=st.integers(-(10**20), 10**20),
            levels=st.lists(st.integers()),
            seed=st.none() | st.integers(),
            note=st.none() | texts,
        ),
        dtf=st.builds(
            DtfConfig,
            target_tokens=st.none() | st.floats(min_value=1, allow_infinity=False),
            ladder=st.builds(
                LadderConfig, budgets=st.lists(st.floats(allow_nan=False, allow_infinity=False))
            ),
        ),
    )
)
def test_dicts_round_trip_through_json(config: JobConfig):
    assert from_dict(JobConfig, json.loads(json.dumps(to_dict(config)))) == config


@settings(deadline=None, max_examples=50)
@given(texts, st.floats(1, 1e300), st.lists(st.integers(-(10**30) + 1, 10**30 - 1)))
def test_yaml_round_trips(
    tmp_path_factory: pytest.TempPathFactory, text: str, number: float, numbers: list[int]
):
    config = JobConfig(
        name=text, dtf=DtfConfig(target_tokens=number), actors=ActorsConfig(note=text, levels=numbers)
    )
    path = tmp_path_factory.getbasetemp() / "round_trip.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load(str(path)) == config


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        ({"actor": {"min": 1}}, "unknown key actor; did you mean actors?"),
        ({"actors": {"min": "5"}}, "actors.min=5: expected a whole number (int), got '5'"),
        ({"actors": {"min": True}}, "actors.min=true: expected a whole number (int), got true"),
        ({"actors": {"min": 1.5}}, "actors.min=1.5: expected a whole number (int), got 1.5"),
        ({"actors": {"min": None}}, "actors.min=null: expected a whole number (int), got null"),
        (
            {"actors": {"levels": 8}},
            "actors.levels=8: expected a list such as [8, 8, 8] (list of int), got 8",
        ),
        ({"name": 5}, "name=5: expected text (str), got 5"),
        ({"input": {"augment": "yes"}}, "input.augment=yes: expected true or false (bool), got 'yes'"),
        ({"input": {"augment": 1}}, "input.augment=1: expected true or false (bool), got 1"),
        ({"dtf": {"rule": "x"}}, "dtf.rule=x: expected one of threshold, budget, none, got 'x'"),
        ({"dtf": {"target_tokens": float("nan")}}, "dtf.target_tokens=nan: expected a finite number (float)"),
        ({"dtf": 3}, "dtf=3: a section; set its options instead: "),
    ],
)
def test_from_dict_is_strict(mapping: dict[str, Any], message: str):
    with pytest.raises(UserError) as caught:
        from_dict(JobConfig, mapping)
    assert str(caught.value).startswith(message)


def test_from_dict_reads_json_numbers_by_type():
    config = from_dict(JobConfig, {"actors": {"min": 2.0}, "dtf": {"target_tokens": 3}})
    assert (type(config.actors.min), type(config.dtf.target_tokens)) == (int, float)
