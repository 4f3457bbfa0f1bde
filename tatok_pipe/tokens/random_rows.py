"""Rows of a token dataset by their numbers."""

from __future__ import annotations

import dataclasses
import threading
from collections import OrderedDict
from collections.abc import Sequence
from itertools import accumulate

import numpy as np

from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.format import ROW_GROUP_ROWS, read_group
from tatok_pipe.tokens.layout import data_url
from tatok_pipe.tokens.spec import TokenSpec

_NUM_GROUPS = 8  # row groups that are kept


class RandomRows:
    """The rows of shards, given as (name, number of rows), numbered from 0 in that order. Several threads may read.

    What was read last is kept, so that rows near each other cost one read; rows in random order cost one each, and a
    training takes `TokenLoader` for that reason.
    """

    def __init__(self, url: str, spec: TokenSpec, shards: Sequence[tuple[str, int]]) -> None:
        self._url, self._spec = url, spec
        self._names = [name for name, _ in shards]
        self._ends = np.array(list(accumulate(num_rows for _, num_rows in shards)), np.int64)
        self._kept: OrderedDict[tuple[int, int], list[TokenRecord]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def read(self, number: int) -> TokenRecord:
        """The row, with arrays of its own. Raises IndexError out of range, and as `read_group`."""
        if not -len(self) <= number < len(self):
            raise IndexError(f"row {number} of {len(self)}")
        number %= len(self)
        shard = int(np.searchsorted(self._ends, number, "right"))
        group, place = divmod(number - int(self._ends[shard - 1] if shard else 0), ROW_GROUP_ROWS)
        row = self._group(shard, group)[place]
        arrays = {
            each.name: value.copy()
            for each in dataclasses.fields(row)
            if isinstance(value := getattr(row, each.name), np.ndarray)
        }
        return dataclasses.replace(row, **arrays)

    def _group(self, shard: int, group: int) -> list[TokenRecord]:
        place = (shard, group)
        with self._lock:
            if place in self._kept:
                self._kept.move_to_end(place)
                return self._kept[place]
        rows = read_group(data_url(self._url, self._names[shard]), group, spec=self._spec)
        with self._lock:
            self._kept[place] = rows
            while len(self._kept) > _NUM_GROUPS:
                self._kept.popitem(last=False)
        return rows

    def __getstate__(self) -> tuple[str, TokenSpec, list[tuple[str, int]]]:
        sizes = np.diff(self._ends, prepend=0).tolist()
        return self._url, self._spec, list(zip(self._names, sizes, strict=True))

    def __setstate__(self, state: tuple[str, TokenSpec, list[tuple[str, int]]]) -> None:
        self.__init__(*state)
