"""Bounds and choices of options: what they let pass and what they say, however a config is made."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe.config.load import from_dict
from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.errors import UserError
from tests.config.declared import DtfConfig, load, refuse


@config_dataclass
class LimitsConfig:
    count: int = option(2, at_least=1, help="One or more.", unit="images")
    share: float | None = option(None, at_least=0, below=1, help="Not all.")
    chance: float = option(1.0, above=0, at_most=1, help="Not never.")
    side: int = option(8, at_least=2, at_most=16, help="From here to there.")
    levels: list[int] = option([8], at_least=2, help="Of each.", unit="levels")
    words: list[str] = option([], choices=("a", "b"), help="Which.")
    flip: str | None = option(None, choices=("yes", "no"), help="Whether.")


@config_dataclass
class SmallLimitsConfig(LimitsConfig):
    """The same with other bounds, which hold instead."""

    count: int = option(0, at_least=0, help="None, or more.")


@dataclass(frozen=True)
class LimitsJobConfig:
    limits: LimitsConfig = section(LimitsConfig, help="What is allowed")


def written(folder: Path, text: str) -> str:
    """The path of a YAML file."""
    path = folder / "job.yaml"
    path.write_text(text)
    return str(path)


OUTSIDE = [
    ("count", "0", 0, "count=0: expected at least 1"),
    ("share", "-1e-9", -1e-9, "share=-1e-09: expected at least 0 and less than 1"),
    ("share", "1", 1.0, "share=1.0: expected at least 0 and less than 1"),
    ("chance", "0", 0.0, "chance=0.0: expected more than 0 and at most 1"),
    ("chance", "1.001", 1.001, "chance=1.001: expected more than 0 and at most 1"),
    ("side", "1", 1, "side=1: expected 2 to 16"),
    ("side", "17", 17, "side=17: expected 2 to 16"),
    ("levels", "[2, 1]", [2, 1], "levels=[2, 1]: expected at least 2 each"),
]


@pytest.mark.parametrize(("name", "text", "value", "message"), OUTSIDE)
def test_bounds_hold_however_a_config_is_made(name: str, text: str, value: Any, message: str, tmp_path: Path):
    assert refuse(f"{name}={text}", config_class=LimitsConfig) == message
    assert refuse(f"limits.{name}={text}", config_class=LimitsJobConfig) == f"limits.{message}"
    assert (
        refuse(written(tmp_path, f"limits: {{{name}: {text}}}"), config_class=LimitsJobConfig)
        == f"limits.{message}"
    )
    with pytest.raises(UserError, match=re.escape(f"limits.{message}")):
        from_dict(LimitsJobConfig, {"limits": {name: value}})
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        LimitsConfig(**{name: value})
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        replace(LimitsConfig(), **{name: value})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 1), ("count", 10**40), ("share", 0.0), ("share", 0.999), ("share", None), ("chance", 1e-300),
        ("chance", 1.0), ("side", 2), ("side", 16), ("levels", [2]), ("levels", []), ("words", ["b", "a"]),
        ("flip", None),
    ],
)  # fmt: skip
def test_bounds_themselves_are_within(name: str, value: Any):
    assert getattr(LimitsConfig(**{name: value}), name) == value
    assert from_dict(LimitsConfig, {name: value}) == LimitsConfig(**{name: value})


def test_what_has_a_bound_is_finite():
    for number in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match=f"^chance={number}: expected more than 0"):
            LimitsConfig(chance=number)
    with pytest.raises(ValueError, match="^count=inf: expected at least 1"):
        LimitsConfig(count=math.inf)  # type: ignore[arg-type]


def test_choices_hold_however_a_config_is_made():
    with pytest.raises(ValueError, match=r"^words=\[a, c\]: expected a list from a, b$"):
        LimitsConfig(words=["a", "c"])
    with pytest.raises(ValueError, match="^flip=maybe: expected one of yes, no$"):
        LimitsConfig(flip="maybe")


def test_only_what_is_meant_in_the_end_has_to_be_within(tmp_path: Path):
    path = written(tmp_path, "count: 0\nside: 99\n")
    assert refuse(path, "side=3", config_class=LimitsConfig) == "count=0: expected at least 1"
    assert load(path, "side=3", "count=-1", "count=5", config_class=LimitsConfig) == LimitsConfig(5, side=3)


def test_a_derived_config_has_its_own_bounds():
    assert SmallLimitsConfig().count == 0
    with pytest.raises(ValueError, match="^count=-1: expected at least 0"):
        SmallLimitsConfig(-1)
    with pytest.raises(ValueError, match="^side=1: expected 2 to 16"):
        SmallLimitsConfig(side=1)


def test_what_relates_options_is_looked_at_when_each_is_within():
    with pytest.raises(ValueError, match="^the target lies below"):
        DtfConfig(target_tokens=0.5)
    with pytest.raises(ValueError, match="^min_patches=-1: expected at least 0"):
        DtfConfig(min_patches=-1, target_tokens=-2)


@pytest.mark.parametrize(
    ("name", "hint", "declared", "message"),
    [
        ("count", int, option(0, at_least=1, help=""), "count: its default: count=0: expected at least 1"),
        ("sizes", list[int], option([4, 9], at_most=8, help=""), r"sizes: its default: .*: expected at most 8 each"),
        ("kind", str, option("c", choices=("a", "b"), help=""), "kind: its default: kind=c: expected one of a, b"),
        ("name", str, option("", at_least=1, help=""), "name: str has no bounds, and is declared with at least 1"),
        ("flag", bool, option(True, below=2, help=""), "flag: bool has no bounds, and is declared with less than 2"),
        ("note", str | None, option(None, above=0, help=""), "note: str has no bounds"),
        ("size", int, option(None, help=""), "size: its default is None"),
        ("sides", tuple[int, int], option((1, 2), help=""), "sides: tuple"),
    ],
)  # fmt: skip
def test_a_wrong_declaration_is_a_bug_not_a_user_error(name: str, hint: Any, declared: Any, message: str):
    body = {"__annotations__": {name: hint}, name: declared}
    wrong = config_dataclass(type("WrongConfig", (), body))
    for make in (lambda: load(config_class=wrong), wrong):
        with pytest.raises(TypeError, match=f"^{message}"):
            make()


def test_help_tells_bounds_beside_the_unit(capsys):
    with pytest.raises(SystemExit):
        load("--help", config_class=LimitsConfig)
    lines = [line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines() if " = " in line]
    assert lines == [
        "int = 2 (images; at least 1)",
        "float or null = null (at least 0 and less than 1)",
        "float = 1.0 (more than 0 and at most 1)",
        "int = 8 (2 to 16)",
        "list of int = [8] (levels; at least 2 each)",
        "list of str = []",
        "str or null = null",
    ]
