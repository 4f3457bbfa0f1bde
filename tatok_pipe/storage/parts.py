"""How a part of loose images is written: `<source>#<number>`, the number in six digits or more. The source is what
gave the images: a folder, a manifest that lists them, or a tar of tars, each of which is a part.

Which images are in which part stands in a list of its own (`images/loose/image_list.py`). Where it has to be found, its
URL follows: `<source>#<number>#<URL of the list>`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

_PART = re.compile(r"(?P<source>.*?)#(?P<number>\d{6,})#(?P<list>\S+)", re.DOTALL)
_IN_TEXT = re.compile(r"(#\d{6,})#\S+")
_KEPT = (
    "/:@%?&=+,~!*'()[]$;"  # of the URL of a list; what else there is, spaces above all, is percent-encoded
)


@dataclass(frozen=True)
class ListedPart:
    """Part `number` of what is at `source`, as the list at `list_url` has it. Both are URLs to open."""

    source: str
    number: int
    list_url: str

    def __str__(self) -> str:
        return f"{self.name}#{quote(self.list_url.replace('%', '%25'), safe=_KEPT)}"

    @property
    def name(self) -> str:
        """The part without its list."""
        return f"{self.source}#{self.number:06d}"


def parse_part(url: str) -> ListedPart | None:
    """The part that `url` names; None where it names a file."""
    found = _PART.fullmatch(url) if "#" in url else None
    return found and ListedPart(found["source"], int(found["number"]), unquote(found["list"]))


def hide_lists(text: str) -> str:
    """A text with URLs, those of parts without the URLs of their lists."""
    return _IN_TEXT.sub(r"\1", text) if "#" in text else text
