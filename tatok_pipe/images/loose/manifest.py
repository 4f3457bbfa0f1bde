"""Manifests: tables of images by their addresses, with what belongs to each, as corpora are published that hold none.

One is a Parquet file, or one of JSON lines (an object a line). The image of a row is at the address in its column
`image_url` or `url` (img2dataset's and LAION's), or `file_name` (Hugging Face's `metadata.jsonl`); addresses that are
no URLs are relative to the folder of the manifest. Everything else has the names that columns of image shards have.
Several are read as one.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.class_names import MAX_NAMES, are_names, difference_of_names
from tatok_pipe.images.fields import WITHOUT_LABELS
from tatok_pipe.images.limits import DEFAULT_LIMITS, ShardLimits
from tatok_pipe.images.loose.image_list import ListedFile
from tatok_pipe.images.loose.manifest_rows import Manifest, read_manifest
from tatok_pipe.images.loose.part_plan import PartPlan, plan_parts
from tatok_pipe.images.options import IMAGES_PER_PART

_TOGETHER = "manifests"  # what several are called that are read as one


def plan_manifests(
    urls: Sequence[str],
    *,
    list_url: str,
    images_per_part: int = IMAGES_PER_PART,
    limits: ShardLimits = DEFAULT_LIMITS,
    other_stores: bool = False,
    permission: str = "input.other_stores=true",
) -> PartPlan:
    """The parts of the manifests at `urls`, of all their images as one list, given the list at `list_url`, where there
    is one; as `plan_parts`, with the images sorted by key, for the source `source_of(urls)`.

    Stores are asked what they have of the images, web servers are not. Raises UserError for a manifest that cannot be
    used, with its row, for several that contradict one another, and, without `other_stores`, for one that names images
    in another store than its own; `permission` is how a user gives it.
    """
    source = source_of(urls)
    joined = _join([_Named(url, _read(url, source, limits)) for url in map(storage.openable_url, urls)])
    rows = joined.rows
    stores = _stores(source, joined)
    if not other_stores:
        _check_stores(source, joined, stores, permission)
    by_key = {row.key or "": number for number, row in enumerate(rows)}
    found = storage.find_named(
        row.url(source) for row, store in zip(rows, stores, strict=True) if store[0] not in ("http", "https")
    )

    def find(key: str) -> list[tuple[ListedFile, int | None]]:
        row, store = rows[by_key[key]], stores[by_key[key]]
        file = found.get(row.url(source))
        listed = replace(row, size_bytes=file.size_bytes if file else None, etag=file.etag if file else "")
        is_local = store == storage.LOCAL_STORE
        return [(listed, (file.mtime_ns if file else 0) if is_local else None)]

    return plan_parts(
        source,
        sorted(by_key),
        find,
        classes=joined.classes,
        class_names=joined.class_names,
        list_url=list_url,
        images_per_part=images_per_part,
        note=joined.note,
    )


def source_of(urls: Sequence[str]) -> str:
    """What the images of these manifests come from: the one manifest, and of several a name in the folder that they
    have in common, to which their addresses are relative. Raises UserError where they have none."""
    urls = [storage.openable_url(url) for url in urls]
    if len(urls) == 1:
        return urls[0]
    stores = {storage.store_of(url) for url in urls}
    if len(stores) > 1 or any("::" in url for url in urls):
        other = next((url for url in urls if storage.store_of(url) != storage.store_of(urls[0])), urls[-1])
        raise UserError(
            f"{storage.redact(urls[0])}: a manifest, and {storage.redact(other)} is in another store or within another "
            "file; expected manifests of one store, so copy them together"
        )
    return storage.join("/".join(os.path.commonprefix([_folders(url) for url in urls])) or "/", _TOGETHER)


def _folders(url: str) -> list[str]:
    return url.partition("?")[0].split("/")[:-1] if "://" in url else url.split("/")[:-1]


def _read(url: str, source: str, limits: ShardLimits) -> Manifest:
    if url == source:
        return read_manifest(url, limits)
    below = _folders(url)[len(_folders(source)) :]
    return read_manifest(url, limits, base=source, prefix="".join(f"{folder}/" for folder in below))


@dataclass(frozen=True)
class _Named:
    """A manifest, and where it is."""

    url: str
    manifest: Manifest


@dataclass(frozen=True)
class _Joined:
    """Several manifests as one; `places` has the row from which on each one's are, and its URL."""

    rows: list[ListedFile]
    places: list[tuple[int, str]]
    classes: tuple[str, ...]
    class_names: tuple[str, ...]
    note: str

    def place(self, number: int) -> tuple[str, str]:
        """The manifest that a row is in, as it is shown, and "row 3", counted there from 1 on."""
        start, url = next(place for place in reversed(self.places) if place[0] <= number)
        return storage.redact(url), f"row {number - start + 1}"


def _join(named: Sequence[_Named]) -> _Joined:
    """Raises UserError where they contradict one another."""
    rows: list[ListedFile] = []
    places: list[tuple[int, str]] = []
    for each in named:
        places.append((len(rows), each.url))
        rows += each.manifest.rows
    classes = tuple(sorted({name for each in named for name in each.manifest.classes}))
    called = [each for each in named if each.manifest.class_names]
    joined = _Joined(
        rows,
        places,
        classes,
        called[0].manifest.class_names if called else (),
        "; ".join(dict.fromkeys(each.manifest.note for each in named if each.manifest.note)),
    )
    if len(named) > 1:
        _check_keys(joined)
        _check_classes(named, called, classes)
    return joined


def _check_keys(joined: _Joined) -> None:
    seen: dict[str | None, int] = {}
    for number, row in enumerate(joined.rows):
        if (other := seen.setdefault(row.key, number)) != number:
            manifest, place = joined.place(number)
            raise UserError(
                f"{manifest}: {place}: has the key {row.key!r}, as {' of '.join(joined.place(other)[::-1])} has; give "
                "every row a column key of its own"
            )


def _check_classes(named: Sequence[_Named], called: Sequence[_Named], classes: Sequence[str]) -> None:
    with_names = next((each for each in named if each.manifest.classes), None)
    with_numbers = next((each for each in named if each.manifest.has_numbers), None)
    if with_names and with_numbers:
        raise UserError(
            f"{storage.redact(with_names.url)}: labels are names of classes, and numbers in "
            f"{storage.redact(with_numbers.url)}; write one kind, or {WITHOUT_LABELS}"
        )
    if classes and not are_names(classes):
        raise UserError(
            f"{storage.redact(named[0].url)}: with the other manifests {len(classes)} names of classes, expected at "
            f"most {MAX_NAMES}; write numbers, or {WITHOUT_LABELS}"
        )
    for each in called:
        if each.manifest.class_names != called[0].manifest.class_names:
            told = difference_of_names(each.manifest.class_names, called[0].manifest.class_names)
            raise UserError(
                f"{storage.redact(each.url)}: its classes have other names than those of "
                f"{storage.redact(called[0].url)} ({told}); give them an output.url each, or {WITHOUT_LABELS}"
            )


def _stores(source: str, joined: _Joined) -> list[tuple[str, ...]]:
    """The store of every image. Raises UserError where one is of no protocol that is known."""
    own = storage.store_of(source)
    known: dict[str, tuple[str, ...]] = {}
    stores = []
    for number, row in enumerate(joined.rows):
        address = row.path
        if not storage.names_its_place(address):
            stores.append(own)
            continue
        # Asking is slow, and hosts and buckets are few.
        place = "/" if address.startswith("/") else address
        if "://" in address and "::" not in address:
            place = "/".join(address.split("/", 3)[:3])
        if place not in known:
            try:
                known[place] = storage.store_of(address)
            except UserError as error:
                raise UserError(f"{': '.join(joined.place(number))}: {error}") from error
        stores.append(known[place])
    return stores


def _check_stores(source: str, joined: _Joined, stores: Sequence[tuple[str, ...]], permission: str) -> None:
    own = storage.store_of(source)
    others = [number for number, store in enumerate(stores) if store != own]
    if others:
        manifest, place = joined.place(others[0])
        raise UserError(
            f"{manifest}: {len(others)} of {len(joined.rows)} images are in another store than the manifest, first "
            f"{place}: {storage.redact(joined.rows[others[0]].path)}; {permission} opens them"
        )
