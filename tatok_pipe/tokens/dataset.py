"""Token datasets: a directory of token shards that belong together, its growth shard by shard, its reader.

<url>/_dataset.json              written first: format, token spec, description
<url>/quarantine/<name>.parquet  written before the data file of the same shard
<url>/data/<name>.parquet        its arrival is the commit of the shard
<url>/_summary.json              written last, rewritten by every finished run
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from tatok_pipe import storage
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.records import Quarantined, TokenRecord
from tatok_pipe.tokens.format import (
    ShardMetadata,
    empty_statistics,
    iter_records,
    read_quarantine,
    read_shard_metadata,
    token_shard_name,
)
from tatok_pipe.tokens.spec import FORMAT_VERSION, TokenSpec
from tatok_pipe.tokens.statistics import ShardStatistics

if TYPE_CHECKING:
    import torch

DATASET_FILE = "_dataset.json"
SUMMARY_FILE = "_summary.json"
DATA_DIRECTORY = "data"
QUARANTINE_DIRECTORY = "quarantine"
_SUFFIX = ".parquet"
_NUM_FOOTER_READERS = 16


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
    content = {"format": FORMAT_VERSION, "spec": spec.to_json(), "description": dict(description)}
    if storage.publish_bytes(_to_json(content), storage.join(url, DATASET_FILE), exclusive=True):
        return
    found, _ = _read_dataset_file(url)
    differences = found.differences(spec)
    if differences:
        raise RefusedError(
            f"{storage.redact(url)}: holds tokens of tokenizer {found.tokenizer_fingerprint} with DTF "
            f"{_one_line(found.dtf)}; this run has tokenizer {spec.tokenizer_fingerprint} with DTF "
            f"{_one_line(spec.dtf)}. Give another output.url, or the checkpoint and settings of the dataset "
            f"(its {'; its '.join(differences)})"
        )


def committed_shards(url: str) -> set[str]:
    """The names of the shards that are done, from one listing."""
    files = storage.list_files(storage.join(url, DATA_DIRECTORY))
    return {name.removesuffix(_SUFFIX) for name in files if name.endswith(_SUFFIX)}


def plan(shards: Sequence[str], committed: set[str]) -> list[str]:
    """The image shards, in order, whose token shard is not committed."""
    return [shard for shard in shards if token_shard_name(shard) not in committed]


def commit_shard(
    url: str,
    name: str,
    local_parquet: str | os.PathLike[str],
    local_quarantine: str | os.PathLike[str] | None,
) -> bool:
    """Publish a finished token shard, its quarantine file first. False where it was committed already.

    Nothing of a committed shard is touched. A quarantine file that an attempt left behind before its commit
    is replaced, or removed where this attempt quarantined nothing.
    """
    data_url = _data_url(url, name)
    if storage.exists(data_url):
        return False
    quarantine_url = _quarantine_url(url, name)
    if local_quarantine is None:
        storage.remove(quarantine_url)
    else:
        storage.publish_file(local_quarantine, quarantine_url, exclusive=False)
    return storage.publish_file(local_parquet, data_url, exclusive=True)


def write_summary(
    url: str, *, planned: Sequence[str], failed: Mapping[str, str], run: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Write `_summary.json` from the footers of all committed shards, and return its content.

    `planned` are the names of the shards that the run was to have at its end, `failed` maps image shards to
    their error, `run` holds figures of the run itself (JSON types: seconds, throughput).
    """
    spec, _ = _read_dataset_file(url)
    names = sorted(committed_shards(url))
    statistics = merge_statistics(url, names, spec)
    summary = {
        "format": FORMAT_VERSION,
        "tokenizer_fingerprint": spec.tokenizer_fingerprint,
        "num_shards_planned": len(planned),
        "num_shards_committed": len(names),
        "missing_shards": sorted(set(planned) - set(names)),
        "failed_shards": dict(sorted(failed.items())),
        "figures": statistics.to_summary(),
        "statistics": statistics.to_json(),
        "run": dict(run or {}),
    }
    storage.publish_bytes(_to_json(summary), storage.join(url, SUMMARY_FILE), exclusive=False)
    return summary


def merge_statistics(url: str, names: Sequence[str], spec: TokenSpec) -> ShardStatistics:
    """The statistics of the named shards together. Raises RefusedError for a shard made with another spec."""
    total = empty_statistics(spec)
    with ThreadPoolExecutor(_NUM_FOOTER_READERS) as pool:
        for name, metadata in zip(
            names, pool.map(lambda name: read_shard_metadata(_data_url(url, name)), names), strict=True
        ):
            differences = metadata.spec.differences(spec)
            if differences:
                raise RefusedError(
                    f"{storage.redact(_data_url(url, name))}: was made with other settings than its dataset "
                    f"({'; '.join(differences)}); remove the file and tokenize its shard again"
                )
            total.merge(metadata.statistics)
    return total


class TokenDataset:
    """Reads a token dataset. Raises UserError where `url` holds none, or one of another format version.

    The shards are those committed at the time of opening.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.spec, self.description = _read_dataset_file(url)
        self.shards = sorted(committed_shards(url))

    @cached_property
    def statistics(self) -> ShardStatistics:
        """Merged from the footers of all shards: true also where a run did not come to its summary."""
        return merge_statistics(self.url, self.shards, self.spec)

    @property
    def num_rows(self) -> int:
        return self.statistics.num_images

    @property
    def summary(self) -> dict[str, Any] | None:
        """The content of `_summary.json`; None where no run has finished."""
        try:
            return json.loads(storage.read_bytes(storage.join(self.url, SUMMARY_FILE)))
        except FileNotFoundError:
            return None

    def shard_url(self, name: str) -> str:
        """Where the Parquet file of a shard is."""
        return _data_url(self.url, name)

    def shard_metadata(self, name: str) -> ShardMetadata:
        """Spec, source, statistics and row count of one shard, from its footer."""
        return read_shard_metadata(self.shard_url(name))

    def rows(self, shard: str | None = None) -> Iterator[TokenRecord]:
        """All rows, or those of one shard, in source order; shards in order of their names."""
        for name in self.shards if shard is None else [shard]:
            yield from iter_records(self.shard_url(name))

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
            if name + _SUFFIX in files:
                yield from ((name, row) for row in read_quarantine(_quarantine_url(self.url, name)))

    def decode(self, records: Sequence[TokenRecord], model: Decoder) -> torch.Tensor:
        """The images of the rows, (B, 3, H, W) float in [0, 1], on the device of `model`; no gradients."""
        import torch  # here for the same reason as in records_to_tensors

        device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
        global_codes, patch_codes, keep = (each.to(device) for each in records_to_tensors(records, self.spec))
        with torch.no_grad():
            return model.decode(global_codes, patch_codes, keep)


def records_to_tensors(
    records: Sequence[TokenRecord], spec: TokenSpec
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rows as the decoder takes them: global_codes (B, K) int64, patch_codes (B, N) int64, keep (B, N) bool.

    Kept codes stand at their raster positions; where `keep` is False the code is 0 and means nothing.
    """
    import torch  # here, so that listing and planning a dataset do not wait seconds for it

    global_codes = np.zeros((len(records), spec.num_globals), np.int64)
    patch_codes = np.zeros((len(records), spec.num_patches), np.int64)
    keep = np.zeros((len(records), spec.num_patches), np.bool_)
    for index, record in enumerate(records):
        global_codes[index] = record.global_codes
        patch_codes[index, record.patch_positions] = record.patch_codes
        keep[index, record.patch_positions] = True
    return torch.from_numpy(global_codes), torch.from_numpy(patch_codes), torch.from_numpy(keep)


def _read_dataset_file(url: str) -> tuple[TokenSpec, dict[str, Any]]:
    file_url = storage.join(url, DATASET_FILE)
    try:
        content = json.loads(storage.read_bytes(file_url))
    except FileNotFoundError as error:
        raise UserError(
            f"{storage.redact(url)}: no {DATASET_FILE} there, so it is no token dataset; give the output.url "
            "of a tokenize_corpus run"
        ) from error
    except ValueError as error:
        raise UserError(
            f"{storage.redact(file_url)}: is not JSON ({error}); expected a token dataset"
        ) from error
    version = content.get("format") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise UserError(
            f"{storage.redact(file_url)}: token format version {version}, this program reads version "
            f"{FORMAT_VERSION}; use the program that wrote the dataset"
        )
    return TokenSpec.from_json(content["spec"]), content["description"]


def _data_url(url: str, name: str) -> str:
    return storage.join(url, DATA_DIRECTORY, name + _SUFFIX)


def _quarantine_url(url: str, name: str) -> str:
    return storage.join(url, QUARANTINE_DIRECTORY, name + _SUFFIX)


def _to_json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, indent=1, sort_keys=True) + "\n").encode()


def _one_line(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)
