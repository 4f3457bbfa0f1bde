"""Dataclass defaults < CONFIG.yaml < key=value, merged strictly into one frozen config.

What was written is read by the type of the option it is for, not by YAML's or OmegaConf's guesses: a str
option takes its text literally (`s3://bucket/{000..007}.tar`, `0012`, `yes`), an int option takes `1e6`. What
cannot be meant is refused in one line (UserError) that says what was given and what was expected. A bool option
at the top level may also be given as a flag: `--dry-run` is `dry_run=true`.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from omegaconf import OmegaConf

from tatok_pipe.config.help import format_help
from tatok_pipe.config.schema import REQUIRED, Option, Section, Text, describe, find_nearest, name_value, show
from tatok_pipe.errors import EXIT_DONE, UserError

ConfigT = TypeVar("ConfigT")

_FLAGS = ("--help", "-h", "--print-config")
_YAML_NULLS = ("", "~", "null", "Null", "NULL")


def load_config(
    config_class: type[ConfigT],
    argv: list[str],
    *,
    prog: str,
    description: str,
    default_file: str | None = None,
) -> ConfigT:
    """The config that `argv` asks for: at most one CONFIG.yaml and any number of key=value and flags, in any order.

    Of two assignments to one key the later wins. `default_file` is read where no file is given. `--help` and
    `--print-config` print and leave with SystemExit(0). Raises UserError, with one line, for anything else.
    """
    root = describe(config_class)
    if "--help" in argv or "-h" in argv:
        print(format_help(root, prog=prog, description=description, default_file=default_file), flush=True)
        raise SystemExit(EXIT_DONE)
    path, assignments = _split_arguments(argv, root)
    path = path or default_file
    written = [_read_file(path, root)] if path else []
    config = _build(root, [*written, _read_assignments(assignments, root)])
    if "--print-config" in argv:
        print(to_yaml(config), end="", flush=True)
        raise SystemExit(EXIT_DONE)
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """The config as nested dicts of JSON types, in order of declaration."""
    return dataclasses.asdict(config)


def from_dict(config_class: type[ConfigT], mapping: Mapping[str, Any]) -> ConfigT:
    """The inverse of `to_dict`: as strict as `load_config`, and with JSON's types (the text "5" is no int).

    A missing key takes its default. Raises UserError.
    """
    root = describe(config_class)
    return _build(root, [_convert(_flatten(mapping, root), root)])


def to_yaml(config: Any) -> str:
    """The config as YAML that `load_config` reads back to an equal config."""
    return OmegaConf.to_yaml(to_dict(config))


def _split_arguments(argv: list[str], root: Section) -> tuple[str | None, list[tuple[str, str]]]:
    """`(path of the config file or None, [(key, text), ...])`."""
    path, assignments = None, []
    for argument in argv:
        key, equals, text = argument.partition("=")
        if argument in _FLAGS:
            continue
        if argument.startswith("-"):
            assignments.append((_read_flag(argument, root).path, "true"))
            continue
        if equals and "/" not in key:  # `runs/lr=1/config.yaml` is a file
            assignments.append((key, text))
            continue
        _check_file(argument, root)
        if path is not None:
            raise UserError(
                f"two config files, {path} and {argument}: give one, and what differs as key=value"
            )
        path = argument
    return path, assignments


def _read_flag(argument: str, root: Section) -> Option:
    """The option that a flag sets to true."""
    flags = root.flags()
    if argument in flags:
        return flags[argument]
    name, equals, text = argument.partition("=")
    if name in flags and equals:
        raise UserError(
            f"{show(argument)}: a flag takes no value; write {name}, or {flags[name].path}={show(text)}"
        )
    known = ["--help", "--print-config", *flags]
    nearest = find_nearest(name.lstrip("-"), [flag.lstrip("-") for flag in known])
    advice = f", did you mean --{nearest}?" if nearest else ""
    raise UserError(
        f"{show(argument)}: unknown flag{advice}; the flags are {', '.join(known[:-1])} and {known[-1]}, "
        "and options are written without dashes: key=value"
    )


def _check_file(path: str, root: Section) -> None:
    if os.path.isdir(path):
        raise UserError(f"{path}: a directory; expected the path of a YAML file")
    if os.path.exists(path):
        return
    if path in root.all_options():
        raise UserError(f"{path}: no value; write {path}=VALUE")
    if path.endswith((".yaml", ".yml")):
        raise UserError(f"{path}: no such file (a config file is read from the local disk)")
    raise UserError(f"{show(path)}: neither an existing config file nor key=value")


def _read_file(path: str, root: Section) -> dict[str, Any]:
    """The options that a YAML file sets, by dotted path."""
    _check_file(path, root)
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read as text: {error}; expected a YAML file of options, and data is given as key=value"
        ) from error
    try:
        tree = _parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{path}, {error}") from error
    if tree is not None and not isinstance(tree, dict):
        raise UserError(
            f"{path}: expected a mapping of options (key: value) at the top level, got {name_value(tree)}"
        )
    try:
        return _convert(_flatten(tree or {}, root), root)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _read_assignments(assignments: list[tuple[str, str]], root: Section) -> dict[str, Any]:
    """The options that key=value arguments set, by dotted path. Lists are read as YAML, others literally."""
    options = root.all_options()
    values: dict[str, Any] = {}
    for key, text in assignments:
        value: Any = None if text == "null" and key in options else Text(text)
        if value is not None and key in options and options[key].is_list:
            try:
                value = _parse_yaml(text)
            except ValueError:
                value = Text(text)  # refused below, with what was expected
        values |= _convert(_flatten({key: value}, root), root)
    return values


def _parse_yaml(text: str) -> Any:
    """YAML as dicts, lists, `Text` and None. Raises ValueError("line N: what is wrong")."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        return None if node is None else _read_node(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise ValueError(f"{line}not valid YAML: {error.problem or error.context}") from error
    except yaml.YAMLError as error:
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error
    except RecursionError:
        raise ValueError("not valid YAML: nested without end") from None


def _read_node(node: yaml.Node) -> Any:
    if isinstance(node, yaml.ScalarNode):
        is_plain = node.style is None
        return None if is_plain and node.value in _YAML_NULLS else Text(node.value)
    if isinstance(node, yaml.SequenceNode):
        return [_read_node(item) for item in node.value]
    tree: dict[str, Any] = {}
    for key_node, value_node in node.value:
        line = f"line {key_node.start_mark.line + 1}"
        if not isinstance(key_node, yaml.ScalarNode):
            raise ValueError(f"{line}: expected the name of an option as key")
        if key_node.value in tree:
            raise ValueError(f"{line}: {show(key_node.value)} is given twice; keep one")
        tree[key_node.value] = _read_node(value_node)
    return tree


def _flatten(tree: Mapping[str, Any], root: Section, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as {dotted path of an option: value}. A section without content sets nothing."""
    options = root.all_options()
    sections = {section.path: section for section in root.walk() if section.path}
    values: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}.{key}" if prefix else str(key)
        if path in options:
            found = {path: value}
        elif path in sections:
            found = _flatten_section(value, root, sections[path])
        else:
            nearest = find_nearest(path, sections if isinstance(value, Mapping | None) else options)
            advice = f"did you mean {nearest}?" if nearest else "--help lists every key"
            raise UserError(f"unknown key {show(path) or repr(path)}; {advice}")
        twice = found.keys() & values.keys()
        if twice:
            raise UserError(f"{min(twice)} is given twice; keep one")
        values |= found
    return values


def _flatten_section(value: Any, root: Section, section: Section) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        names = [option.path for option in section.options]
        names += [f"{child.path}.…" for child in section.sections]
        raise UserError(
            f"{section.path}={show(value)}: a section; set its options instead: {', '.join(names)}"
        )
    return _flatten(value, root, section.path)


def _convert(written: dict[str, Any], root: Section) -> dict[str, Any]:
    options = root.all_options()
    return {path: options[path].convert(value) for path, value in written.items()}


def _build(root: Section, written: Iterable[dict[str, Any]]) -> Any:
    """The config of the defaults and then the layers `written`, each {dotted path: value of its type}."""
    options = root.all_options()
    layers = list(written)
    defaults = {path: option.default for path, option in options.items()}
    for layer in layers:  # `???` in a file asks for a value: the default must not stand in for it
        defaults |= {path: REQUIRED for path, value in layer.items() if value == REQUIRED}
    merged = OmegaConf.merge(*(_nest(layer) for layer in (defaults, *layers)))
    missing = OmegaConf.missing_keys(merged)
    if missing:
        path = min(missing, key=list(options).index)
        raise UserError(f"{path}: no value given, expected {options[path].expected}; write {path}=VALUE")
    return _instantiate(root, OmegaConf.to_container(merged))


def _nest(values: Mapping[str, Any]) -> dict[str, Any]:
    """{"a.b": 1} as {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for path, value in values.items():
        *parents, name = path.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def _instantiate(section: Section, values: Any) -> Any:
    """The config object, inner sections first; what a class refuses is named with the section it is in."""
    arguments = {option.name: values[option.name] for option in section.options}
    for child in section.sections:
        arguments[child.name] = _instantiate(child, values.get(child.name, {}))
    try:
        return section.config_class(**arguments)
    except ValueError as error:
        message = " ".join(str(error).split())
        starts_with_name = re.split(r"\W", message, maxsplit=1)[0] in arguments
        joint = "." if starts_with_name else ": "
        raise UserError(f"{section.path}{joint}{message}" if section.path else message) from error
