"""Config fields that describe themselves: default, one-line help, unit, choices and bounds.

Model code declares its configuration with this and stays free of YAML: `schema.py` reads the same metadata, for
`--help` and for strict loading.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar, dataclass_transform

from tatok_pipe.config.schema import Bounds, Option, describe

ConfigT = TypeVar("ConfigT")


def option(
    default: Any,
    *,
    help: str,
    unit: str = "",
    choices: Sequence[str] = (),
    at_least: float = -math.inf,
    above: float = -math.inf,
    at_most: float = math.inf,
    below: float = math.inf,
    is_url: bool = False,
) -> Any:
    """A dataclass field with its documentation.

    `default` may be a list or a dataclass instance (copied per config object); `unit` also names the scope
    ("images per GPU", "bytes, per shard"); `choices` lists the only strings allowed; `at_least`, `above`, `at_most` and
    `below` bound a number, or each of a list; `is_url`: a URL or path, which is not empty unless that is the default.
    """
    bounds = Bounds(at_least, above, at_most, below)
    metadata = {"help": help, "unit": unit, "choices": tuple(choices), "bounds": bounds, "is_url": is_url}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(config_class: type, *, help: str) -> Any:
    """A nested dataclass of options, built from its own defaults."""
    return field(default_factory=config_class, metadata={"help": help})


@dataclass_transform(frozen_default=True)
def config_dataclass(config_class: type[ConfigT]) -> type[ConfigT]:
    """A frozen dataclass of options: ValueError where one is outside of its choices or bounds, however it is built.

    What relates several options is left to `__post_init__`, which runs after that.
    """
    relate = getattr(config_class, "__post_init__", None)

    def check(config: Any) -> None:
        for each in _options(type(config)):
            each.check(getattr(config, each.name))
        if relate is not None:
            relate(config)

    config_class.__post_init__ = check  # type: ignore[attr-defined]
    return dataclass(frozen=True)(config_class)


@functools.cache
def _options(config_class: type) -> tuple[Option, ...]:
    return describe(config_class).options
