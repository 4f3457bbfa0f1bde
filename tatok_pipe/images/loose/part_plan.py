"""Loose images, wherever they were found, as the image shards that the rest of the program knows: parts of a list."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.loose.image_list import ListedFile, describe_part, load_list, write_list
from tatok_pipe.storage import ListedPart, ShardFile, SourceInfo


@dataclass(frozen=True)
class PartPlan:
    """The parts of a folder or manifest as they are now, their list, and whether it is another one than was there
    before."""

    list_bytes: bytes
    infos: dict[int, SourceInfo]  # of the parts that have files, by number
    is_new: bool
    note: str = ""  # what a user ought to know

    def shards(self, source: str, list_url: str) -> list[ShardFile]:
        """The parts as image shards, for a list that is at `list_url`."""
        root = storage.openable_url(source).rstrip("/")
        return [
            ShardFile(str(ListedPart(root, number, list_url)), info.size_bytes, info.etag, info.mtime_ns)
            for number, info in self.infos.items()
        ]


def plan_parts(
    source: str,
    samples: Sequence[str],
    find: Callable[[str], Sequence[tuple[ListedFile, int | None]]],
    *,
    classes: Sequence[str],
    class_names: Sequence[str] = (),
    list_url: str,
    images_per_part: int,
    note: str = "",
) -> PartPlan:
    """The parts of what is at `source`, given the list at `list_url`, where there is one. `samples` are all its images,
    each as `ListedFile.sample`, sorted; `find` has the files of one, each with its time as `describe_part` takes it.

    Parts are of `images_per_part` images; images that the list does not know make new parts, and one that is gone
    leaves its part. Raises UserError where the list is that of another source.
    """
    known = load_list(list_url)
    canonical = storage.canonical_url(source)
    if known is not None and known.source != canonical:
        raise UserError(
            f"{storage.redact(source)}: what is there was begun from {known.source}; give another output.url"
        )
    part_of = known.part_of if known else {}
    data = known.data if known else b""
    parts: list[list[str]] = [[] for _ in range(known.num_parts)] if known else []
    del known  # a million paths
    fresh: list[str] = []
    for sample in samples:
        (parts[part_of[sample]] if sample in part_of else fresh).append(sample)
    del part_of
    parts += [fresh[at : at + images_per_part] for at in range(0, len(fresh), images_per_part)]
    now_ns = time.time_ns()
    infos: dict[int, SourceInfo] = {}

    def listed() -> Iterator[list[ListedFile]]:
        for number, samples in enumerate(parts):
            found = [pair for sample in samples for pair in find(sample)]
            files = [file for file, _ in found]
            if files:
                infos[number] = describe_part(files, [time_ns for _, time_ns in found], now_ns=now_ns)
            yield files

    list_bytes = write_list(canonical, listed(), classes, class_names)
    return PartPlan(list_bytes, infos, list_bytes != data, note)
