"""The text of `--help`, made from the described config class."""

from __future__ import annotations

import textwrap

from tatok_pipe.config.schema import REQUIRED, Option, Section, show

_COLUMNS = 100
_MAX_KEY_COLUMN = 36


def format_help(root: Section, *, prog: str, description: str, default_file: str | None) -> str:
    """The text of `--help`: every key with type, default, unit and help, by section, in 100 columns."""
    options = root.all_options()
    example = next(
        (o for o in options.values() if o.kind in (int, float) and isinstance(o.default, int | float)), None
    )
    note = "Defaults < CONFIG.yaml < key=value: what comes later wins, and an unknown key is an error."
    if default_file:
        note += f" Without CONFIG.yaml, {default_file} is read."
    flags = {
        "--help, -h": "print this and stop",
        "--print-config": "print the resolved configuration as YAML, ready to be edited, and stop",
        **{name: f"same as {option.path}=true, below" for name, option in root.flags().items()},
    }
    usage = " [--flag ...]" if root.flags() else ""
    lines = [f"usage: python -m {prog} [CONFIG.yaml] [key=value ...]{usage}", ""]
    lines += textwrap.wrap(description, _COLUMNS) + [""] + textwrap.wrap(note, _COLUMNS)
    if example:
        lines.append(f"Example: python -m {prog} my.yaml {example.path}={show(example.default)}")
    lines += ["", "flags:", *_format_flags(flags)]
    width = min(_MAX_KEY_COLUMN, max((len(path) for path in options), default=0)) + 4
    for section in root.walk():
        if not section.options:
            continue
        title = f"{section.path or 'options'}: {section.help}".strip()
        lines += ["", *textwrap.wrap(title, _COLUMNS)]
        for option in section.options:
            lines += _format_option(option, width)
    return "\n".join(lines)


def _format_flags(flags: dict[str, str]) -> list[str]:
    """`--flag  what it does`, what it does wrapped and indented."""
    width = max(map(len, flags)) + 4
    lines = []
    for name, text in flags.items():
        first, *more = textwrap.wrap(text, _COLUMNS - width, break_on_hyphens=False)
        lines += [f"  {name}".ljust(width) + first, *(" " * width + line for line in more)]
    return lines


def _format_option(option: Option, width: int) -> list[str]:
    """`key  type = default (unit; bounds)` and below it, wrapped and indented, the help and the choices."""
    if option.default == REQUIRED:
        head = f"{option.type_name}, required"
    else:
        head = f"{option.type_name} = {show(option.default) or repr('')}"
    if notes := "; ".join(filter(None, (option.unit, option.limits))):
        head += f" ({notes})"
    text = option.help
    if option.choices:
        text = f"{text.rstrip('.')}. One of: {', '.join(option.choices)}."
    lines = [
        " " * width + line
        for part in (head, text)
        for line in textwrap.wrap(part, _COLUMNS - width, break_on_hyphens=False)
    ]
    key = f"  {option.path}"
    if len(key) + 2 > width:
        return [key, *lines]
    return [key + lines[0][len(key) :], *lines[1:]]
