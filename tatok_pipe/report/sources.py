"""The rows that the report shows or samples, and the images they came from, where those are still there.

Rows come from the token shards, images from the image shards that their footers name: both are streamed, and
no further than needed.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.fields import IGNORABLE
from tatok_pipe.images.limits import DEFAULT_LIMITS, ShardLimits
from tatok_pipe.images.shard_errors import InterleavedShard, ShardError
from tatok_pipe.images.source import open_samples, shard_info
from tatok_pipe.records import ImageSample, TokenRecord
from tatok_pipe.report.figures import SourceSizes
from tatok_pipe.report.inventory import Inventory, Shard
from tatok_pipe.report.selection import SAMPLE_IMAGES, Pick, plan_sample
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.format import ShardSource
from tatok_pipe.tokens.named_urls import open_named

_JPEG = b"\xff\xd8\xff"
_NUM_READERS = 4
_PART_BYTES = 4 << 20  # a reader often stops within the first parts
_NUM_PARTS_AHEAD = 4


@dataclass(frozen=True)
class Shown:
    """A row of the gallery and its source image; where that is missing, `problem` says why."""

    record: TokenRecord
    image: bytes | None = None
    problem: str = ""


@dataclass(frozen=True)
class Sample:
    """Everything that the report takes from rows and image shards."""

    shown: dict[Pick, Shown]
    sizes: SourceSizes


@dataclass
class _Wish:
    """What is asked of one shard."""

    picks: set[Pick] = field(default_factory=set)
    with_originals: bool = False
    num_sampled: int = 0  # rows, from the first one on


@dataclass
class _Found:
    """What one shard gave."""

    records: dict[Pick, TokenRecord] = field(default_factory=dict)
    sampled: list[TokenRecord] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)  # by key
    sizes: dict[str, tuple[int, bool]] = field(default_factory=dict)  # by key: bytes, is JPEG
    problem: str = ""


def read_sample(
    dataset: TokenDataset,
    inventory: Inventory,
    picks: Sequence[Pick],
    *,
    max_image_shards: int,
    other_stores: bool = False,
) -> Sample:
    """Read the picked rows with their images, and the source sizes of at most SAMPLE_IMAGES rows.

    At most `max_image_shards` image shards are opened; those that are in another store than the dataset only with
    `other_stores`. A source that is gone, changed or unreadable is no
    error: the result says what is missing and why.
    """
    originals, sampled = plan_sample(
        len(inventory.shards), [pick.shard for pick in picks], max_shards=max_image_shards
    )
    wishes: dict[int, _Wish] = {}
    for pick in picks:
        wishes.setdefault(pick.shard, _Wish()).picks.add(pick)
    for shard in originals:
        wishes[shard].with_originals = True
    for shard in sampled:
        wishes.setdefault(shard, _Wish()).num_sampled = SAMPLE_IMAGES // len(sampled)

    limits = source_limits(dataset.spec.encoding)
    order = sorted(wishes)
    with ThreadPoolExecutor(_NUM_READERS) as pool:
        found = dict(
            zip(
                order,
                pool.map(
                    lambda i: _read_shard(dataset, inventory.shards[i], wishes[i], limits, other_stores),
                    order,
                ),
                strict=True,
            )
        )
    shown = {}
    for pick in picks:
        parts = found[pick.shard]
        record = parts.records[pick]
        image, problem = parts.images.get(record.key), parts.problem
        if not wishes[pick.shard].with_originals:
            problem = f"input.image_shards={max_image_shards} allows no more image shards to be read"
        elif image is None:
            problem = problem or f"its image shard has no sample {record.key!r} any more"
        shown[pick] = Shown(record, image, "" if image is not None else problem)
    return Sample(shown, _gather_sizes([found[shard] for shard in sampled], inventory))


def _read_shard(
    dataset: TokenDataset, shard: Shard, wish: _Wish, limits: ShardLimits, other_stores: bool
) -> _Found:
    found = _Found()
    _read_rows(dataset, shard, wish, found)
    wanted = {record.key for record in found.records.values()} if wish.with_originals else set()
    measured = {record.key for record in found.sampled}
    if wanted or measured:
        try:
            url = open_named(shard.source.url, dataset.url, other_stores=other_stores)
            for sample in read_images(url, shard.source, wanted | measured, limits):
                if sample.key in wanted:
                    found.images[sample.key] = sample.image
                found.sizes[sample.key] = len(sample.image), sample.image.startswith(_JPEG)
        except (OSError, ShardError, UserError) as error:
            found.problem = " ".join(storage.redact(str(error)).split())
    return found


def _read_rows(dataset: TokenDataset, shard: Shard, wish: _Wish, found: _Found) -> None:
    wanted = {(pick.kept, pick.ordinal): pick for pick in wish.picks}
    seen: Counter[int] = Counter()
    for record in dataset.rows(shard.name):
        if len(found.records) == len(wanted) and len(found.sampled) == wish.num_sampled:
            return
        kept = len(record.patch_codes)
        if (kept, seen[kept]) in wanted:
            found.records[wanted[kept, seen[kept]]] = record
        seen[kept] += 1
        if len(found.sampled) < wish.num_sampled:
            found.sampled.append(record)


def read_images(url: str, source: ShardSource, keys: Set[str], limits: ShardLimits) -> Iterator[ImageSample]:
    """The first image with each of these keys, where there is one, in an image shard that is to be as `source` says.
    Reads no further than needed. Raises OSError, ShardError or UserError where it is not, or cannot be read."""
    info = shard_info(url)
    if info.size_bytes != source.size_bytes or info.etag != source.etag:
        raise OSError(f"{source.url}: has changed since it was tokenized")
    missing = {*keys}
    for regroup in (False, True):
        try:
            with open_samples(
                url,
                info=info,
                limits=limits,
                regroup=regroup,
                part_bytes=_PART_BYTES,
                num_parallel=_NUM_PARTS_AHEAD,
            ) as samples:
                for sample in samples:
                    if isinstance(sample, ImageSample) and sample.key in missing:
                        missing.remove(sample.key)
                        yield sample
                    if not missing:
                        return
            return
        except InterleavedShard:  # an image that was met is what it was
            continue


def _gather_sizes(found: Sequence[_Found], inventory: Inventory) -> SourceSizes:
    rows = [
        (record.num_tokens, parts.sizes[record.key], record.width * record.height)
        for parts in found
        for record in parts.sampled
        if record.key in parts.sizes
    ]
    return SourceSizes(
        num_tokens=np.array([tokens for tokens, _, _ in rows], np.int64),
        num_bytes=np.array([size for _, (size, _), _ in rows], np.int64),
        num_pixels=np.array([pixels for _, _, pixels in rows], np.int64),
        is_jpeg=np.array([is_jpeg for _, (_, is_jpeg), _ in rows], np.bool_),
        num_shards=sum(bool(parts.sizes) for parts in found),
        is_complete=len(rows) == inventory.statistics.num_images,
        problems=tuple(parts.problem for parts in found if parts.problem),
    )


def source_limits(encoding: dict[str, Any]) -> ShardLimits:
    """What decides which samples a shard has, as when it was read; that it is whole and not too large is settled."""
    return ShardLimits(
        max_member_bytes=encoding.get("max_member_bytes", DEFAULT_LIMITS.max_member_bytes),
        max_members=sys.maxsize,
        max_shard_bytes=sys.maxsize,
        max_page_bytes=sys.maxsize,
        require_end_marker=False,
        ignore=list(IGNORABLE),
    )
