"""Loading: what arrives, in which order of precedence, and the one line a user gets for a mistake."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tatok_pipe.config.help import format_help
from tatok_pipe.config.load import from_dict, load_config, to_dict, to_yaml
from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.config.schema import describe
from tatok_pipe.errors import UserError


@dataclass(frozen=True)
class InputConfig:
    shards: str = option("", help="Image shards: a path, a URL with {000..007}, or @list.txt.")
    augment: bool = option(False, help="Encode several crops of an image.")


@dataclass(frozen=True)
class OutputConfig:
    url: str = option("runs/out", help="Where the token dataset goes.")
    tags: list[str] = option([], help="Free words stored with the dataset.")


@dataclass(frozen=True)
class LadderConfig:
    budgets: list[float] = option([0.1, 0.25], help="Budgets that are calibrated.", unit="share of the total")


@config_dataclass
class DtfConfig:
    rule: str = option("threshold", help="What decides.", choices=["threshold", "budget", "none"])
    target_tokens: float | None = option(None, help="Mean length to solve for.", unit="tokens per image")
    min_patches: int = option(1, at_least=0, help="Floor.", unit="patches per image")
    ladder: LadderConfig = section(LadderConfig, help="Calibration")

    def __post_init__(self) -> None:
        if self.target_tokens is not None and self.target_tokens < self.min_patches:
            raise ValueError("the target lies below\nthe floor")


@dataclass(frozen=True)
class ActorsConfig:
    min: int = option(1, help="Fewest actors kept alive.", unit="actors, global")
    levels: list[int] = option([8, 8, 8], help="Levels of each code dimension.")
    seed: int | None = option(None, help="Fixed where given.")
    note: str | None = option(None, help="Free text.")


@dataclass(frozen=True)
class JobConfig:
    name: str = option("job", help="Name in logs.")
    input: InputConfig = section(InputConfig, help="Where images come from")
    output: OutputConfig = section(OutputConfig, help="Where tokens go")
    dtf: DtfConfig = section(DtfConfig, help="Dynamic Token Filtering")
    actors: ActorsConfig = section(ActorsConfig, help="The pool of workers")


@dataclass(frozen=True)
class ModelConfig:
    width: int  # has no default: must be given
    depth: int = 2
    levels: list[int] = field(default_factory=lambda: [8, 8])


@dataclass(frozen=True)
class SmallJobConfig:
    """A section that starts from other defaults than its class's own."""

    model: ModelConfig = option(ModelConfig(width=64, levels=[5]), help="The model")


@dataclass(frozen=True)
class NeedyJobConfig:
    model: ModelConfig = section(ModelConfig, help="The model")


@dataclass(frozen=True)
class LongConfig:
    a_name_that_is_much_longer_than_any_column_would_allow_for: int
    url: str = option("s3://" + "a" * 200, help="help " * 50)


@dataclass(frozen=True)
class UrlConfig:
    url: str = option("out", help="Where to.", is_url=True)
    start: str = option("", help="Where from; empty: nowhere.", is_url=True)
    old: str | None = option(None, help="What to compare with; null: nothing.", is_url=True)


@dataclass(frozen=True)
class FlagConfig:
    """Options of every kind at the top level, beside a section."""

    url: str = option("out", help="Where to.")
    dry_run: bool = option(False, help="Plan, and do nothing.")
    keep: bool | None = option(None, help="Keep what is there.")
    limit: int | None = option(None, help="At most.", unit="images")
    tags: list[str] = option([], help="Words.")
    input: InputConfig = section(InputConfig, help="Where images come from")


def load(*argv: str, config_class: Any = JobConfig, **kwargs: Any) -> Any:
    return load_config(
        config_class, list(argv), prog="tatok_pipe.runs.job", description="Does a job.", **kwargs
    )


def refuse(*argv: str, config_class: Any = JobConfig, **kwargs: Any) -> str:
    """The message of the UserError that `argv` must raise, which is one line."""
    with pytest.raises(UserError) as caught:
        load(*argv, config_class=config_class, **kwargs)
    message = str(caught.value)
    assert message and message.isprintable()
    return message


@pytest.fixture
def write(tmp_path: Path):
    def write_yaml(text: str, name: str = "job.yaml") -> str:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write_yaml


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
