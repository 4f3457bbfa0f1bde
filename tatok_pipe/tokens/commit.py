"""The growth of a token dataset, shard by shard: what is committed, what is planned, how a shard comes in."""

from __future__ import annotations

import os
from collections.abc import Sequence

from tatok_pipe import storage
from tatok_pipe.tokens.format import (
    ShardSource,
    token_shard_name,
)
from tatok_pipe.tokens.index import read_footer
from tatok_pipe.tokens.layout import (
    data_url,
    quarantine_url,
)
from tatok_pipe.tokens.listing import list_data
from tatok_pipe.tokens.spec import TokenSpec


def committed_shards(url: str) -> set[str]:
    """The names of the shards that are done, from one listing."""
    return set(list_data(url)["name"].to_pylist())


def plan(shards: Sequence[str], committed: set[str]) -> list[str]:
    """The image shards, in order, whose token shard is not committed."""
    return [shard for shard in shards if token_shard_name(shard) not in committed]


def commit_shard(
    url: str,
    name: str,
    local_parquet: str | os.PathLike[str],
    local_quarantine: str | os.PathLike[str] | None,
    *,
    spec: TokenSpec,
    source: ShardSource,
    replaces: bool = False,
) -> bool:
    """Publish a finished token shard, its quarantine file first. False where it was committed already.

    Nothing of a committed shard is touched, unless this one `replaces` it: the data file first then, so that a kill in
    between leaves the quarantine file that there was, by which the shard is known as one to be made anew. A quarantine
    file that an attempt left behind before its commit is replaced, or removed where this attempt quarantined nothing.
    Where another attempt committed the shard, its footer has to say the same `spec` and `source`: raises RefusedError
    where it was made with other settings, OSError where from another version of the image shard, or from another image
    shard.
    """
    target = data_url(url, name)
    if replaces:
        storage.publish_file(local_parquet, target, exclusive=False)
        _put_quarantine(url, name, local_quarantine)
        return True
    if storage.exists(target):
        _check_committed(url, name, spec, source)
        return False
    _put_quarantine(url, name, local_quarantine)
    if storage.publish_file(local_parquet, target, exclusive=True):
        return True
    _check_committed(url, name, spec, source)
    return False


def _put_quarantine(url: str, name: str, local_quarantine: str | os.PathLike[str] | None) -> None:
    if local_quarantine is None:
        storage.remove(quarantine_url(url, name))
    else:
        storage.publish_file(local_quarantine, quarantine_url(url, name), exclusive=False)


def _check_committed(url: str, name: str, spec: TokenSpec, source: ShardSource) -> None:
    found = read_footer(url, name, spec).source
    shown = storage.redact(data_url(url, name))
    if storage.canonical_url(found.url) != storage.canonical_url(source.url):
        raise OSError(
            f"{shown}: was made from {storage.redact(found.url)}, and {storage.redact(source.url)} has the same "
            "token shard name; rename one of the two image shards"
        )
    if source_differs(found, source):
        raise OSError(
            f"{storage.redact(source.url)}: the image shard changed between two attempts: {shown} was made "
            f"from {show_source(found)}, now it is {show_source(source)}; run again, and say what to do with changed "
            "shards"
        )


def source_differs(recorded: ShardSource, now: ShardSource) -> bool:
    """Whether an image shard is not what it was: another size, ETag or SHA-256. What is unknown says nothing."""
    return now.size_bytes != recorded.size_bytes or any(
        was and found and was != found
        for was, found in ((recorded.etag, now.etag), (recorded.sha256, now.sha256))
    )


def show_source(source: ShardSource) -> str:
    """A version of an image shard, for messages."""
    told = f", ETag {source.etag}" if source.etag else ""
    return f"{source.size_bytes} bytes{told or (f', SHA-256 {source.sha256[:12]}' if source.sha256 else '')}"
