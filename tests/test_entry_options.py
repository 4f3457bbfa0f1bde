"""What holds for the options of all entries."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

from tatok_pipe.__main__ import COMMANDS
from tatok_pipe.commands.study.options import ArmConfig, StageConfig, StudyConfig
from tatok_pipe.config.help import format_help
from tatok_pipe.config.load import load_config
from tatok_pipe.config.schema import Option, Section, Text, describe
from tatok_pipe.config.shared_options import DEMO_FOLDER
from tatok_pipe.errors import UserError
from tools.simulation.options import SimulateCorpusConfig

CONFIGS: dict[str, type] = {name: import_module(f"tatok_pipe.{name}").main.config_class for name in COMMANDS}
CONFIGS["simulation"] = SimulateCorpusConfig
ROOT = Path(__file__).parents[1]
# Text that is neither a URL nor one of a few words.
TEXTS = {
    "edit_tokens": {"join.columns", "join.key", "remove.where"},
    "evaluate": {"compare", "suite"},
    "generate": {"classes", "start.columns", "start.rows"},
    "study": {"account", "arms", "generator.options", "stage", "stages", "tokenizer.options"},
    "train_ar": {"input.condition_column", "input.weight_changes", "input.where", "logging.wandb_project"},
    "train_tokenizer": {"logging.wandb_project"},
}


def urls(entry: str) -> list[Option]:
    return [option for option in describe(CONFIGS[entry]).all_options().values() if option.is_url]


@pytest.mark.parametrize("entry", CONFIGS)
def test_every_text_is_a_url_a_choice_or_known_here(entry: str) -> None:
    options = describe(CONFIGS[entry]).all_options().values()
    # Those of stores are lists of URLs, which their config checks itself.
    texts = {
        each.path
        for each in options
        if each.kind is str and not (each.choices or each.is_url or each.path.startswith("storage."))
    }
    assert texts == TEXTS.get(entry, set())


@pytest.mark.parametrize(
    ("entry", "key"), [(entry, option.path) for entry in CONFIGS for option in urls(entry)]
)
def test_no_url_of_an_entry_is_of_blanks(entry: str, key: str) -> None:
    blank = "[' ']" if describe(CONFIGS[entry]).all_options()[key].is_list else " "
    with pytest.raises(UserError, match=rf"^{key}=(\[ \]| ): empty; expected a URL or path"):
        load_config(CONFIGS[entry], [f"{key}={blank}"], prog=entry, description="")


def bounded(entry: str) -> dict[str, tuple[Section, Option]]:
    sections = describe(CONFIGS[entry]).walk()
    return {
        option.path: (section, option) for section in sections for option in section.options if option.limits
    }


def ends(option: Option) -> Iterator[tuple[float, float]]:
    """At each bound of a number: the last one that is refused, the first one that is taken."""

    def beyond(bound: float, far: float) -> float:
        return bound + math.copysign(1, far) if option.kind is int else math.nextafter(bound, far)

    bounds = option.bounds
    for taken, far in ((bounds.at_least, -math.inf), (bounds.at_most, math.inf)):
        if taken != far:
            yield beyond(taken, far), taken
    for refused, far in ((bounds.above, math.inf), (bounds.below, -math.inf)):
        if refused != -far:
            yield refused, beyond(refused, far)


@pytest.mark.parametrize(("entry", "key"), [(entry, key) for entry in CONFIGS for key in bounded(entry)])
def test_bounds_hold(entry: str, key: str) -> None:
    section, option = bounded(entry)[key]
    met = list(ends(option))
    assert met
    for outside, inside in met:
        number, other = map(option.kind, (outside, inside))
        text, given = (f"[{number!r}]", [number]) if option.is_list else (repr(number), number)
        with pytest.raises(UserError) as caught:
            load_config(CONFIGS[entry], [f"{key}={text}"], prog=entry, description="")
        assert str(caught.value) == f"{key}={text}: expected {option.limits}"
        with pytest.raises(ValueError, match=rf"^{option.name}=.*: expected {option.limits}$"):
            section.config_class(**{option.name: given})
        taken = option.convert([Text(other)] if option.is_list else Text(other))
        assert taken == ([other] if option.is_list else other)
        option.check(taken)


@pytest.mark.parametrize("entry", CONFIGS)
def test_choices_hold(entry: str) -> None:
    for section in describe(CONFIGS[entry]).walk():
        for option in section.options:
            if option.choices:
                given = ["nonsense"] if option.is_list else "nonsense"
                with pytest.raises(
                    ValueError, match=f"^{option.name}=.*nonsense.*: expected {option.expected}$"
                ):
                    section.config_class(**{option.name: given})


def declared() -> Iterator[tuple[type, str]]:
    """All options of the package, with the class that each is in."""
    for path in (ROOT / "tatok_pipe").rglob("*.py"):
        if not re.search(r"= option\(", path.read_text()):
            continue
        module = import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))
        classes = [value for value in vars(module).values() if dataclasses.is_dataclass(value)]
        own = [each for each in classes if isinstance(each, type) and each.__module__ == module.__name__]
        found = [
            (each, field.name)
            for each in own
            for field in dataclasses.fields(each)
            if "help" in field.metadata
        ]
        assert found, path
        yield from found


def test_every_option_is_in_the_help_of_a_command() -> None:
    shown: set[tuple[type, str]] = set()
    for entry, config_class in CONFIGS.items():
        root = describe(config_class)
        text = format_help(root, prog=entry, description="", default_file=None)
        for section in root.walk():
            for option in section.options:
                assert re.search(rf"^  {re.escape(option.path)}(  |$)", text, re.MULTILINE)
                shown.add((section.config_class, option.name))
            shown |= {(section.config_class, inner.name) for inner in section.sections}
    # What a line of text says: the help of that text names it.
    for option, config_class in (("arms", ArmConfig), ("stages", StageConfig)):
        text = describe(StudyConfig).all_options()[option].help
        own = [(config_class, field.name) for field in dataclasses.fields(config_class)]
        shown |= {(each, name) for each, name in own if re.search(rf"\b{name}(=|\.…)", text)}
    missing = {f"{config_class.__qualname__}.{name}" for config_class, name in set(declared()) - shown}
    assert not missing
    assert len(set(declared())) > 200


def test_what_jobs_leave_by_default_is_no_part_of_a_commit() -> None:
    folders = {DEMO_FOLDER}
    for entry in CONFIGS:
        folders |= {each.default for each in urls(entry) if each.path.endswith("url") and each.default}
    assert {"tatok_out", "tatok_generator", "tatok_samples", "tatok_evaluation"} <= folders
    ignored = (ROOT / ".gitignore").read_text().splitlines()
    assert {f"/{folder}/" for folder in folders} <= set(ignored)
