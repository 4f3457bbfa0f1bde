"""Token datasets: a directory of token shards that belong together, its growth shard by shard, its reader."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, overload

import numpy as np

from tatok_pipe import storage
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.parallel import map_ahead
from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.storage.outputs import recognise
from tatok_pipe.tokens.format import (
    ShardMetadata,
    ShardSource,
    empty_statistics,
    iter_records,
    read_quarantine,
    read_shard_metadata,
    token_shard_name,
)
from tatok_pipe.tokens.index import NUM_READERS, Owed, list_data, owed_from_json, read_footer, refresh_index
from tatok_pipe.tokens.layout import (
    CARD_FILE,
    DATA_DIRECTORY,
    DATASET_FILE,
    QUARANTINE_DIRECTORY,
    SUFFIX,
    SUMMARY_FILE,
    data_url,
    quarantine_url,
)
from tatok_pipe.tokens.random_rows import RandomRows
from tatok_pipe.tokens.spec import FORMAT_VERSION, TokenSpec
from tatok_pipe.tokens.statistics import ShardStatistics
from tatok_pipe.tokens.versions import Version, find_current, find_version

if TYPE_CHECKING:
    import torch


# Without it Hugging Face `datasets` takes every Parquet file below the folder for data, the index among them.
_CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
---
A token dataset of tatok_pipe: one row per image, in data/. What the columns mean: docs/guide.md of tatok_pipe.
"""


class Decoder(Protocol):
    """What `TokenDataset.decode` needs of a tokenizer model, an nn.Module."""

    def parameters(self) -> Iterator[torch.nn.Parameter]: ...

    def decode(
        self, global_codes: torch.Tensor, patch_codes: torch.Tensor, keep: torch.Tensor
    ) -> torch.Tensor: ...


def create_or_check(url: str, spec: TokenSpec, description: Mapping[str, Any]) -> None:
    """Begin a dataset at `url`, or make sure that the one there was made with the same `spec`.

    `description` (JSON types: tokenizer config, source spec, ...) is kept for people and is not compared. Of
    two runs that begin at the same time one creates the dataset and the other is checked against it. Raises
    RefusedError where the spec differs, UserError where something else is there.
    """
    if not storage.publish_bytes(
        _dataset_json(spec, description), storage.join(url, DATASET_FILE), exclusive=True
    ):
        check_spec(url, spec)
        found, earlier = read_dataset_file(url)
        if len(spec.class_names) > len(found.class_names):  # classes have come
            storage.publish_bytes(
                _dataset_json(spec, earlier), storage.join(url, DATASET_FILE), exclusive=False
            )
    storage.publish_bytes(_CARD.encode(), storage.join(url, CARD_FILE), exclusive=True)


def describe(url: str, spec: TokenSpec, description: Mapping[str, Any]) -> None:
    """Have `_dataset.json` of a dataset without shards tell of this run, not of one before that came to nothing."""
    if read_dataset_file(url)[1] != description:
        storage.publish_bytes(
            _dataset_json(spec, description), storage.join(url, DATASET_FILE), exclusive=False
        )


def _dataset_json(spec: TokenSpec, description: Mapping[str, Any]) -> bytes:
    return _to_json({"format": FORMAT_VERSION, "spec": spec.to_json(), "description": dict(description)})


def check_spec(url: str, spec: TokenSpec) -> None:
    """Raise RefusedError where the dataset at `url` was made with another spec."""
    found, _ = read_dataset_file(url)
    differences = found.differences(spec)
    if differences:
        earlier = (
            ". Tokens of a tokenizer that came with an earlier tatok_pipe go on with that version"
            if found.tokenizer_fingerprint != spec.tokenizer_fingerprint
            else ""
        )
        raise RefusedError(
            f"{storage.redact(url)}: holds tokens of tokenizer {found.tokenizer_fingerprint} with DTF "
            f"{found.dtf}; this run has tokenizer {spec.tokenizer_fingerprint} with DTF "
            f"{spec.dtf}. Give another output.url, or the checkpoint and settings of the dataset "
            f"(its {'; its '.join(differences)}){earlier}"
        )


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


def write_summary(
    url: str, *, planned: Sequence[str], failed: Mapping[str, str], run: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write `_summary.json` on all committed shards, and return its content.

    `planned` are the names of the shards that the run was to have at its end, `failed` maps image shards to
    their error, `run` holds figures of the run itself (JSON types: seconds, throughput). Only the footers that
    `_index.parquet` lacks are read; the index is brought up to date on the way. Files that are no token shards count
    as missing. What was counted once and is gone is kept as `lost_shards`, with what it was made from.
    """
    spec, _ = read_dataset_file(url)
    index = refresh_index(url, spec, with_broken=True)
    present = {*index.names, *index.broken}
    lost = {each.name: each for each in (*read_lost(url), *index.owed) if each.name not in present}
    summary = {
        "format": FORMAT_VERSION,
        "tokenizer_fingerprint": spec.tokenizer_fingerprint,
        "num_shards_planned": len(planned),
        "num_shards_committed": len(index),
        "missing_shards": sorted(set(planned).difference(index.names)),
        "lost_shards": [dataclasses.asdict(lost[name]) for name in sorted(lost)],
        "failed_shards": dict(sorted(failed.items())),
        "figures": index.statistics.to_summary(),
        "statistics": index.statistics.to_json(),
        "run": dict(run or {}),
    }
    storage.publish_bytes(_to_json(summary), storage.join(url, SUMMARY_FILE), exclusive=False)
    return summary


def read_lost(url: str) -> list[Owed]:
    """What `_summary.json` tells of token shards that were gone when it was written; nothing where it is of no use."""
    try:
        found = json.loads(storage.read_bytes(storage.join(url, SUMMARY_FILE)))
        return [owed_from_json(each) for each in found["lost_shards"]]
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return []


def tell_unfinished(url: str, names: Collection[str], *, with_failed: bool = True) -> str:
    """`TokenDataset.unfinished` of a dataset of which the shards with these names are committed. Without `with_failed`
    a run is finished that could not do some shards, and said so."""
    try:
        summary = json.loads(storage.read_bytes(storage.join(url, SUMMARY_FILE)))
        failed = () if with_failed else map(token_shard_name, summary["failed_shards"])
        num_missing = len(set(summary["missing_shards"]).difference(names, failed))
        num_planned = summary["num_shards_planned"]
    except FileNotFoundError:
        return f"the run that makes it has not come to its end (no {SUMMARY_FILE})"
    except (ValueError, KeyError, TypeError):
        return ""  # which inspect_tokens --verify tells
    return f"{num_missing} of {num_planned} shards that its run planned are missing" if num_missing else ""


def merge_statistics(url: str, names: Sequence[str], spec: TokenSpec) -> ShardStatistics:
    """The statistics of the named shards together. Raises RefusedError for a shard made with another spec."""
    total = empty_statistics(spec)
    with ThreadPoolExecutor(NUM_READERS, "footers") as pool:
        footers = map_ahead(pool, lambda name: read_footer(url, name, spec), names, max_items=2 * NUM_READERS)
        for footer in footers:
            total.merge(footer.statistics)
    return total


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

    def rows(self, shard: str | None = None) -> Iterator[TokenRecord]:
        """All rows, or those of one shard, in source order; shards in order of their names. Raises RefusedError at a
        shard that was made with other settings than the dataset."""
        for name in self.shards if shard is None else [shard]:
            yield from iter_records(self.shard_url(name), spec=self.spec)

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


class BrokenDatasetFile(UserError):
    """`_dataset.json` is there, and does not say what it should."""

    reason = ""  # without the place and what to do


def read_dataset_file(url: str) -> tuple[TokenSpec, dict[str, Any]]:
    """(spec, description) in `_dataset.json`. Raises UserError where it is missing or of another version,
    BrokenDatasetFile where it is neither."""
    file_url = storage.join(url, DATASET_FILE)
    try:
        content = json.loads(storage.read_bytes(file_url))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{storage.redact(url)}: {_tell_what_is_there(url)}; give the output.url of a tokenize_corpus run"
        ) from error
    except ValueError as error:
        raise _broken(file_url, error) from error
    if not isinstance(content, dict) or "format" not in content:
        raise _broken(file_url, "no format version in it")
    version = content["format"]
    if version != FORMAT_VERSION:
        raise UserError(
            f"{storage.redact(file_url)}: token format version {version}, this program reads version "
            f"{FORMAT_VERSION}; use the program that wrote the dataset, or give another output.url"
        )
    try:
        description = content["description"]
        if not isinstance(description, dict):
            raise TypeError("its description is no object")
        return TokenSpec.from_json(content["spec"]), description
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(file_url, f"{type(error).__name__}: {error}") from error


def _broken(file_url: str, reason: object) -> BrokenDatasetFile:
    told = f"is broken ({' '.join(str(reason).split())})"
    error = BrokenDatasetFile(
        f"{storage.redact(file_url)}: {told}; inspect_tokens --repair removes it, and the tokenize_corpus command that "
        "made the dataset writes it anew"
    )
    error.reason = told  # an attribute, so that actors can send it
    return error


def _tell_what_is_there(url: str) -> str:
    """Of a place without DATASET_FILE, for a user who expects a token dataset."""
    nothing_known = f"no {DATASET_FILE} there, so it is no token dataset"
    folder, _, name = url.rstrip("/").rpartition("/")
    try:
        if what := recognise(url):
            return f"{what}, expected a token dataset"
        is_part = name in (DATA_DIRECTORY, QUARANTINE_DIRECTORY)
        if is_part and storage.exists(storage.join(folder or ".", DATASET_FILE)):
            return f"a part of the token dataset {storage.redact(folder or '.')}, expected all of it"
        if url.endswith(".tar") or any(name.endswith(".tar") for name in storage.list_files(url)):
            return f"image shards, expected a token dataset, which has {DATASET_FILE}"
    except OSError:  # a store that lets nobody look around
        return nothing_known
    return nothing_known


def _to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()
