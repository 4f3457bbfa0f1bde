"""An image shard in Parquet, as Hugging Face datasets are published: rows, in order, as samples.

What bounds memory: pages are read as they come, never a whole row group, and rows few at a time, one where a
column is large; a page of more than `max_page_bytes`, or than its column, is refused. So at most a page and its
dictionary are held, stored and decompressed, with one image or 256 MiB of small ones; and the file's buffers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from tatok_pipe.images.class_names import difference_of_names, names_of_metadata
from tatok_pipe.images.limits import DEFAULT_LIMITS, ShardLimits
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.parquet.columns import Columns, Row, find_columns
from tatok_pipe.images.parquet.footer import Footer, NoFooter, read_footer
from tatok_pipe.images.parquet.pages import BadPage, Chunk, PageGuard
from tatok_pipe.images.parquet.rows import RowReader
from tatok_pipe.images.shard_errors import LastingShardError, ShardError, UnusableShard
from tatok_pipe.records import ImageSample, Quarantined
from tatok_pipe.storage.random_access import RandomAccess

_BUFFER_BYTES = 1 << 20
_MAX_BATCH_ROWS = 32
_MAX_BATCH_BYTES = 256 << 20


def read_parquet(
    file: RandomAccess,
    *,
    shard: str,
    limits: ShardLimits = DEFAULT_LIMITS,
    notices: Notices | None = None,
    class_names: tuple[str, ...] = (),
) -> Iterator[ImageSample | Quarantined]:
    """The rows of a Parquet file of encoded images, in order; `shard` is its name in messages. `class_names` are those
    of the corpus, where it has any.

    The image is the first of IMAGE_COLUMNS (names: `columns`) that is a struct with a binary field
    `bytes`, or binary; else the only such struct; else the first with text. Label and caption: the first of
    LABEL_NAMES and CAPTION_NAMES (`fields`) by type, numbers before text before lists, as `fields.read_label` and
    `read_caption` read them; where there is none, what the JSON says. Meta: the first of META_COLUMNS with text or a
    struct, JSON. Key: the first of KEY_COLUMNS; where there is none, or null, the row number in 8 digits. An image in
    base64 is decoded. `limits.ignore` leaves parts unread, and nothing else is read. What a user ought to know of all
    this goes to `notices`.

    Quarantined, stage "shard": DuplicateKey, LongKey, BadKey, NoImage, TooManyBytes; stage "metadata": BadLabel,
    BadCaption, BadJson (of a column `json`). Raises ShardError for a file that is no Parquet, has no column of
    images, is damaged, or is beyond the limits, and UnusableShard where a column cannot be what it is called: by its
    type, or by the first value that it has, or where the file has other names of classes; what came before it were
    whole samples. Errors of the file itself pass
    through.
    """
    num_samples = 0
    notices = Notices() if notices is None else notices
    guard = PageGuard(file, limits.max_page_bytes)
    try:
        opened = _open(guard, file, shard, limits, notices)
        found = names_of_metadata(opened.parquet.schema_arrow.metadata, opened.columns.label)
        check_class_names(found, class_names, shard)
        reader = RowReader(
            opened.parquet.schema_arrow, opened.columns, shard=shard, limits=limits, notices=notices
        )
        for row in opened.rows():
            yield reader.read(row)
            num_samples += 1
        if num_samples != opened.num_rows:
            reason = f"{num_samples} rows where the footer promises {opened.num_rows}"
            raise ShardError(shard, num_samples, reason)
        reader.close()
    except ShardError:
        file.check_unchanged()
        raise
    except Exception as error:  # on damage pyarrow raises OSError, ValueError, MemoryError, almost anything
        if guard.error is not None and not isinstance(guard.error, BadPage):
            raise guard.error from None
        file.check_unchanged()  # the parts of two versions look like damage
        if guard.error is not None:
            raise ShardError(shard, num_samples, str(guard.error), guard.error.advice) from None
        detail = " ".join(str(error).split())[:200]
        raise ShardError(shard, num_samples, f"damaged Parquet ({type(error).__name__}: {detail})") from error
    finally:
        pa.default_memory_pool().release_unused()  # it would keep the largest pages for itself
    file.check_unchanged()


def read_schema(file: RandomAccess) -> pa.Schema | None:
    """The columns of a Parquet file; None for what is no Parquet file, or damaged. Errors of the file itself pass
    through."""
    guard = PageGuard(file, DEFAULT_LIMITS.max_page_bytes)
    try:
        return _open_footer(guard, "")[1].schema_arrow
    except Exception:  # as in read_parquet
        if guard.error is not None and not isinstance(guard.error, BadPage):
            raise guard.error from None
        return None


def read_columns(file: RandomAccess, names: Sequence[str], *, shard: str) -> pa.Table:
    """These columns of a Parquet file, whole; `shard` is its name in messages. Raises ShardError where it is damaged.
    Errors of the file itself pass through."""
    guard = PageGuard(file, DEFAULT_LIMITS.max_page_bytes)
    try:
        footer, parquet = _open_footer(guard, shard)
        wanted = [
            leaf
            for leaf in range(len(parquet.schema.names))
            if parquet.schema.column(leaf).path.partition(".")[0] in names
        ]
        chunks = footer.chunks(wanted)
        guard.watch(chunks)
        file.read_ahead([(chunk.start, chunk.stop) for chunk in chunks])
        table = parquet.read(columns=list(names), use_threads=False)
        table.validate(full=True)
        return table
    except ShardError:
        raise
    except Exception as error:  # as in read_parquet
        if guard.error is not None and not isinstance(guard.error, BadPage):
            raise guard.error from None
        detail = " ".join(str(guard.error or error).split())[:200]
        raise ShardError(shard, 0, f"damaged Parquet ({detail})") from error


def read_class_names(file: RandomAccess, *, limits: ShardLimits = DEFAULT_LIMITS) -> tuple[str, ...]:
    """Names of the classes that a Parquet file of images tells, by label; none where it tells none, is no Parquet
    file, or damaged. Errors of the file itself pass through."""
    guard = PageGuard(file, limits.max_page_bytes)
    try:
        schema = _open_footer(guard, "")[1].schema_arrow
        return names_of_metadata(schema.metadata, find_columns(schema, "", limits, Notices()).label)
    except Exception:  # as in read_parquet
        if guard.error is not None and not isinstance(guard.error, BadPage):
            raise guard.error from None
        return ()


@dataclass(frozen=True)
class _Opened:
    """A file whose footer was found in order."""

    parquet: pq.ParquetFile
    columns: Columns
    num_rows: int  # as promised
    batch_rows: int

    def rows(self) -> Iterator[Row]:
        paths = self.columns.paths
        for batch in self.parquet.iter_batches(self.batch_rows, columns=paths, use_threads=False):
            yield from self.columns.rows(batch)


def _open(guard: PageGuard, file: RandomAccess, shard: str, limits: ShardLimits, notices: Notices) -> _Opened:
    """Check the footer against the limits, and have the guard and the file know what will be read."""
    footer, parquet = _open_footer(guard, shard)
    columns = find_columns(parquet.schema_arrow, shard, limits, notices)
    schema = parquet.schema
    chunks = footer.chunks([i for i in range(len(schema.names)) if columns.is_read(schema.column(i).path)])
    _check_limits(footer, chunks, shard, limits)
    guard.watch(chunks)
    file.read_ahead([(chunk.start, chunk.stop) for chunk in chunks])
    # A value may be repeated in every row, through a dictionary, so rows are few where columns are large.
    largest = max((chunk.num_bytes for chunk in chunks), default=0)
    batch_rows = min(_MAX_BATCH_ROWS, max(1, _MAX_BATCH_BYTES // max(1, largest)))
    return _Opened(parquet, columns, footer.num_rows, batch_rows)


def check_class_names(found: tuple[str, ...], expected: tuple[str, ...], shard: str) -> None:
    """Raise UnusableShard where classes have other names than those of the dataset, and both have some."""
    if expected and found and found != expected:
        raise UnusableShard(
            shard,
            0,
            f"its classes have other names than those of the dataset ({difference_of_names(found, expected)})",
            "give corpora of other classes datasets of their own, or input.class_names=none",
        )


def _open_footer(guard: PageGuard, shard: str) -> tuple[Footer, pq.ParquetFile]:
    """The footer as we read it, and, where that found it in order, as pyarrow does."""
    try:
        footer = read_footer(guard)
    except NoFooter as error:
        raise (LastingShardError if error.is_lasting else ShardError)(shard, 0, str(error)) from None
    # Without pre_buffer and with a buffer pages are read one by one.
    parquet = pq.ParquetFile(
        guard, pre_buffer=False, buffer_size=_BUFFER_BYTES, page_checksum_verification=True
    )
    return footer, parquet


def _check_limits(footer: Footer, chunks: Sequence[Chunk], shard: str, limits: ShardLimits) -> None:
    if footer.num_rows > limits.max_members:
        raise LastingShardError(
            shard,
            0,
            f"{footer.num_rows} rows, more than max_members={limits.max_members}",
            "split the shard, or raise max_members",
        )
    num_bytes = sum(chunk.num_bytes for chunk in chunks)
    if num_bytes > limits.max_shard_bytes:
        raise LastingShardError(
            shard,
            0,
            f"{num_bytes} bytes when decompressed, more than max_shard_bytes={limits.max_shard_bytes}",
            "split the shard, or raise max_shard_bytes",
        )
