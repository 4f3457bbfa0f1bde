"""Two token datasets to compare: what of them is read by which part, and the reading.

A part is a token shard of one of them; that of the first also reads the shard of the same name of the other.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache

import pyarrow as pa

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.dataset_file import read_dataset_file
from tatok_pipe.tokens.index import read_footer
from tatok_pipe.tokens.layout import data_url
from tatok_pipe.tokens.listing import list_data
from tatok_pipe.tokens.loading.parquet_groups import parquet_errors
from tatok_pipe.tokens.shard_file import open_shard
from tatok_pipe.tokens.spec import TokenSpec

FIRST, OTHER = "tokens", "other_tokens"  # as their config keys
ADVICE = "inspect_tokens --verify says what is wrong with the dataset"
_DIGEST_LENGTH = 16


@dataclass(frozen=True)
class TokenData:
    """A token dataset. `name` is the config key that it was given with."""

    name: str
    url: str
    spec: TokenSpec
    versions: dict[str, str] = field(repr=False)  # by name of a committed shard: which version of its file


@dataclass(frozen=True)
class CorpusPart:
    dataset: TokenData
    shard: str
    paired: TokenData | None  # the other dataset, where it has a shard of this name


def corpus_parts(first_url: str, other_url: str) -> dict[str, CorpusPart]:
    """The parts by name, those of the first dataset first, each in order of its shards' names. A part of another
    version of its files has another name, so what is measured of a dataset that grew or was mended is never mixed.

    Raises UserError that names the config key where a URL holds no token dataset, or one without images.
    """
    _list_parts.cache_clear()
    parts = _list_parts(first_url, other_url)
    for name, url in ((FIRST, first_url), (OTHER, other_url)):
        mine = [part for part in parts.values() if part.dataset.name == name]
        if not any(read_footer(url, part.shard, part.dataset.spec).num_rows for part in mine):
            raise UserError(
                f"{name}={storage.redact(url)}: no images in it ({len(mine)} token shards); give a dataset whose "
                "tokenize_corpus run has committed some"
            )
    return parts


def find_part(part: str, first_url: str, other_url: str) -> CorpusPart:
    """Raises UserError where the files are not those that the part was planned for."""
    found = _list_parts(first_url, other_url).get(part)
    if found is None:  # listed by this process before they changed
        _list_parts.cache_clear()
        found = _list_parts(first_url, other_url).get(part)
    if found is None:
        raise UserError(
            f"{FIRST}={storage.redact(first_url)}, {OTHER}={storage.redact(other_url)}: a token shard was replaced or "
            "removed after this run began; run the same command again"
        )
    return found


def read_batches(dataset: TokenData, shard: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
    """Some columns of a token shard, a row group or less at a time. Raises UserError where it cannot be read."""
    url = data_url(dataset.url, shard)
    with parquet_errors(url, ADVICE), open_shard(url) as file:
        for group in range(file.num_row_groups):
            yield from file.read([group], columns).to_batches()


@lru_cache(maxsize=1)  # an actor measures many parts of the same two
def _list_parts(first_url: str, other_url: str) -> dict[str, CorpusPart]:
    first, other = _open(FIRST, first_url), _open(OTHER, other_url)
    parts: dict[str, CorpusPart] = {}
    for mark, dataset, paired in (("a", first, other), ("b", other, None)):
        for shard, version in dataset.versions.items():
            other_version = paired.versions.get(shard) if paired else None
            text = json.dumps([shard, version, other_version])
            digest = hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]
            parts[f"{mark}-{digest}"] = CorpusPart(dataset, shard, paired if other_version else None)
    return parts


def _open(name: str, url: str) -> TokenData:
    try:
        spec, _ = read_dataset_file(url)
    except UserError as error:
        raise UserError(f"{name}={error}") from error
    versions = {
        file["name"]: f"{file['size_bytes']}/{file['version']}" for file in list_data(url).to_pylist()
    }
    return TokenData(name, url, spec, versions)
