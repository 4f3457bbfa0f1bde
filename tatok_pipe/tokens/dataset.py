"""Reads a token dataset: a directory of token shards that belong together."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np
import pyarrow as pa

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.tokens.commit import committed_shards
from tatok_pipe.tokens.dataset_file import read_dataset_file
from tatok_pipe.tokens.format import (
    ShardMetadata,
    iter_records,
    read_quarantine,
    read_shard_metadata,
)
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.joined import read_columns, read_joined
from tatok_pipe.tokens.layout import (
    QUARANTINE_DIRECTORY,
    SUFFIX,
    SUMMARY_FILE,
    data_url,
    quarantine_url,
)
from tatok_pipe.tokens.random_rows import RandomRows
from tatok_pipe.tokens.row_condition import read_condition
from tatok_pipe.tokens.statistics import ShardStatistics
from tatok_pipe.tokens.summary import merge_statistics, tell_unfinished
from tatok_pipe.tokens.versions import Version, find_current, find_version

if TYPE_CHECKING:
    import torch


class Decoder(Protocol):
    """What `TokenDataset.decode` needs of a tokenizer model, an nn.Module."""

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def decode(
        self, global_codes: torch.Tensor, patch_codes: torch.Tensor, keep: torch.Tensor
    ) -> torch.Tensor: ...


class TokenDataset:
    """Reads a token dataset. Raises UserError where `url` holds none, or one of another format version.

    The shards are those committed at the time of opening, or those of an earlier `version`, by its number: UserError
    where there is no such version, or its shards are not there any more. Rows are numbered from 0 through the shards in
    order of their names: `len(dataset)`, `dataset[5]`, `dataset[-10:]`; iterating reads them in order.
    """

    def __init__(self, url: str, *, version: int | None = None) -> None:
        self.url = url
        self.spec, self.description = read_dataset_file(url)
        if version is None:
            self.shards = sorted(committed_shards(url))
        else:
            self.version = find_version(url, version, refresh_index(url, self.spec, save=False))
            self.shards = sorted(self.version.shards)

    @cached_property
    def version(self) -> Version:
        """Which of its versions the dataset is."""
        return find_current(self.url, refresh_index(self.url, self.spec, save=False))

    @cached_property
    def statistics(self) -> ShardStatistics:
        """Merged from the footers of all shards: true also where a run did not come to its summary."""
        return merge_statistics(self.url, self.shards, self.spec)

    @property
    def num_rows(self) -> int:
        return self.statistics.num_images

    @cached_property
    def _random_rows(self) -> RandomRows:
        index = refresh_index(self.url, self.spec, save=False)
        num_rows = dict(zip(index.names, index.table["num_rows"].to_pylist(), strict=True))
        return RandomRows(self.url, self.spec, [(name, num_rows[name]) for name in self.shards])

    def __len__(self) -> int:
        return len(self._random_rows)

    def __iter__(self) -> Iterator[TokenRecord]:
        return self.rows()

    @overload
    def __getitem__(self, number: int) -> TokenRecord: ...

    @overload
    def __getitem__(self, number: slice) -> list[TokenRecord]: ...

    def __getitem__(self, number: int | slice) -> TokenRecord | list[TokenRecord]:
        """A row, with arrays of its own that may be written to; of a slice a list. Raises IndexError."""
        if isinstance(number, slice):
            return [self._random_rows.read(each) for each in range(*number.indices(len(self)))]
        return self._random_rows.read(number)

    def to_tensors(self, records: Sequence[HasTokens]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Rows as the tokenizer's decoder takes them, (global_codes, patch_codes, keep): `records_to_tensors`."""
        return records_to_tensors(
            records, num_globals=self.spec.num_globals, num_patches=self.spec.num_patches
        )

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of `_summary.json`; None where no run has finished."""
        try:
            return json.loads(storage.read_bytes(storage.join(self.url, SUMMARY_FILE)))
        except FileNotFoundError:
            return None

    @property
    def unfinished(self) -> str:
        """What the run that makes it has not done yet, for people; empty where nothing is missing that it knew of."""
        return tell_unfinished(self.url, self.shards)

    def shard_url(self, name: str) -> str:
        """Where the Parquet file of a shard is."""
        return data_url(self.url, name)

    def shard_metadata(self, name: str) -> ShardMetadata:
        """Spec, source, statistics and row count of one shard, from its footer."""
        return read_shard_metadata(self.shard_url(name))

    def rows(self, shard: str | None = None, *, where: str = "") -> Iterator[TokenRecord]:
        """All rows, or those of one shard, in source order; shards in order of their names. With `where`, a condition
        on their columns and the joined ones such as "aesthetic > 5 and label=3", those that it is true of. Raises
        RefusedError at a shard that was made with other settings than the dataset, UserError where `where` is none."""
        condition = read_condition(self.url, self.spec, where)
        for name in self.shards if shard is None else [shard]:
            choose = None if condition is None else partial(condition.rows, name)
            yield from iter_records(self.shard_url(name), spec=self.spec, choose=choose)

    def joined(self, shard: str) -> pa.Table:
        """The columns that `edit_tokens` joined, for the rows of a shard, in their order; null where a row has no
        value."""
        joined, keys = read_joined(self.url), [record.key for record in self.rows(shard)]
        return read_columns(self.url, joined, shard, pa.array(keys, pa.string()), joined.schema.names)

    def row(self, key: str) -> TokenRecord:
        """The first row with this key; reads rows in order. Raises UserError where there is none."""
        for record in self.rows():
            if record.key == key:
                return record
        raise UserError(f"{storage.redact(self.url)}: no row with key {key!r} in {len(self.shards)} shards")

    def quarantined(self) -> Iterator[tuple[str, Quarantined]]:
        """(shard name, row) for each quarantined sample of the committed shards."""
        files = storage.list_files(storage.join(self.url, QUARANTINE_DIRECTORY))
        for name in self.shards:
            if name + SUFFIX in files:
                yield from ((name, row) for row in read_quarantine(quarantine_url(self.url, name)))

    def decode(self, records: Sequence[TokenRecord], model: Decoder) -> torch.Tensor:
        """The images of the rows, (B, 3, H, W) float in [0, 1], on the device of `model`; no gradients."""
        import torch  # here for the same reason as in records_to_tensors

        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        global_codes, patch_codes, keep = (each.to(device) for each in self.to_tensors(records))
        with torch.no_grad():
            return model.decode(global_codes, patch_codes, keep)


class HasTokens(Protocol):
    """An image as tokens: a row of a dataset, or one that was generated."""

    @property
    def global_codes(self) -> np.ndarray: ...

    @property
    def patch_codes(self) -> np.ndarray: ...

    @property
    def patch_positions(self) -> np.ndarray: ...


def records_to_tensors(
    records: Sequence[HasTokens], *, num_globals: int, num_patches: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Images as the decoder takes them: global_codes (B, K) int64, patch_codes (B, N) int64, keep (B, N) bool.

    Kept codes stand at their raster positions; where `keep` is False the code is 0 and means nothing.
    """
    import torch  # here, so that listing and planning a dataset do not wait seconds for it

    global_codes = np.zeros((len(records), num_globals), np.int64)
    patch_codes = np.zeros((len(records), num_patches), np.int64)
    keep = np.zeros((len(records), num_patches), np.bool_)
    for index, record in enumerate(records):
        global_codes[index] = record.global_codes
        patch_codes[index, record.patch_positions] = record.patch_codes
        keep[index, record.patch_positions] = True
    return torch.from_numpy(global_codes), torch.from_numpy(patch_codes), torch.from_numpy(keep)
