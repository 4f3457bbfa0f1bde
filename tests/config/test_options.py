"""Declaring: what an option takes by its type, which flags there are, and what the help says of all that."""

from __future__ import annotations

import json
import re

import pytest

from tatok_pipe.config.help import format_help
from tatok_pipe.config.load import from_dict, load_config, to_dict, to_yaml
from tatok_pipe.config.schema import describe
from tatok_pipe.errors import UserError
from tests.config.declared import (
    ActorsConfig,
    FlagConfig,
    InputConfig,
    JobConfig,
    LongConfig,
    ModelConfig,
    NeedyJobConfig,
    SmallJobConfig,
    UrlConfig,
    load,
    refuse,
)


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/{000000..000007}.tar",
        "s3://b/{a,b}.tar",
        "@list.txt",
        "a=b?c=d",
        "C:\\data: x",
        "[a, b]",
        "0012",
        "yes",
        "1e6",
        "12:30",
        "2026-01-01",
        "a # b",
        "'quoted'",
        "",
        "  spaced ",
        "*.tar",
        "!tag",
        "$HOME",
    ],
)
def test_text_arrives_literally(text: str, write):
    assert load(f"input.shards={text}").input.shards == text
    quoted = "'" + text.replace("'", "''") + "'"
    assert load(write(f"input:\n  shards: {quoted}\n")).input.shards == text


@pytest.mark.parametrize("text", ["0012", "yes", "1e6", "12:30", "2026-01-01", "s3://b/{a,b}.tar", "1_0"])
def test_text_needs_no_quotes_in_yaml(text: str, write):
    assert load(write(f"input: \n  shards: {text}\n")).input.shards == text


@pytest.mark.parametrize(
    ("text", "number"),
    [("1e6", 10**6), ("1_000", 1000), ("-3", -3), ("2.0", 2), ("12e-1e", None), ("1.5", None)],
)
def test_whole_numbers(text: str, number: int | None, write):
    for argument in (f"actors.min={text}", write(f"actors:\n  min: {text}\n")):
        if number is None:
            message = refuse(argument)
            assert message.endswith(f"actors.min={text}: expected a whole number (int), got '{text}'")
        else:
            value = load(argument).actors.min
            assert value == number
            assert type(value) is int


@pytest.mark.parametrize("text", ["1e400000000", "nan", "inf", "true", "", "٣x"])
def test_no_whole_number(text: str):
    assert "expected a whole number (int)" in refuse(f"actors.min={text}")


@pytest.mark.parametrize(("text", "value"), [("3", 3.0), ("1e-3", 0.001), ("null", None), ("1_0.5", 10.5)])
def test_numbers_and_null(text: str, value: float | None):
    found = load(f"dtf.target_tokens={text}", "dtf.min_patches=0").dtf.target_tokens
    assert found == value
    assert isinstance(found, float | None)


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1e999"])
def test_numbers_are_finite(text: str):
    assert refuse(f"dtf.target_tokens={text}").endswith("expected a finite number (float)")


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("yes", True), ("off", False)])
def test_booleans(text: str, value: bool):
    assert load(f"input.augment={text}").input.augment is value


def test_options_at_the_top_level(write):
    path = write("url: s3://b/x\ndry_run: yes\nlimit: 1e3\ntags: [a]\ninput: {augment: true}\n")
    config = load(path, "limit=2", config_class=FlagConfig)
    assert config == FlagConfig("s3://b/x", True, None, 2, ["a"], InputConfig(augment=True))
    assert load(write(to_yaml(config)), config_class=FlagConfig) == config
    assert from_dict(FlagConfig, json.loads(json.dumps(to_dict(config)))) == config
    assert refuse("limit=x", config_class=FlagConfig).startswith("limit=x: expected a whole number")


def test_flags_set_options_of_the_top_level_to_true(write):
    def loaded(*argv: str) -> FlagConfig:
        return load(*argv, config_class=FlagConfig)

    assert (loaded().dry_run, loaded().keep) == (False, None)
    assert (loaded("--dry-run").dry_run, loaded("--dry-run", "--keep").keep) == (True, True)
    assert loaded("--dry-run", "limit=3", write("dry_run: false")).dry_run is True  # the command line wins
    assert loaded("--dry-run", "dry_run=false").dry_run is False  # and of its parts the last
    assert loaded("dry_run=false", "--dry-run", "--dry-run").dry_run is True


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--dryrun", "--dryrun: unknown flag, did you mean --dry-run?; the flags are "),
        ("--dry_run", "--dry_run: unknown flag, did you mean --dry-run?; the flags are "),
        ("-dry-run", "-dry-run: unknown flag, did you mean --dry-run?; the flags are "),
        ("--print-confg", "--print-confg: unknown flag, did you mean --print-config?; the flags are "),
        ("--url", "--url: unknown flag; the flags are --help, --print-config, --dry-run and --keep, and options are "
            "written without dashes: key=value"),
        ("--augment", "--augment: unknown flag; the flags are "),  # is in a section
        ("--tags=[a]", "--tags=[a]: unknown flag; the flags are "),
        ("--dry-run=no", "--dry-run=no: a flag takes no value; write --dry-run, or dry_run=no"),
        ("-", "-: unknown flag; the flags are "),
    ],
)  # fmt: skip
def test_refused_flags(flag: str, message: str):
    assert refuse(flag, config_class=FlagConfig).startswith(message)


def test_help_lists_flags(capsys):
    with pytest.raises(SystemExit):
        load("--help", config_class=FlagConfig)
    text = capsys.readouterr().out
    assert text.startswith(
        "usage: python -m tatok_pipe.runs.job [CONFIG.yaml] [key=value ...] [--flag ...]\n"
    )
    assert "\n  --help, -h      print this and stop\n" in text
    assert "\n  --dry-run       same as dry_run=true, below\n" in text
    assert "\n  --keep          same as keep=true, below\n" in text
    assert "--augment" not in text
    assert "\noptions:\n  url " in text
    assert re.search(r"\n  dry_run +bool = false\n", text)
    assert "[--flag ...]" not in format_help(
        describe(JobConfig), prog="p", description="d", default_file=None
    )


def test_lists(write):
    assert load("actors.levels=[5, 1_000, 2e1]").actors.levels == [5, 1000, 20]
    assert load(write("actors:\n  levels:\n  - 4\n  - 6\n"), "output.tags=[]").actors.levels == [4, 6]
    assert load(write("output: {tags: [x]}"), "output.tags=[]").output.tags == []
    assert load("output.tags=[a, 'b, c', 012]").output.tags == ["a", "b, c", "012"]
    assert load("dtf.ladder.budgets=[1, .5]").dtf.ladder.budgets == [1.0, 0.5]


def test_fields_without_default_must_be_given(write):
    message = "model.width: no value given, expected a whole number (int); write model.width=VALUE"
    assert refuse(config_class=NeedyJobConfig) == message
    assert load("model.width=5", config_class=NeedyJobConfig).model == ModelConfig(width=5)
    assert load(config_class=SmallJobConfig).model == ModelConfig(width=64, levels=[5])
    assert load("model.depth=3", config_class=SmallJobConfig).model == ModelConfig(64, 3, [5])
    with pytest.raises(UserError, match="^width: no value given"):
        from_dict(ModelConfig, {})


def test_help_lists_every_key_with_its_type_default_unit_and_help(capsys):
    with pytest.raises(SystemExit) as caught:
        load("ouput.url=x", "-h", default_file="configs/job.yaml")
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(
        "usage: python -m tatok_pipe.runs.job [CONFIG.yaml] [key=value ...]\n\nDoes a job.\n"
    )
    assert max(map(len, text.splitlines())) <= 100
    assert "Without CONFIG.yaml, configs/job.yaml is read." in " ".join(text.split())
    assert "python -m tatok_pipe.runs.job my.yaml dtf.min_patches=1\n" in text
    options = describe(JobConfig).all_options()
    assert set(options) >= {"name", "output.url", "dtf.ladder.budgets"}
    lines = text.splitlines()
    for path, known in options.items():
        (start,) = (i for i, line in enumerate(lines) if re.match(rf"  {re.escape(path)}(\s|$)", line))
        entry = " ".join(line.strip() for line in lines[start : start + 3])
        for part in (known.type_name, known.unit, known.limits, known.help.rstrip("."), *known.choices):
            assert part in entry
    assert "float or null = null (tokens per image)" in text
    assert "str = threshold\n" in text
    assert "One of: threshold, budget, none" in text
    assert "list of int = [8, 8, 8]" in text
    assert "str = ''" in text
    assert "\ndtf.ladder: Calibration\n" in text


def test_help_wraps_what_is_long(capsys):
    with pytest.raises(SystemExit):
        load_config(LongConfig, ["--help"], prog="p", description="word " * 60)
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 100
    key = "a_name_that_is_much_longer_than_any_column_would_allow_for"
    assert re.search(rf"^  {key}\n +int, required$", text, re.MULTILINE)
    entry = "".join(line.strip() for line in text[text.index("  url ") :].splitlines())
    assert re.match(r"url +str = s3://a{72}\.\.\.help help", entry)


@pytest.mark.parametrize("nothing", ["", " ", "\t "])
@pytest.mark.parametrize(
    ("key", "advice"),
    [("url", ", or leave it out for its default, out"), ("start", ""), ("old", " or null")],
)
def test_no_url_is_empty_unless_that_is_its_default(nothing: str, key: str, advice: str, write):
    if (key, nothing) == ("start", ""):
        assert load("start=", config_class=UrlConfig) == UrlConfig()
        return
    message = refuse(f"{key}={nothing}", config_class=UrlConfig)
    assert message.startswith(f"{key}=") and message.endswith(f": empty; expected a URL or path{advice}")
    refuse(write(f"{key}: {json.dumps(nothing)}\n"), config_class=UrlConfig)
    with pytest.raises(UserError, match="empty"):
        from_dict(UrlConfig, {key: nothing})


def test_null_text_and_the_word_null_stay_apart(write):
    for note in (None, "null", "~", ""):
        config = JobConfig(actors=ActorsConfig(note=note))
        assert load(write(to_yaml(config))) == config
