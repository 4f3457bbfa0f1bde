"""Names of classes, by label: as Parquet files of Hugging Face datasets and lists of users tell them, and as they are
looked up."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

_METADATA = b"huggingface"  # JSON that the package datasets writes beside the schema
MAX_NAMES = 1 << 16


def names_of_metadata(metadata: Mapping[bytes, bytes] | None, column: str) -> tuple[str, ...]:
    """Names by label of a column of type ClassLabel (of datasets), or of a list of such; none where the key-value
    metadata of a file does not tell them."""
    try:
        found = json.loads((metadata or {})[_METADATA])["info"]["features"][column]
    except (KeyError, TypeError, ValueError):
        return ()
    feature: Any = found
    while isinstance(feature, Mapping) and "feature" in feature:  # Sequence, List, LargeList
        feature = feature["feature"]
    if isinstance(feature, list) and len(feature) == 1:
        feature = feature[0]
    names: Any = feature.get("names") if isinstance(feature, Mapping) else None
    return tuple(names) if are_names(names) else ()


def are_names(names: Any) -> bool:
    """Whether this is a list of at most MAX_NAMES names of classes: text in one line, and not empty."""
    return (
        isinstance(names, list | tuple)
        and len(names) <= MAX_NAMES
        and all(isinstance(name, str) and name.strip() and len(name.splitlines()) == 1 for name in names)
    )


def parse_names(text: str) -> tuple[str, ...]:
    """A list with the name of a class a line, the first that of class 0. Raises ValueError where it is none."""
    names = text.removesuffix("\n").split("\n")
    names = [name.rstrip("\r") for name in names]
    if not are_names(names):
        empty = [number for number, name in enumerate(names, 1) if not name.strip()]
        reason = f"line {empty[0]} is empty" if empty else f"{len(names)} lines"
        raise ValueError(f"{reason}; expected the name of a class in each of 1 to {MAX_NAMES} lines")
    return tuple(names)


def find_class(name: str, names: Iterable[str]) -> list[int]:
    """The labels that a name may mean: those of that very name, else those that have it, whatever its case, as the
    whole or as one of the parts between commas ("tabby, tabby cat")."""
    known = list(names)
    exact = [label for label, each in enumerate(known) if each == name]
    wanted = name.strip().casefold()

    def has(each: str) -> bool:
        return wanted in (each.strip().casefold(), *(part.strip().casefold() for part in each.split(",")))

    return exact or [label for label, each in enumerate(known) if has(each)]


def join_names(lists: Sequence[Sequence[str]]) -> tuple[tuple[str, ...], list[tuple[int, ...]]]:
    """Classes of several lists, those of one name as one: the names of all, the first list as it is and then what each
    other one adds, and for each list the labels that its own become. Of a name that a list has twice, as two birds and
    cranes do, the second is the second of another list."""
    joined: dict[tuple[str, int], int] = {}
    maps = []
    for names in lists:
        seen: Counter[str] = Counter()
        labels = []
        for name in names:
            labels.append(joined.setdefault((name, seen[name]), len(joined)))
            seen[name] += 1
        maps.append(tuple(labels))
    return tuple(name for name, _ in joined), maps


def difference_of_names(mine: Sequence[str], theirs: Sequence[str]) -> str:
    """The first difference of two lists of class names, as "class 3 is tabby, not beagle"."""
    for number, (one, other) in enumerate(zip_longest(mine, theirs)):
        if one != other:
            return f"class {number} is {one or 'without a name'}, not {other or 'without a name'}"
    return "none"
