"""The page, of sections: each is a module with a function that tries things and returns Markdown from `##` on."""

from __future__ import annotations

from collections.abc import Callable

from tests.inputs_table.fields import section as field_section
from tests.inputs_table.images import image_section
from tests.inputs_table.jpegs import jpeg_section

SECTIONS: tuple[Callable[[], str], ...] = (image_section, jpeg_section, field_section)

_HEAD = """# What may go in

Made by `make docs-inputs`, which tries all of it; change what it tries (`tests/inputs_table/`), not this page.
Whatever is refused is a row of the quarantine file, with the word given here as its error class and one line that says
what was found and what to do.
"""


def make_page() -> str:
    return "\n".join([_HEAD, *(section().strip() + "\n" for section in SECTIONS)])
