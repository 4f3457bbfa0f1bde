"""Samples that were quarantined, out of their image shards into a folder, each a file, with the reasons beside."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

from tatok_pipe import storage
from tatok_pipe.commands.inspect_tokens.options import InspectTokensConfig
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS, UserError
from tatok_pipe.images.errors import DecodeError
from tatok_pipe.images.formats.signatures import find_format
from tatok_pipe.images.shard_errors import ShardError
from tatok_pipe.parallel import map_ahead
from tatok_pipe.records import Quarantined
from tatok_pipe.report.figures import count
from tatok_pipe.report.sources import read_images, source_limits
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.format import read_quarantine
from tatok_pipe.tokens.index import read_footer
from tatok_pipe.tokens.layout import QUARANTINE_DIRECTORY, SUFFIX, quarantine_url
from tatok_pipe.tokens.named_urls import open_named

logger = logging.getLogger("tatok_pipe.inspect_tokens")

LIST_FILE = "quarantine.jsonl"
_NUM_READERS = 4
_WITHOUT_IMAGE = "shard"  # the stage of samples that have no image, several, or one that is too large
_SUFFIXES = {"JPEG": "jpg", "TIFF": "tif"}
_MAX_NAME = 80  # characters of a key in the name of its file


@dataclass(frozen=True)
class _Exported:
    """What became of the quarantined samples of one token shard."""

    lines: list[dict[str, Any]]  # of LIST_FILE
    problem: str = ""  # why its image shard was not read

    @property
    def num_files(self) -> int:
        return sum(line["file"] is not None for line in self.lines)


def export_quarantined(config: InspectTokensConfig, folder: str) -> int:
    """Exit code. Raises UserError where there is no dataset, or the folder cannot be written."""
    dataset = TokenDataset(config.input.url, version=config.input.version)
    shown = storage.redact(folder)
    try:
        found = list(_export_all(dataset, folder, other_stores=config.input.other_stores))
        if not found:
            print(f"{storage.redact(dataset.url)}: nothing was quarantined", flush=True)
            return EXIT_DONE
        text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for each in found for line in each.lines)
        _write(text.encode(), storage.join(folder, LIST_FILE))
    except _NotWritten as error:
        raise UserError(
            f"quarantine.export={shown}: cannot be written ({error}); give another folder"
        ) from error
    num_samples, num_files = sum(len(each.lines) for each in found), sum(each.num_files for each in found)
    problems = [each.problem for each in found if each.problem]
    print(
        f"{shown}: {num_files:,} of {count(num_samples, 'quarantined sample')} of "
        f"{count(len(found), 'token shard')}, the reasons of all in {LIST_FILE}",
        flush=True,
    )
    if problems:
        logger.error("%d image shards could not be read: %s", len(problems), problems[0])
    return EXIT_FAILED_SHARDS if problems else EXIT_DONE


def _export_all(dataset: TokenDataset, folder: str, *, other_stores: bool) -> Iterator[_Exported]:
    files = storage.list_files(storage.join(dataset.url, QUARANTINE_DIRECTORY))
    names = [name for name in dataset.shards if name + SUFFIX in files]
    with ThreadPoolExecutor(_NUM_READERS, "export") as pool:
        yield from map_ahead(
            pool,
            lambda name: _export_shard(dataset, name, folder, other_stores=other_stores),
            names,
            max_items=_NUM_READERS,
        )


def _export_shard(dataset: TokenDataset, name: str, folder: str, *, other_stores: bool) -> _Exported:
    rows = read_quarantine(quarantine_url(dataset.url, name))
    source = read_footer(dataset.url, name, dataset.spec).source
    wanted = {row.key: number for number, row in reversed([*enumerate(rows)]) if row.stage != _WITHOUT_IMAGE}
    written: dict[int, str] = {}
    problem = ""
    try:
        url = open_named(source.url, dataset.url, other_stores=other_stores)
        for sample in read_images(url, source, wanted.keys(), source_limits(dataset.spec.encoding)):
            number = wanted[sample.key]
            file = f"{name}/{_file_name(number, sample.key, sample.image)}"
            _write(sample.image, storage.join(folder, file))
            written[number] = file
    except (OSError, ShardError, UserError) as error:
        problem = " ".join(storage.redact(str(error)).split())
    lines = [
        {"shard": name, "source": source.url, **asdict(row), **_tell_file(row, written.get(number), problem)}
        for number, row in enumerate(rows)
    ]
    return _Exported(lines, problem)


class _NotWritten(Exception):
    """It was the folder that failed, not the image shard."""


def _write(content: bytes, url: str) -> None:
    try:
        storage.publish_bytes(content, url, exclusive=False)
    except OSError as error:
        raise _NotWritten(" ".join(str(error).split())) from error


def _tell_file(row: Quarantined, file: str | None, problem: str) -> dict[str, str | None]:
    """Where the image is, below the folder; where there is none, why."""
    if file is not None:
        return {"file": file, "no_file": None}
    if row.stage == _WITHOUT_IMAGE:
        return {"file": None, "no_file": "the sample has no single image of a size that is read"}
    return {"file": None, "no_file": problem or "its image shard has no such sample any more"}


def _file_name(number: int, key: str, image: bytes) -> str:
    """A name that no other sample of the shard has, and that is one on every store."""
    try:
        kind = find_format(image)
        suffix = _SUFFIXES.get(kind, kind.lower())
    except DecodeError:
        suffix = "bin"
    return f"{number:06}-{re.sub(r'[^A-Za-z0-9._-]+', '_', key)[-_MAX_NAME:]}.{suffix}"
