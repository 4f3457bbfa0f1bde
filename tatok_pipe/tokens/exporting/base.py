"""What an export format makes of a token shard. Letters: K globals, M kept of N patches, V_g and V_p codebook sizes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tatok_pipe.records import TokenRecord

if TYPE_CHECKING:
    from tatok_pipe.tokens.spec import TokenSpec  # which imports pyarrow, and options come before it

NO_LABEL = -1


@dataclass(frozen=True)
class Exported:
    """The committed file of a token shard."""

    file: str  # below the folder
    size_bytes: int
    num_rows: int


class Exporter(Protocol):
    """A format. The same rows give the same bytes."""

    name: str
    help: str  # a clause: what is written
    suffixes: tuple[str, ...]  # of the files of a token shard; the last one's arrival is its commit

    def encode(self, records: Sequence[TokenRecord], spec: TokenSpec) -> tuple[bytes, ...]:
        """The files of a token shard with these rows, by `suffixes`."""
        ...

    def index(self, shards: Sequence[Exported], spec: TokenSpec) -> dict[str, bytes]:
        """What the loader needs to know of all token shards: files below the folder, written last."""
        ...

    def vocabulary(self, spec: TokenSpec) -> dict[str, Any]:
        """What the ids of a sequence mean, JSON types; empty where codes are stored as they are."""
        ...


def code_dtype(vocab: int) -> str:
    """NumPy's name of the smallest unsigned type of the codes 0 to vocab - 1, little-endian."""
    return "<u2" if vocab <= 1 << 16 else "<u4"


def columns_of(record: TokenRecord, spec: TokenSpec) -> dict[str, Any]:
    """A row as plain values: global_codes (K,), patch_codes (M,) and patch_positions (M,) as little-endian bytes."""
    return {
        "key": record.key,
        "label": NO_LABEL if record.label is None else int(record.label),
        "crop": int(record.crop),
        "global_codes": _to_bytes(record.global_codes, code_dtype(spec.global_vocab)),
        "patch_codes": _to_bytes(record.patch_codes, code_dtype(spec.patch_vocab)),
        "patch_positions": _to_bytes(record.patch_positions, "<u2"),
    }


def join_samples(samples: Sequence[bytes], head: bytes = b"") -> bytes:
    """A file of samples by their places: their number, where each begins and the last one ends (uint32), `head`, and
    the samples end to end."""
    begin = 4 * (2 + len(samples)) + len(head)
    places = np.cumsum([begin, *map(len, samples)], dtype=np.int64)
    if places[-1] >= 1 << 32:
        raise ValueError(f"{places[-1]} bytes in a file of a format that counts to {1 << 32}")
    return b"".join([np.uint32(len(samples)).tobytes(), places.astype("<u4").tobytes(), head, *samples])


def encode_sample(row: Mapping[str, str | int | bytes], *, with_size: Collection[str]) -> bytes:
    """The values of a row end to end, integers as int64; the sizes of those `with_size` come before them, uint32."""
    values = {name: _value_bytes(value) for name, value in row.items()}
    sizes = [len(value) for name, value in values.items() if name in with_size]
    return b"".join([np.array(sizes, "<u4").tobytes(), *values.values()])


def _value_bytes(value: str | int | bytes) -> bytes:
    if isinstance(value, str):
        return value.encode()
    return np.int64(value).tobytes() if isinstance(value, int) else value


def _to_bytes(values: np.ndarray, dtype: str) -> bytes:
    return np.asarray(values).astype(dtype).tobytes()
