"""What a config class asks for: its keys flattened and typed, and values converted to those types.

A config class is an `options.config_dataclass` of `options.option` fields (int, float, str, bool, lists of the first
three, or any of these `| None`) and nested config classes. This module knows the classes; `load.py` knows
files, command lines and how layers are merged.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from tatok_pipe.errors import UserError

REQUIRED = "???"  # OmegaConf's mark for a value still to be given: the default of an option that has none

_EXPECTED = {
    int: "a whole number (int)",
    float: "a number (float)",
    str: "text (str)",
    bool: "true or false (bool)",
}
_EXAMPLES = {int: "[8, 8, 8]", float: "[0.5, 1.0]", str: "[a, b]"}
_BOOLS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
_MAX_INT_DIGITS = 30  # `1e999999999` would otherwise be written out in full
_MAX_SHOWN_CHARS = 80


class Text(str):
    """A scalar as somebody wrote it (YAML, command line): the option it is meant for decides its type."""


@dataclass(frozen=True)
class Bounds:
    """What a number may be, which is finite wherever it has one."""

    at_least: float = -math.inf
    above: float = -math.inf
    at_most: float = math.inf
    below: float = math.inf

    def hold(self, number: float) -> bool:
        return self.at_least <= number <= self.at_most and self.above < number < self.below

    def __str__(self) -> str:
        """In words; empty where there is none."""
        if math.isfinite(self.at_least) and math.isfinite(self.at_most):
            return f"{self.at_least} to {self.at_most}"
        words = {
            "at least": self.at_least,
            "more than": self.above,
            "at most": self.at_most,
            "less than": self.below,
        }
        return " and ".join(f"{word} {bound}" for word, bound in words.items() if math.isfinite(bound))


@dataclass(frozen=True)
class Option:
    """One key: `kind` is the type of the value, or of each item where `is_list`."""

    path: str  # dotted, from the root
    kind: type
    is_list: bool
    is_optional: bool
    default: Any
    help: str = ""
    unit: str = ""
    choices: tuple[str, ...] = ()
    bounds: Bounds = Bounds()
    is_url: bool = False

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    @property
    def type_name(self) -> str:
        name = f"list of {self.kind.__name__}" if self.is_list else self.kind.__name__
        return f"{name} or null" if self.is_optional else name

    @property
    def expected(self) -> str:
        if self.choices:
            return f"{'a list from' if self.is_list else 'one of'} {', '.join(self.choices)}"
        if self.is_list:
            return f"a list such as {_EXAMPLES[self.kind]} (list of {self.kind.__name__})"
        return _EXPECTED[self.kind]

    @property
    def limits(self) -> str:
        """Its bounds in words; empty where it has none."""
        text = str(self.bounds)
        return f"{text} each" if text and self.is_list else text

    def check(self, value: Any) -> None:
        """Raise ValueError where `value`, of this option's type, is outside of its choices or bounds."""
        items = value if self.is_list else [value]
        if value is None and self.is_optional:
            return
        if self.choices and not all(item in self.choices for item in items):
            raise ValueError(f"{self.name}={show(value)}: expected {self.expected}")
        if self.limits and not all(map(self.bounds.hold, items)):
            raise ValueError(f"{self.name}={show(value)}: expected {self.limits}")

    def convert(self, value: Any) -> Any:
        """`value` as this option's type, or UserError with one line.

        Of `Text` whatever reads as that type is taken; of anything else only the type itself (and an integral
        float for int, an int for float). REQUIRED stays what it is.
        """
        if isinstance(value, str) and value == REQUIRED:
            return REQUIRED
        try:
            if value is None:
                if self.is_optional:
                    return None
                raise ValueError
            if not self.is_list:
                return self._convert_scalar(value)
            if not isinstance(value, list):
                raise ValueError
            return [self._convert_scalar(item) for item in value]
        except ValueError as error:
            reason = str(error) or f"expected {self.expected}, got {name_value(value)}"
            raise UserError(f"{self.path}={show(value)}: {reason}") from None

    def _convert_scalar(self, value: Any) -> Any:
        converted = _CONVERTERS[self.kind](value)
        if self.choices and converted not in self.choices:
            raise ValueError
        # It would mean the working directory, and comes of a variable of a shell that was not set.
        if self.is_url and not converted.strip() and converted != self.default:
            raise ValueError(f"empty; expected a URL or path{self._way_out}")
        return converted

    @property
    def _way_out(self) -> str:
        """How to write that no text is meant."""
        if self.is_optional:
            return " or null"
        return (
            f", or leave it out for its default, {show(self.default)}"
            if self.default not in ("", REQUIRED)
            else ""
        )


@dataclass(frozen=True)
class Section:
    """A config class in its place: the root has the empty path."""

    path: str
    config_class: type
    help: str
    options: tuple[Option, ...]
    sections: tuple[Section, ...]

    @property
    def name(self) -> str:
        return self.path.rpartition(".")[2]

    def walk(self) -> Iterator[Section]:
        """This section and all below it, in order of declaration."""
        yield self
        for section in self.sections:
            yield from section.walk()

    def all_options(self) -> dict[str, Option]:
        """Every option from here down by its dotted path."""
        return {option.path: option for section in self.walk() for option in section.options}

    def flags(self) -> dict[str, Option]:
        """The options of this section, not of those below it, that may be given as a flag: `--dry-run`."""
        return {
            flag_name(option): option for option in self.options if option.kind is bool and not option.is_list
        }


def flag_name(option: Option) -> str:
    """`dry_run` as `--dry-run`."""
    return f"--{option.name.replace('_', '-')}"


def describe(config_class: type, *, path: str = "", help: str = "", defaults: Any = None) -> Section:
    """The keys of `config_class`, with the values of the instance `defaults` as defaults where one is given.

    Defaults are read off the fields without building the class, so a class that refuses its own defaults (for
    a value which the user must give) can still be described. Raises TypeError for a field of any other type.
    """
    hints = typing.get_type_hints(config_class)
    options, sections = [], []
    for field in dataclasses.fields(config_class):
        field_path = f"{path}.{field.name}" if path else field.name
        hint, text = hints[field.name], field.metadata.get("help", "")
        if dataclasses.is_dataclass(hint):
            assert isinstance(hint, type)
            default = getattr(defaults, field.name) if defaults is not None else _section_default(field, hint)
            sections.append(describe(hint, path=field_path, help=text, defaults=default))
        else:
            default = getattr(defaults, field.name) if defaults is not None else _option_default(field)
            options.append(_describe_option(field_path, hint, default, field.metadata))
    return Section(path, config_class, help, tuple(options), tuple(sections))


def find_nearest(given: str, known: Iterable[str]) -> str | None:
    """The known dotted key most like `given`, as a whole and in its last part; None where none is."""

    def likeness(a: str, b: str) -> float:
        return difflib.SequenceMatcher(None, a, b).ratio()

    def score(key: str) -> float:
        whole = likeness(given, key)
        return whole + max(whole, likeness(given.rpartition(".")[2], key.rpartition(".")[2]))

    best = max(known, key=score, default=None)
    return best if best is not None and score(best) >= 1.2 else None


def show(value: Any) -> str:
    """A value as a user would write it, on one line and not too long."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    text = f"[{', '.join(map(show, value))}]" if isinstance(value, list) else str(value)
    if not text.isprintable():
        text = repr(text)
    return text if len(text) <= _MAX_SHOWN_CHARS else text[: _MAX_SHOWN_CHARS - 3] + "..."


def name_value(value: Any) -> str:
    """What was given, for a message: text in quotes, containers by name."""
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return f"the list {show(value)}"
    return repr(show(value)) if isinstance(value, str) else show(value)


def _section_default(field: dataclasses.Field, hint: type) -> Any:
    """The instance a section starts from, or None where it starts from its class's own defaults."""
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is dataclasses.MISSING or field.default_factory is hint:
        return None
    return field.default_factory()


def _option_default(field: dataclasses.Field) -> Any:
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return REQUIRED


def _describe_option(path: str, hint: Any, default: Any, metadata: Any) -> Option:
    inner, is_optional = hint, False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        inner, *others = (arg for arg in typing.get_args(hint) if arg is not type(None))
        is_optional = not others and len(typing.get_args(hint)) == 2
    is_list = typing.get_origin(inner) is list
    kind = typing.get_args(inner)[0] if is_list else inner
    if kind not in (_EXAMPLES if is_list else _EXPECTED) or (inner is not hint and not is_optional):
        raise TypeError(
            f"{path}: {hint} is no config type; use int, float, str, bool or list[...], or one `| None`"
        )
    if default is None and not is_optional:
        raise TypeError(f"{path}: its default is None, so its type must be `{kind.__name__} | None`")
    option = Option(path, kind, is_list, is_optional, default, **metadata)
    if option.limits and kind not in (int, float):
        raise TypeError(f"{path}: {kind.__name__} has no bounds, and is declared with {option.limits}")
    if default != REQUIRED:
        try:
            option.check(default)
        except ValueError as error:
            raise TypeError(f"{path}: its default: {error}") from None
    return option


def _to_int(value: Any) -> int:
    if isinstance(value, Text):
        try:
            number = Decimal(value)
        except InvalidOperation:
            raise ValueError from None
        is_short = number.is_finite() and number.adjusted() <= _MAX_INT_DIGITS
        if not is_short or number != number.to_integral_value():
            raise ValueError
        return int(number)
    if isinstance(value, bool) or not isinstance(value, int | float) or value != value or value % 1 != 0:
        raise ValueError
    return int(value)


def _to_float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | Text):
        raise ValueError
    try:
        number = float(value)
    except (ValueError, OverflowError):
        raise ValueError from None
    if not math.isfinite(number):
        raise ValueError("expected a finite number (float)")
    return number


def _to_str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    if "${" in value:
        raise ValueError(
            "${...} is not expanded here; write the value itself, or leave it to the shell, in double quotes"
        )
    return str(value)


def _to_bool(value: Any) -> bool:
    if isinstance(value, Text) and value.lower() in _BOOLS:
        return _BOOLS[value.lower()]
    if not isinstance(value, bool):
        raise ValueError
    return value


_CONVERTERS = {int: _to_int, float: _to_float, str: _to_str, bool: _to_bool}
