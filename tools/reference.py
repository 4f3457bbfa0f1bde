"""Write the page of all commands with their options: python -m tools.reference [--write docs/reference.md]"""

from __future__ import annotations

import textwrap

from tatok_pipe.__main__ import COMMANDS, find_entry
from tatok_pipe.config.help import format_help
from tatok_pipe.config.schema import describe
from tools.pages import write_page

_INTRODUCTION = """# Reference

Made by `make docs-reference` from what `--help` says; change the options of a command
(`tatok_pipe/commands/<command>/options.py`, and the config classes that it takes from other rooms), not this page. What
the options are for is in [guide.md](guide.md).
"""


def make_page() -> str:
    """The whole page: a section per command, in the order in which `python -m tatok_pipe` lists them."""
    links = "\n".join(_item(f"[{name}](#{name}): {find_entry(name).summary}") for name in COMMANDS)
    return "\n".join([_INTRODUCTION, links, *(_section(name) for name in COMMANDS)]) + "\n"


def _item(text: str) -> str:
    return textwrap.fill(text, 120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def _section(name: str) -> str:
    command = find_entry(name)
    text = format_help(
        describe(command.config_class),
        prog=f"tatok_pipe.{name}",
        description=command.summary,
        default_file=None,
    )
    return f"\n## {name}\n\n```\n{text}\n```"


if __name__ == "__main__":
    write_page("tools.reference", __doc__, make_page)
