"""Single row groups of Parquet files at any URL: only the bytes of the columns asked for are fetched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.storage.random_access import RandomAccess

_BLOCK_BYTES = 1 << 20  # about a row group of a token shard; the last block holds most footers
_NUM_AHEAD = 4


@contextmanager
def open_parquet(url: str) -> Iterator[tuple[pq.ParquetFile, RandomAccess]]:
    """The Parquet file at `url`, whose pages are checked against their checksums, and the file below it."""
    info = storage.file_info(url)
    random_access = storage.open_random_access(url, info=info, block_bytes=_BLOCK_BYTES, num_ahead=_NUM_AHEAD)
    with closing(random_access) as source, pq.ParquetFile(source, page_checksum_verification=True) as file:
        yield file, source


def read_groups(
    file: pq.ParquetFile, source: RandomAccess, groups: Sequence[int], columns: Sequence[str]
) -> pa.Table:
    """Some columns of some row groups; the name of a column stands for all that is in it."""
    wanted = set(columns)
    chunks: list[Any] = [
        chunk
        for group in map(file.metadata.row_group, groups)
        for chunk in map(group.column, range(group.num_columns))
        if chunk.path_in_schema.partition(".")[0] in wanted
    ]
    begins = [min(filter(None, (chunk.dictionary_page_offset, chunk.data_page_offset))) for chunk in chunks]
    source.read_ahead(
        (begin, begin + chunk.total_compressed_size) for begin, chunk in zip(begins, chunks, strict=True)
    )
    return file.read_row_groups(list(groups), columns=list(columns), use_threads=False)


@contextmanager
def parquet_errors(url: str, advice: str) -> Iterator[None]:
    """What goes wrong with the file at `url` becomes a UserError of one line that ends with `advice`."""
    try:
        yield
    except UserError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        text = " ".join(str(error).split())
        shown = storage.redact(url)
        reason = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read: {text}"
        raise UserError(f"{text if shown in text else f'{shown}: {reason}'}; {advice}") from error
