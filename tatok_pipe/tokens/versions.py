"""The versions of a token dataset: which token shards it had at the end of each run or edit that changed it.

A version is known by the digest of the footers of its shards, and of the columns that were joined to them where some
were, and by a number, 1 for the first.
`_versions/<number>.json` says what was added and removed since its parent, so that all files together give the shards
of every version; each is created where none is, and never changed. A dataset on the way to a version has a digest and
no number. Token shards are not kept: a version can be read for as long as those that it names are there as they were.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.index_file import INDEX_SCHEMA, Index
from tatok_pipe.tokens.joined import read_joined
from tatok_pipe.tokens.layout import VERSIONS_DIRECTORY, to_json_file
from tatok_pipe.tokens.listing import LISTING_SCHEMA

FORMAT = 1
_FILE = re.compile(r"(\d{3,})\.json")
# Of the index what a footer says: neither its file's time nor that of its image shard.
_OF_FOOTER = [name for name in INDEX_SCHEMA.names if name not in (*LISTING_SCHEMA.names, "source_mtime_ns")]
_SHOWN_DIGITS = 12


@dataclass(frozen=True)
class Version:
    """Token shards that belong together."""

    number: int | None  # None: no run or edit has ended with them
    digest: str  # SHA-256 of the shards, 64 hex digits
    shards: Mapping[str, str] = field(repr=False)  # name -> SHA-256 of what its footer says
    columns: str = ""  # digest of the columns that were joined; empty where none were

    def __str__(self) -> str:
        name = "no recorded version" if self.number is None else f"version {self.number}"
        return f"{name} ({self.digest[:_SHOWN_DIGITS]})"

    def to_json(self) -> dict[str, Any]:
        """What is written down by those who make something of it."""
        return {"version": self.number, "digest": self.digest}


class BrokenVersions(UserError):
    """A file of `_versions/` does not say what it should, or one is missing."""

    advice = (
        f"put back what was there, or remove {VERSIONS_DIRECTORY}/: the tokens stay, and their versions are counted "
        "from 1 again"
    )

    def __init__(self, url: str, file: str, reason: str) -> None:
        super().__init__(f"{storage.redact(storage.join(url, file))}: {reason}; {self.advice}")
        self.file, self.reason = file, reason


def mark_footers(index: Index) -> dict[str, str]:
    """Token shard -> SHA-256 of what its footer says, 64 hex digits."""
    return {
        name: _digest([row[column] for column in _OF_FOOTER])
        for batch in index.table.to_batches(max_chunksize=1 << 14)
        for name, row in zip(batch["name"].to_pylist(), batch.to_pylist(), strict=True)
    }


def read_versions(url: str) -> list[Version]:
    """All recorded versions of the dataset at `url`, the first one first. Raises BrokenVersions."""
    versions: list[Version] = []
    for number, file in enumerate(_list_versions(url), 1):
        if file != _file_of(number):
            raise BrokenVersions(url, _file_of(number), "is missing, and a later version is there")
        versions.append(_read_version(url, number, versions[-1] if versions else None))
    return versions


def find_current(url: str, index: Index) -> Version:
    """What the dataset at `url` is, of which `index` is the index: the newest of its versions with these shards, else
    one without number."""
    return _find_current(index, read_versions(url), columns=read_joined(url).digest)


def find_version(url: str, number: int, index: Index) -> Version:
    """A version whose token shards are all in `index` as they were. Raises UserError where there is none of this
    number, or its shards are not there any more."""
    versions = read_versions(url)
    if not 1 <= number <= len(versions):
        known = f"it has 1 to {len(versions)}" if versions else "none of it was recorded yet"
        raise UserError(f"{storage.redact(url)}: has no version {number}; {known}")
    version = versions[number - 1]
    if told := tell_gone(version, index):
        now = _find_current(index, versions, columns=read_joined(url).digest)
        raise UserError(
            f"{storage.redact(url)}: {version} cannot be read any more, {told}; what is there now is {now}"
        )
    return version


def find_by_digest(url: str, digest: str) -> Version | None:
    """The newest recorded version with this digest, whether its token shards are there or not."""
    return next((version for version in read_versions(url)[::-1] if version.digest == digest), None)


def tell_gone(version: Version, index: Index) -> str:
    """Which shards of a version are not in `index` as they were, for people; empty where all are."""
    now = mark_footers(index)
    gone = sorted(name for name, mark in version.shards.items() if now.get(name) != mark)
    if not gone:
        return ""
    return (
        f"{len(gone)} of its {len(version.shards)} token shards are not there as they were (first {gone[0]})"
    )


def record_version(url: str, index: Index, *, by: str) -> Version:
    """Give the token shards of `index`, those of the dataset at `url`, a number, unless they are its newest version.

    `by` is the command that made them so. Of two that record at once each gets a number of its own.
    """
    versions, columns = read_versions(url), read_joined(url).digest
    while True:
        shards, parent = mark_footers(index), versions[-1] if versions else None
        digest = _digest_of(shards, columns)
        if parent is not None and parent.digest == digest:
            return parent
        before = parent.shards if parent else {}
        number = len(versions) + 1
        content = {
            "format": FORMAT,
            "version": number,
            "digest": digest,
            "parent": parent.digest if parent else None,
            "by": by,
            "num_shards": len(shards),
            "num_rows": index.total("num_rows"),
            "added": {name: mark for name, mark in shards.items() if before.get(name) != mark},
            "removed": {name: mark for name, mark in before.items() if shards.get(name) != mark},
            **({"columns": columns} if columns else {}),
        }
        if storage.publish_bytes(to_json_file(content), storage.join(url, _file_of(number)), exclusive=True):
            return Version(number, digest, shards, columns)
        versions.append(_read_version(url, number, parent))


def _find_current(index: Index, versions: list[Version], *, columns: str) -> Version:
    shards = mark_footers(index)
    digest = _digest_of(shards, columns)
    numbers = [version.number for version in versions if version.digest == digest]
    return Version(numbers[-1] if numbers else None, digest, shards, columns)


def _list_versions(url: str) -> list[str]:
    names = storage.list_files(storage.join(url, VERSIONS_DIRECTORY))
    numbers = sorted(int(match[1]) for name in names if (match := _FILE.fullmatch(name)))
    return [_file_of(number) for number in numbers]


def _file_of(number: int) -> str:
    return f"{VERSIONS_DIRECTORY}/{number:03}.json"


def _read_version(url: str, number: int, parent: Version | None) -> Version:
    file = _file_of(number)
    try:
        content = json.loads(storage.read_bytes(storage.join(url, file)))
        if content["format"] != FORMAT:
            raise ValueError(f"format {content['format']}, this program reads {FORMAT}")
        shards = {**parent.shards} if parent else {}
        if content["parent"] != (parent.digest if parent else None):
            raise ValueError("its parent is not the version before")
        for name, mark in content["removed"].items():
            if shards.pop(name, None) != mark:
                raise ValueError(f"removes {name}, which the version before has not so")
        shards |= content["added"]
        columns = content.get("columns", "")
        if content["digest"] != _digest_of(shards, columns):
            raise ValueError("its digest is not that of its token shards and columns")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        told = str(error) if type(error) is ValueError else f"{type(error).__name__}: {error}"
        raise BrokenVersions(url, file, f"is broken ({' '.join(told.split())})") from error
    return Version(number, content["digest"], shards, columns)


def _digest_of(shards: Mapping[str, str], columns: str) -> str:
    return _digest([shards, columns] if columns else shards)


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
