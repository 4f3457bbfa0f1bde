"""Image formats: every generated file is decoded, and each kind is a row that says what became of its files."""

from __future__ import annotations

import textwrap
from itertools import combinations

from tatok_pipe.images.decode import DecodeError, decode_image
from tatok_pipe.images.formats.png import MAX_INFLATED_BYTES
from tatok_pipe.images.formats.signatures import NAMES_NOT_READ
from tatok_pipe.images.formats.table import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS
from tatok_pipe.images.options import PreprocessConfig
from tests.image_files.all import all_cases
from tests.image_files.case import SIDE, Case

_TITLES = {"PPM": "PBM, PGM, PPM", "WEBP": "WebP"}
_TEXT = """## Images

A file is known by its first bytes, never by its name. Of every format only the kinds of pixels are read that come out
right: generated files of all of these kinds ({num_files} in all) are compared with what they were made of and with
those of OpenCV, libvips, and imagecodecs or tifffile that read the format (`tests/images/test_other_decoders.py`).
What Pillow or its libraries would show wrongly is refused as `UnsupportedMode`, whatever is in the pixels and
wherever the crop is.

- **Several pictures in a file**: the first frame, page or image; of an animated PNG the default image.
- **Transparent is white**, in every format, and so is what the first frame of an animation leaves uncovered of its
  canvas. A BMP whose alpha is 0 everywhere is opaque.
- **Orientation** is that of EXIF (and of AVIF's own boxes). One that stands in XMP alone, or in a text chunk of a PNG,
  is ignored, as other decoders do.
- **Colours**: an ICC profile of grey, RGB or CMYK is applied; one that is broken or of another kind of pixels is
  ignored, and so are gamma, chromaticities and HDR signals of PNG, AVIF and BMP. Inks without a profile are multiplied
  out.
- **16 bits** are the range from 0 to 65535, whatever of it is used; they become 8.
- **PNG**: text and profile may take {num_mib} MiB when inflated, then `TooManyBytes`. A wrong checksum in a chunk that
  is not critical makes it as if it were not there; in a critical one it is `Corrupt`.
- **AVIF** needs a Pillow that is built with it, as the wheels are; elsewhere it is `UnsupportedFormat`. Which one a
  dataset was made with is part of its settings.
- `Truncated`: the file ends before its pixels. `Corrupt`: it contradicts itself. `NotAnImage`: no known first bytes.
  `EmptyFile`, `TooManyPixels` (`max_pixels`), `OutOfMemory`: as they say.
{lists}
"""


def _extensions(names: tuple[str, ...]) -> str:
    return " ".join(f"`.{name}`" for name in names)


def _item(text: str) -> str:
    return textwrap.fill(text, 120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False)


def image_section() -> str:
    cases = all_cases()
    text = _TEXT.format(
        num_files=f"{len(cases):,}",
        num_mib=MAX_INFLATED_BYTES >> 20,
        lists="\n".join(
            [
                _item(f"`UnsupportedFormat`, with its name: {', '.join(NAMES_NOT_READ)}."),
                _item(f"Members of a tar that are taken as images: {_extensions(IMAGE_EXTENSIONS)}."),
                _item(
                    f"A sample with no other image than one of these is `UnsupportedFormat` too: "
                    f"{_extensions(UNREAD_EXTENSIONS)}."
                ),
            ]
        ),
    )
    kinds: dict[str, dict[str, list[tuple[Case, str]]]] = {}
    for case in cases:
        kinds.setdefault(case.format, {}).setdefault(case.kind, []).append((case, _outcome(case)))
    parts = [text]
    for format, rows in kinds.items():
        parts.append(f"### {_TITLES.get(format, format)}\n\n| kind | files | |\n|---|---|---|")
        parts += [f"| {kind} | {len(found)} | {_describe(found)} |" for kind, found in rows.items()]
        parts.append("")
    return "\n".join(parts)


def _outcome(case: Case) -> str:
    """The error class; nothing where it is read."""
    try:
        decode_image(case.data, PreprocessConfig(image_size=SIDE))
    except DecodeError as error:
        return error.error
    return ""


def _describe(found: list[tuple[Case, str]]) -> str:
    refused = {error for _, error in found if error}
    if not refused:
        return "read"
    words = ", ".join(f"`{error}`" for error in sorted(refused))
    if all(error for _, error in found):
        return words
    read = [_features(case) for case, error in found if not error]
    left = [_features(case) for case, error in found if error]
    return f"read, but {words}: {'; '.join(_reasons(read, left))}"


def _features(case: Case) -> frozenset[str]:
    return frozenset(case.detail.split(", "))


def _reasons(read: list[frozenset[str]], refused: list[frozenset[str]]) -> list[str]:
    """The fewest features, else pairs of them, that every refused file has and no file that is read."""
    reasons: list[str] = []
    for size in (1, 2, 3):
        counts: dict[tuple[str, ...], int] = {}
        for features in refused:
            for group in combinations(sorted(features), size):
                if not any(features >= set(group) for features in read):
                    counts[group] = counts.get(group, 0) + 1
        while counts:
            group = max(counts, key=lambda group: (counts[group], group))
            covered = [features for features in refused if features >= set(group)]
            if covered:
                reasons.append(" with ".join(group))
                refused = [features for features in refused if features not in covered]
            del counts[group]
    return reasons
