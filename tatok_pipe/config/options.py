"""Config fields that describe themselves: default, one-line help, unit and choices (standard library only).

Model code declares its configuration with this and stays free of YAML; `config.py` reads the same metadata
for `--help` and for strict loading.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any


def option(
    default: Any, *, help: str, unit: str = "", choices: Sequence[str] = (), is_url: bool = False
) -> Any:
    """A dataclass field with its documentation.

    `default` may be a list or a dataclass instance (copied per config object); `unit` also names the scope
    ("images per GPU", "bytes, per shard"); `choices` lists the only strings allowed; `is_url`: a URL or path, which is
    not empty unless that is the default.
    """
    metadata = {"help": help, "unit": unit, "choices": tuple(choices), "is_url": is_url}
    if isinstance(default, list):
        return dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def section(config_class: type, *, help: str) -> Any:
    """A nested dataclass of options, built from its own defaults."""
    return dataclasses.field(default_factory=config_class, metadata={"help": help, "unit": "", "choices": ()})


def check_choices(config: Any) -> None:
    """Raise ValueError where a field holds a string outside its `choices`. Call it from `__post_init__`."""
    for field in dataclasses.fields(config):
        choices = field.metadata.get("choices", ())
        value = getattr(config, field.name)
        if choices and value not in choices:
            raise ValueError(f"{field.name}={value!r}: expected one of {', '.join(choices)}")
