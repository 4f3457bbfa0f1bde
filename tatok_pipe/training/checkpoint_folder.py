"""A training's checkpoints on disk: each a folder that every process writes its part of.

A part is files of any kind and `rank-<r>.json`, the manifest: names, sizes and SHA-256 of the files and of itself, and
what is no tensor (counters, place in the data, log). A folder is whole where the manifests of all its processes are
there and every file is what they say; anything else is told before a byte of it is read as tensors.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tatok_pipe import storage
from tatok_pipe.errors import RefusedError

FORMAT = 1
_NAME = re.compile(r"step-(\d{9})-([0-9a-f]{8})")
_READ_BYTES = 16 << 20


@dataclass(frozen=True, order=True)
class CheckpointName:
    """The folder of a checkpoint. Attempts differ, so that what one left behind never mixes with another's."""

    step: int
    attempt: str  # 8 hex digits

    def __str__(self) -> str:
        return f"step-{self.step:09d}-{self.attempt}"

    @classmethod
    def parse(cls, text: str) -> CheckpointName | None:
        match = _NAME.fullmatch(text)
        return cls(int(match[1]), match[2]) if match else None


class DamagedCheckpoint(Exception):
    """The folder is not whole; the message says what is wrong with it."""


def write_manifest(
    folder: Path, counters: dict[str, Any], extra: dict[str, Any], *, rank: int, num_ranks: int
) -> None:
    """Finish this process's part, whose files are in the local folder. `counters`, which has `num_steps_done`, and
    `extra` are JSON types."""
    manifest = {
        "format": FORMAT,
        "rank": rank,
        "num_ranks": num_ranks,
        "files": {
            path.name: {"bytes": path.stat().st_size, "sha256": _sha256(path)}
            for path in sorted(folder.iterdir())
        },
        "trainer": counters,
        "extra": extra,
    }
    # Last, so that a part without its manifest is one that was not finished.
    text = json.dumps(manifest | {"sha256": _digest(manifest)}, allow_nan=False)
    (folder / manifest_name(rank)).write_text(text)


def manifest_name(rank: int) -> str:
    """The file that makes the part of process `rank` whole."""
    return f"rank-{rank}.json"


def read_manifests(folder: Path) -> list[dict[str, Any]]:
    """Of a local folder, by rank. Raises DamagedCheckpoint where one is missing or not what was written."""
    found: list[dict[str, Any]] = []
    num_ranks = 1
    while len(found) < num_ranks:
        name = manifest_name(len(found))
        try:
            manifest = _parse_manifest(name, (folder / name).read_bytes())
        except FileNotFoundError:
            raise DamagedCheckpoint(f"{name} is missing: the checkpoint was not finished") from None
        num_ranks = manifest["num_ranks"]
        found.append(manifest)
    return found


def newest_manifest(url: str) -> dict[str, Any] | None:
    """Of process 0 and the newest checkpoint below the folder `url` that has it as it was written; None: there is none.

    Raises RefusedError where there is one of another layout.
    """
    for name in storage.list_folders(url):
        if name.startswith("step-") and CheckpointName.parse(name) is None:
            raise RefusedError(
                f"{storage.redact(storage.join(url, name))}: a checkpoint of an earlier version, which this one does "
                f"not read; remove {storage.redact(url)} to begin anew, or give another output.url"
            )
    for name in list_checkpoints(url):
        try:
            return _read_first(storage.join(url, str(name)))
        except DamagedCheckpoint:
            continue  # the workers go back to the one before
    return None


def list_checkpoints(url: str) -> list[CheckpointName]:
    """The checkpoints below the folder `url`, whole or not, newest first."""
    names = (CheckpointName.parse(name) for name in storage.list_folders(url))
    return sorted((name for name in names if name is not None), reverse=True)


@contextmanager
def fetched(url: str, folder: Path) -> Iterator[Path]:
    """A checked local copy of the checkpoint at `url` in `folder`, or the checkpoint itself where it is local.

    Raises DamagedCheckpoint where it is not whole, OSError where the storage does not answer.
    """
    filesystem, path = storage.open_filesystem(url)
    if storage.is_local(filesystem):
        _check(Path(path))
        yield Path(path)
        return
    folder.mkdir(parents=True)
    try:
        for name in storage.list_files(url):
            with storage.open_stream(storage.join(url, name)) as source, (folder / name).open("wb") as target:
                shutil.copyfileobj(source, target, _READ_BYTES)
        _check(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def prune(
    url: str, *, newest: CheckpointName, num_to_keep: int, passed_over: Collection[CheckpointName] = ()
) -> None:
    """Remove the checkpoints older than the newest `num_to_keep` whole ones; `newest` is the last that was begun.

    What a killed attempt began goes with its time. What was `passed_over` when this attempt began, and what is newer
    than `newest`, does not count, and goes as soon as there is a whole one. Only names are looked at: a folder counts
    as whole where it has a manifest of every process, so these must be the last that is written.
    """
    useless, num_whole = [], 0
    for name in list_checkpoints(url):
        place = storage.join(url, str(name))
        if name > newest or name in passed_over:
            useless.append(place)
        elif num_whole >= num_to_keep:
            storage.remove_folder(place)
        elif _has_all_manifests(set(storage.list_files(place)), place):
            num_whole += 1
    for place in useless if num_whole else []:
        storage.remove_folder(place)


def _has_all_manifests(files: set[str], url: str) -> bool:
    try:
        return all(manifest_name(rank) in files for rank in range(_read_first(url)["num_ranks"]))
    except DamagedCheckpoint:
        return False


def _read_first(url: str) -> dict[str, Any]:
    """The manifest of process 0."""
    name = manifest_name(0)
    try:
        return _parse_manifest(name, storage.read_bytes(storage.join(url, name)))
    except FileNotFoundError:
        raise DamagedCheckpoint(f"{name} is missing") from None


def _parse_manifest(name: str, data: bytes) -> dict[str, Any]:
    try:
        manifest = json.loads(data)
    except ValueError as error:
        raise DamagedCheckpoint(f"{name} cannot be read: {error}") from None
    found = manifest.get("format") if isinstance(manifest, dict) else None
    if found != FORMAT:
        raise DamagedCheckpoint(f"{name}: format {found}, expected {FORMAT}")
    if manifest.pop("sha256", None) != _digest(manifest):
        raise DamagedCheckpoint(f"{name} is not what was written")
    return manifest


def _check(folder: Path) -> None:
    for manifest in read_manifests(folder):
        for name, expected in manifest["files"].items():
            path = folder / name
            if not path.is_file():
                raise DamagedCheckpoint(f"{name} is missing")
            if path.stat().st_size != expected["bytes"]:
                raise DamagedCheckpoint(
                    f"{name} has {path.stat().st_size} bytes, was written with {expected['bytes']}"
                )
            if _sha256(path) != expected["sha256"]:
                raise DamagedCheckpoint(f"{name} is not what was written")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(manifest: dict[str, Any]) -> str:
    """The same before it is written and after it is read, and for every change another one."""
    return hashlib.sha256(json.dumps(manifest).encode()).hexdigest()
