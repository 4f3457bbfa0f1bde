"""What is wrong with a token dataset, and what may be done about it: only what can be made again is ever removed."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from pathlib import PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.source import hash_shard, shard_info
from tatok_pipe.storage import retry
from tatok_pipe.tokens.checking.check import Damage
from tatok_pipe.tokens.commit import source_differs
from tatok_pipe.tokens.format import ShardSource, parse_footer, token_shard_name
from tatok_pipe.tokens.index_file import load_index
from tatok_pipe.tokens.layout import DATASET_FILE, INDEX_FILE, SUMMARY_FILE
from tatok_pipe.tokens.named_urls import open_named
from tatok_pipe.tokens.owed import source_of
from tatok_pipe.tokens.spec import TokenSpec

# What is younger may belong to a job at work: it publishes a quarantine file moments before the data file, and a
# temporary file is there while its content is copied.
MIN_AGE_S = 3600.0


class Remedy(StrEnum):
    """What `repair_dataset` does about a finding."""

    MAKE_AGAIN = (
        "make again"  # removes the token shard with its quarantine file; tokenize_corpus makes them again
    )
    REMOVE = "remove"  # removes the file
    REWRITE = "rewrite"  # writes the file anew
    RUN = "run"  # nothing; tokenize_corpus makes it again
    NONE = "none"


@dataclass(frozen=True)
class Finding:
    """Something wrong, or left over. `message` and `advice` are one line each."""

    kind: Damage
    file: str  # below the URL of the dataset: "data/000000-1a2b3c4d.parquet"
    message: str
    remedy: Remedy = Remedy.NONE
    advice: str = ""  # how it is repaired, or why it is left alone
    source_url: str = ""  # the image shard that it can be made again from

    @property
    def is_harmless(self) -> bool:
        """Whether the tokens are whole and complete in spite of it."""
        return self.kind in (
            Damage.ORPHAN, Damage.TEMPORARY, Damage.SUMMARY, Damage.INDEX, Damage.VERSIONS, Damage.COLUMNS
        )  # fmt: skip

    @property
    def name(self) -> str:
        """The name of the token shard whose data or quarantine file it is about."""
        return PurePosixPath(self.file).stem


class Judge:
    """Completes findings of one dataset with their remedy and advice."""

    def __init__(self, url: str, spec: TokenSpec, *, other_stores: bool = False) -> None:
        self._url = url
        self._other_stores = other_stores  # whether image shards may be in other stores than the dataset
        self._spec = spec

    def learn_sources(self) -> None:
        """Read `_index.parquet` now, before it is changed: it may be all that tells what a token shard was made of."""
        _ = self._indexed_sources

    def judge_shard(self, finding: Finding, content: pa.Buffer) -> Finding:
        """A finding on the token shard with this `content`: can be repaired where its image shard is as it was."""
        return self.judge_owner(finding, self._find_source(finding, content))

    def judge_owner(self, finding: Finding, source: ShardSource | None) -> Finding:
        """As `judge_shard`, where it is known what the token shard was made from."""
        if source is None:
            return replace(
                finding,
                advice="left: nothing tells which image shard it was made from; where you know that one, and it is "
                "still there, remove the data file and the quarantine file of this name yourself",
            )
        problem = self._find_change(source)
        if problem:
            return replace(finding, advice=f"left: it could not be made again, {problem}")
        return replace(
            finding,
            remedy=Remedy.MAKE_AGAIN,
            source_url=source.url,
            advice=f"--repair removes it, and tokenize_corpus makes it again from {storage.redact(source.url)}",
        )

    def judge_lost(self, finding: Finding, source: ShardSource) -> Finding:
        """A token shard that is gone: comes back where its image shard is as it was."""
        if problem := self._find_change(source):
            return replace(
                finding,
                advice=f"left: it cannot be made again, {problem}; where it was removed on purpose, remove "
                f"{INDEX_FILE} and {SUMMARY_FILE}, and run tokenize_corpus once more",
            )
        return replace(
            finding,
            remedy=Remedy.RUN,
            source_url=source.url,
            advice=f"the tokenize_corpus command that made it makes it again from {storage.redact(source.url)}",
        )

    def _find_change(self, source: ShardSource) -> str:
        """Why the same token shard cannot be made from its image shard now; empty where it can."""
        try:
            url = open_named(source.url, self._url, other_stores=self._other_stores)
            now = shard_info(url)
        except (OSError, UserError) as error:
            return f"its image shard cannot be read: {' '.join(storage.redact(str(error)).split())}"
        try:
            sha256 = hash_shard(url) if source.sha256 and not now.etag else ""
        except OSError as error:
            return f"its image shard cannot be read: {' '.join(storage.redact(str(error)).split())}"
        if source_differs(source, ShardSource(source.url, now.size_bytes, now.etag, sha256)):
            return f"its image shard has changed since: {storage.redact(source.url)}"
        return ""

    def judge_leftover(self, finding: Finding) -> Finding:
        """A finding on a file that nobody needs, unless a job is at work on it."""
        age_s = self._age_s(finding.file)
        if age_s is None:
            return replace(finding, advice="left: its age is not known, and it may belong to a running job")
        if age_s < MIN_AGE_S:
            return replace(
                finding,
                advice=f"left: {max(age_s, 0) / 60:.0f} minutes old, it may belong to a running job; --repair removes "
                f"it from {MIN_AGE_S / 60:.0f} minutes on",
            )
        return replace(finding, remedy=Remedy.REMOVE, advice="--repair removes it")

    def _find_source(self, finding: Finding, content: pa.Buffer) -> ShardSource | None:
        """The image shard of a token shard: by its footer, or by `_index.parquet` where the footer is broken."""
        try:
            source = parse_footer(pq.read_metadata(pa.BufferReader(content)), finding.file).source
            # A broken footer may name a file that never was its source. The hash in the name tells.
            if finding.kind == Damage.NAME or is_name_of(finding.name, source):
                return source
        except (UserError, pa.ArrowException, OSError, ValueError):
            pass
        source = self._indexed_sources.get(finding.name)
        return source if source is not None and is_name_of(finding.name, source) else None

    @cached_property
    def _indexed_sources(self) -> dict[str, ShardSource]:
        index = load_index(self._url, self._spec)
        if index is None:
            return {}
        owed = {each.name: each.source for each in index.owed}
        return owed | {row["name"]: source_of(row) for row in index.table.to_pylist()}

    def _age_s(self, file: str) -> float | None:
        url = storage.join(self._url, file)
        filesystem, path = storage.open_filesystem(url)
        try:
            return time.time() - retry.call(lambda: filesystem.modified(path), url=url).timestamp()
        except (NotImplementedError, AttributeError, OSError):
            return None


def spare(finding: Finding) -> Finding:
    """A finding of other settings in a dataset where most shards have others."""
    return replace(
        finding,
        remedy=Remedy.NONE,
        advice=f"left: half of the shards or more are like it, so {DATASET_FILE} may be the wrong one",
    )


def withhold(findings: Sequence[Finding], reason: str) -> list[Finding]:
    """The findings with nothing to be made again, because of `reason`."""
    return [
        replace(finding, remedy=Remedy.NONE, advice=f"left: it could not be made again, {reason}")
        if finding.remedy == Remedy.MAKE_AGAIN
        else finding
        for finding in findings
    ]


def is_name_of(name: str, source: ShardSource) -> bool:
    """Whether the token shard made from `source` has this name.

    By the stem alone where the rest cannot be known here: a path that is relative to another directory than ours,
    or a URL whose driver is not installed.
    """
    if "://" in source.url or os.path.isabs(source.url):
        try:
            return token_shard_name(source.url) == name
        except UserError:
            pass
    return PurePosixPath(source.url.partition("?")[0]).stem == name.rpartition("-")[0]
