"""Image shards of any kind into WebDataset tars or Parquet files, one each: the images as they are, byte for byte.

<url>/_packed.json             layout and names of classes; written first
<url>/names.txt                names of classes, a line each, as input.class_names=@names.txt takes them
<url>/_sources/<name>.json     what a shard was made from; written before it
<url>/_quarantine/<name>.parquet  the samples that are in no shard, with their reasons; written before it
<url>/<name>.tar or .parquet   its arrival is the commit
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Protocol

import pyarrow as pa
import pyarrow.parquet as pq
from webdataset.writer import TarWriter

from tatok_pipe import storage
from tatok_pipe.commands.pack_images.options import LAYOUTS
from tatok_pipe.encoding.shard_tokenizer import check_images
from tatok_pipe.images.errors import DecodeError
from tatok_pipe.images.formats.signatures import find_format
from tatok_pipe.images.formats.table import FORMATS
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.shard_errors import InterleavedShard, ShardError
from tatok_pipe.images.source import hash_shard, open_samples, shard_info
from tatok_pipe.records import ImageSample, Quarantined
from tatok_pipe.runs.activity import Activity, Track
from tatok_pipe.runs.shard_work import ShardResult, describe_error
from tatok_pipe.storage.temporary import temporary_folder
from tatok_pipe.tokens.format import ShardSource, token_shard_name, write_quarantine

logger = logging.getLogger(__name__)

PACKED_FILE, NAMES_FILE = "_packed.json", "names.txt"
SOURCES_DIRECTORY, QUARANTINE_DIRECTORY = "_sources", "_quarantine"
_EXTENSIONS = {each.name: each.extensions[0] for each in FORMATS}
_ROWS_PER_GROUP = 100  # what viewers of Parquet files with images can load at once


def shard_url(output_url: str, name: str, layout: str) -> str:
    """Where the packed shard of this name is."""
    return storage.join(output_url, name + LAYOUTS[layout])


def source_url(output_url: str, name: str) -> str:
    """Where it is told what that shard was made from."""
    return storage.join(output_url, SOURCES_DIRECTORY, name + ".json")


@dataclass(frozen=True)
class PackJob:
    """What every shard of a run has in common."""

    entry: ClassVar[str] = "pack_images"
    output_url: str
    layout: str
    limits: ShardLimits
    class_names: tuple[str, ...] = ()

    def start_worker(self, *, device: str, num_threads: int) -> ShardPacker:
        return ShardPacker(self)


class ShardPacker:
    """Packs shards, as many at once as it is given."""

    def __init__(self, job: PackJob) -> None:
        self._job = job
        self._stopping = threading.Event()
        self.activity = Activity(num_lanes=1)

    def __call__(self, url: str, *, max_tries: int) -> ShardResult:
        start = time.monotonic()
        with self.activity.follow(url) as track:
            if self._stopping.is_set():
                return ShardResult(url, was_begun=False)
            track.begin()
            try:
                result = self._pack(url, track)
            except Exception as error:
                if not isinstance(error, (OSError, ShardError)):
                    logger.error("%s", storage.redact(url), exc_info=error)
                result = ShardResult(url, error=describe_error(error))
        return replace(result, seconds=time.monotonic() - start)

    def stop_taking(self) -> None:
        self._stopping.set()

    def _pack(self, url: str, track: Track) -> ShardResult:
        try:
            return self._pack_once(url, track, regroup=False)
        except InterleavedShard as error:
            logger.warning("%s; reading it twice", storage.redact(str(error)))
            return self._pack_once(url, track, regroup=True)

    def _pack_once(self, url: str, track: Track, *, regroup: bool) -> ShardResult:
        job, info, name = self._job, shard_info(url), token_shard_name(url)
        notices, refusals = Notices(), Notices()
        quarantined: list[Quarantined] = []
        num_images = bytes_read = 0
        with temporary_folder() as folder:
            path = os.path.join(folder, name)
            with (
                open_samples(
                    url,
                    info=info,
                    limits=job.limits,
                    regroup=regroup,
                    notices=notices,
                    class_names=job.class_names,
                ) as samples,
                _open_writer(job.layout, path, job.class_names) as writer,
            ):
                for sample in samples:
                    bad = writer.write(sample) if isinstance(sample, ImageSample) else sample
                    if bad is None:
                        num_images += 1
                    else:
                        quarantined.append(bad)
                        refusals.add(bad.error, f"{bad.key!r}: {bad.message}")
                    bytes_read += len(sample.image) if isinstance(sample, ImageSample) else sample.num_bytes
                    share = min(1.0, bytes_read / max(1, info.size_bytes))
                    track.advance(images=bad is None, tokens=0, quarantined=bad is not None, share=share)
            check_images(storage.redact(url), num_images, refusals)
            source = ShardSource(storage.canonical_url(url), info.size_bytes, info.etag)
            if not info.etag:
                source = replace(source, sha256=hash_shard(url))
            if (now := shard_info(url)) != info or now.mtime_ns != info.mtime_ns:
                raise OSError(f"{storage.redact(url)}: changed while it was read")
            told = json.dumps(asdict(source), indent=1).encode()
            storage.publish_bytes(told, source_url(job.output_url, name), exclusive=False)
            if quarantined:
                rows = os.path.join(folder, "quarantine.parquet")
                write_quarantine(rows, quarantined)
                target = storage.join(job.output_url, QUARANTINE_DIRECTORY, f"{name}.parquet")
                storage.publish_file(rows, target, exclusive=False)
            storage.publish_file(path, shard_url(job.output_url, name, job.layout), exclusive=True)
            bytes_out = os.path.getsize(path)
        return ShardResult(
            url,
            num_images=num_images,
            num_quarantined=len(quarantined),
            bytes_in=info.size_bytes,
            bytes_out=bytes_out,
            notices=notices.all,
            refusals=refusals.all,
        )


class _Writer(Protocol):
    def write(self, sample: ImageSample) -> Quarantined | None:
        """Take in a sample; the quarantine row of one whose image is of no known format."""
        ...

    def __enter__(self) -> _Writer: ...

    def __exit__(self, *_: object) -> None: ...


def _open_writer(layout: str, path: str, class_names: Sequence[str]) -> _Writer:
    return _ParquetShard(path, class_names) if layout == "parquet" else _TarShard(path)


def _find_extension(sample: ImageSample) -> str | Quarantined:
    try:
        return _EXTENSIONS[find_format(sample.image)]
    except DecodeError as error:
        return Quarantined(sample.key, "decode", error.error, str(error), len(sample.image))


class _TarShard:
    def __init__(self, path: str) -> None:
        self._writer = TarWriter(path, encoder=False, mtime=0, compress=False)

    def write(self, sample: ImageSample) -> Quarantined | None:
        extension = _find_extension(sample)
        if isinstance(extension, Quarantined):
            return extension
        # A key ends at the first dot of its last part.
        folder, slash, name = sample.key.rpartition("/")
        parts: dict[str, Any] = {
            "__key__": folder + slash + name.replace(".", "%2E"), extension: sample.image
        }  # fmt: skip
        if sample.label is not None:
            parts["cls"] = str(sample.label).encode()
        if sample.caption is not None:
            parts["txt"] = sample.caption.encode()
        if sample.meta is not None:
            parts["json"] = sample.meta.encode()
        self._writer.write(parts)
        return None

    def __enter__(self) -> _TarShard:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()


class _ParquetShard:
    """As Hugging Face datasets writes images, so that it shows them, with the names of classes."""

    def __init__(self, path: str, class_names: Sequence[str]) -> None:
        image = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])
        features: dict[str, Any] = {
            name: {"dtype": "string", "_type": "Value"} for name in ("key", "caption", "meta")
        }
        features["image"] = {"_type": "Image"}
        features["label"] = (
            {"names": list(class_names), "_type": "ClassLabel"}
            if class_names
            else {"dtype": "int64", "_type": "Value"}
        )
        self._schema = pa.schema(
            [
                pa.field("key", pa.string()),
                pa.field("image", image),
                pa.field("label", pa.int64()),
                pa.field("caption", pa.string()),
                pa.field("meta", pa.string()),
            ],
            metadata={"huggingface": json.dumps({"info": {"features": features}})},
        )
        self._writer = pq.ParquetWriter(path, self._schema, compression="none")
        self._rows: list[dict[str, Any]] = []

    def write(self, sample: ImageSample) -> Quarantined | None:
        extension = _find_extension(sample)
        if isinstance(extension, Quarantined):
            return extension
        image = {"bytes": sample.image, "path": f"{sample.key.rpartition('/')[2]}.{extension}"}
        parts = (sample.key, image, sample.label, sample.caption, sample.meta)
        self._rows.append(dict(zip(self._schema.names, parts, strict=True)))
        if len(self._rows) == _ROWS_PER_GROUP:
            self._flush()
        return None

    def _flush(self) -> None:
        self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
        self._rows = []

    def __enter__(self) -> _ParquetShard:
        return self

    def __exit__(self, *_: object) -> None:
        if self._rows:
            self._flush()
        self._writer.close()


def read_sources(output_url: str, names: Sequence[str]) -> Iterator[ShardSource | None]:
    """What the packed shards with these names were made from, as far as that is told."""
    for name in names:
        try:
            yield ShardSource(**json.loads(storage.read_bytes(source_url(output_url, name))))
        except (FileNotFoundError, ValueError, TypeError):
            yield None
