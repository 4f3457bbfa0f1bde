"""A token dataset filtered again, into another one, by the scores that its rows hold: nothing is encoded.

Letters: B images, N patches.
"""

from __future__ import annotations

import logging
import os
from dataclasses import asdict, replace

import numpy as np
import pyarrow as pa
import torch

from tatok_pipe import storage
from tatok_pipe.commands.edit_tokens.finished import check_finished
from tatok_pipe.commands.edit_tokens.options import EditTokensConfig
from tatok_pipe.commands.edit_tokens.places import check_apart
from tatok_pipe.commands.edit_tokens.shard_threads import Written, edit_shards
from tatok_pipe.commands.inspect_tokens.run import find_tokenizer
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS, EXIT_INTERRUPTED, RefusedError, UserError
from tatok_pipe.images.loose.image_list import LIST_FILE
from tatok_pipe.report.figures import count, describe_filter
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.progress_file import ProgressFile, was_cut_short
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.storage.temporary import temporary_folder
from tatok_pipe.tokenizer.dtf import Filter, keep_mask
from tatok_pipe.tokens.checking.check import ShardChecking, open_shard_file
from tatok_pipe.tokens.checking.repair import renew_summary
from tatok_pipe.tokens.columns import list_lengths
from tatok_pipe.tokens.commit import commit_shard, committed_shards
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check, read_dataset_file
from tatok_pipe.tokens.editing.rewrite import write_changed
from tatok_pipe.tokens.format import ShardWriter, read_quarantine, write_quarantine
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.joined import columns_file, read_content, read_joined, write_joined
from tatok_pipe.tokens.layout import COLUMNS_DIRECTORY, SUMMARY_FILE, data_url, quarantine_url
from tatok_pipe.tokens.removed import read_removed, write_removed
from tatok_pipe.tokens.spec import FilterSpec, TokenSpec
from tatok_pipe.tokens.statistics import float32_toward_zero
from tatok_pipe.tokens.versions import record_version

logger = logging.getLogger("tatok_pipe.edit_tokens")

_SOURCE = "filtered"  # of the description of a dataset: the version that it was made of


def filter_dataset(config: EditTokensConfig, output_url: str, summary: JobSummary) -> int:
    """Exit code. Raises UserError for what it cannot be given."""
    dataset = TokenDataset(config.input.url)
    spec = _filtered_spec(config, dataset, output_url)
    shown = storage.redact(output_url)
    told = f"{describe_filter(spec.dtf)}, from {storage.redact(dataset.url)}, {dataset.version}"
    if config.dry_run:
        print(f"{shown}: {count(len(dataset.shards), 'token shard')} to be written, {told}")
        return EXIT_DONE
    create_or_check(output_url, spec, dataset.description | {_SOURCE: dataset.version.to_json()})
    _check_source(dataset, output_url)
    _take_along(dataset, output_url)
    todo = sorted({*dataset.shards} - committed_shards(output_url))
    logger.info("%s: %d of %d token shards to do, %s", shown, len(todo), len(dataset.shards), told)
    summary.add({"output": shown, "shards_planned": len(dataset.shards), "shards_todo": len(todo)})
    stop = StopSignal()

    if todo or was_cut_short(output_url):
        summary.keep_progress(ProgressFile(
            output_url, entry="edit_tokens", every_s=config.progress.every_s, num_todo=len(todo),
            num_done_before=len(dataset.shards) - len(todo), row_name=spec.row_name,
        ))  # fmt: skip
    outcome = edit_shards(
        todo, lambda name: _filter_shard(dataset, name, output_url, spec), stop=stop, summary=summary,
        every_s=config.progress.every_s, row_name=spec.row_name,
    )  # fmt: skip
    if outcome.num_over < len(todo):
        logger.warning("interrupted: the same command does the rest")
        return EXIT_INTERRUPTED
    if outcome.failed:
        name, reason = next(iter(outcome.failed.items()))
        logger.error(
            "%d token shards are not whole, first %s: %s; inspect_tokens --repair removes them, and the "
            "tokenize_corpus command that made them makes them again", len(outcome.failed), name, reason,
        )  # fmt: skip
        return EXIT_FAILED_SHARDS
    storage.publish_bytes(
        storage.read_bytes(storage.join(dataset.url, SUMMARY_FILE)),
        storage.join(output_url, SUMMARY_FILE),
        exclusive=True,
    )
    renew_summary(output_url)
    index = refresh_index(output_url, spec)
    version = record_version(output_url, index, by="edit_tokens")
    statistics = index.statistics
    summary.add({"dataset_images": statistics.num_images, "dataset_version": version.number})
    mean = f", {statistics.mean_tokens:.1f} tokens/{spec.row_name}" if statistics.num_images else ""
    logger.info("%s: %s%s; %s", shown, count(statistics.num_images, spec.row_name), mean, version)
    return EXIT_DONE


def filter_table(table: pa.Table, filter: Filter, spec: TokenSpec) -> pa.Table:
    """Rows in the columns of `token_schema` as they would be by another filter of the same score. Raises ValueError
    naming the key of a row that would keep a patch which it does not have any more."""
    if not table.num_rows:
        return table
    (batch,) = table.combine_chunks().to_batches()
    shape = batch.num_rows, spec.num_patches
    scores, nats = (
        batch.column(name).flatten().to_numpy().reshape(shape) for name in ("patch_score", "patch_entropy")
    )  # (B, N)
    keep = keep_mask(torch.from_numpy(scores.copy()), filter).numpy()  # (B, N)
    codes = _spread(batch, spec.num_patches)  # (B, N)
    lost = (keep & (codes < 0)).any(axis=1)
    if lost.any():
        key = batch.column("key")[int(lost.argmax())].as_py()
        raise ValueError(f"row {key!r} would keep patches that were dropped when it was tokenized")
    num_kept = keep.sum(axis=1)  # (B,)
    changed = {
        "patch_codes": (codes[keep], num_kept),
        "patch_positions": (np.nonzero(keep)[1], num_kept),
    }
    for name, (values, lengths) in changed.items():
        table = _with_column(table, name, _to_lists(values, lengths, table.schema.field(name).type))
    dropped = float32_toward_zero(_sums(nats.astype(np.float64)[~keep], spec.num_patches - num_kept))
    table = _with_column(table, "entropy_dropped", pa.array(dropped))
    return _with_column(table, "num_tokens", pa.array((spec.num_globals + num_kept).astype(np.int32)))


def _spread(batch: pa.RecordBatch, num_patches: int) -> np.ndarray:
    """The code of each patch, (B, N) int64; -1 where it was dropped."""
    positions = batch.column("patch_positions").flatten().to_numpy()
    rows = np.repeat(np.arange(batch.num_rows), list_lengths(batch.column("patch_codes")))
    codes = np.full((batch.num_rows, num_patches), -1, np.int64)
    codes[rows, positions] = batch.column("patch_codes").flatten().to_numpy()
    return codes


def _to_lists(values: np.ndarray, lengths: np.ndarray, data_type: pa.DataType) -> pa.Array:
    """The `values` (sum of lengths,), end to end, as lists."""
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    items = pa.array(values.astype(data_type.value_type.to_pandas_dtype()))
    return pa.ListArray.from_arrays(offsets, items, type=data_type)


def _sums(values: np.ndarray, lengths: np.ndarray) -> list[float]:
    """Of each stretch of `values`, summed as tokenize_corpus sums it: in another order a last bit may differ."""
    ends = np.cumsum(lengths)
    return [float(values[end - length : end].sum()) for end, length in zip(ends, lengths, strict=True)]


def _with_column(table: pa.Table, name: str, values: pa.Array) -> pa.Table:
    place = table.schema.get_field_index(name)
    return table.set_column(place, table.schema.field(name), values)


def _filtered_spec(config: EditTokensConfig, dataset: TokenDataset, output_url: str) -> TokenSpec:
    """What the rows will be. Raises UserError where they cannot be had from the dataset."""
    shown, spec = storage.redact(dataset.url), dataset.spec
    check_apart(dataset.url, output_url)
    check_finished(dataset.url, dataset.shards)
    if not spec.has_scores:
        raise UserError(
            f"{shown}: its rows hold no scores of their patches; tokenize with record.scores=true and dtf.rule=none"
        )
    if config.filter.score != spec.dtf.score:
        raise UserError(
            f"filter.score={config.filter.score}: {shown} holds scores by {spec.dtf.score}; give "
            f"filter.score={spec.dtf.score}"
        )
    tokenizer, problem = find_tokenizer(
        config.tokenizer.checkpoint, dataset, other_stores=config.input.other_stores
    )
    if tokenizer is None:
        raise UserError(
            f"{shown}: cannot be filtered without its tokenizer, which has the calibration: {problem}"
        )
    return replace(spec, dtf=FilterSpec(**asdict(tokenizer.filter(config.filter, option="filter"))))


def _check_source(dataset: TokenDataset, output_url: str) -> None:
    """Raise RefusedError where the output was begun on another version of the dataset, or is none of one: rows that
    were removed since may be in it."""
    begun = read_dataset_file(output_url)[1].get(_SOURCE)
    digest = begun.get("digest") if isinstance(begun, dict) else None
    if digest != dataset.version.digest:
        raise RefusedError(
            f"output.url={storage.redact(output_url)}: was not begun on {dataset.version} of "
            f"{storage.redact(dataset.url)}, which is there now; give another output.url"
        )


def _take_along(dataset: TokenDataset, output_url: str) -> None:
    """What later runs into the output need to know: what must not come back, and what is in which part; and the columns
    that were joined."""
    removed = read_removed(dataset.url)
    if removed.hashes and read_removed(output_url) != removed:
        write_removed(output_url, removed)
    joined = read_joined(dataset.url)
    there = storage.list_files(storage.join(output_url, COLUMNS_DIRECTORY))
    for name, mark in joined.tables.items():
        file = columns_file(name, mark)
        if file.removeprefix(f"{COLUMNS_DIRECTORY}/") not in there:
            content = read_content(dataset.url, joined, name)
            storage.publish_bytes(content, storage.join(output_url, file), exclusive=True)
    if joined.types:
        write_joined(output_url, joined)
    parts = storage.join(dataset.url, LIST_FILE)
    if storage.exists(parts):
        storage.publish_bytes(storage.read_bytes(parts), storage.join(output_url, LIST_FILE), exclusive=True)


def _filter_shard(dataset: TokenDataset, name: str, output_url: str, spec: TokenSpec) -> Written:
    """Write and commit one token shard. Raises CorruptShard where that of the dataset is not whole."""
    content = pa.py_buffer(storage.read_bytes(data_url(dataset.url, name)))
    with open_shard_file(content, spec=dataset.spec) as checking:
        return _filter_rows(dataset, name, checking, output_url, spec)


def _filter_rows(
    dataset: TokenDataset, name: str, checking: ShardChecking, output_url: str, spec: TokenSpec
) -> Written:
    metadata = checking.metadata
    bad = read_quarantine(quarantine_url(dataset.url, name)) if metadata.statistics.num_quarantined else []
    spec = replace(metadata.spec, dtf=spec.dtf)
    filter = Filter(**asdict(spec.dtf))

    def change(table: pa.Table) -> pa.Table:
        try:
            return filter_table(table, filter, spec)
        except ValueError as error:
            raise UserError(
                f"{storage.redact(data_url(dataset.url, name))}: {error}; give a filter that keeps fewer, or "
                "tokenize with dtf.rule=none"
            ) from None

    with temporary_folder() as folder:
        path, bad_path = os.path.join(folder, "data.parquet"), os.path.join(folder, "quarantine.parquet")
        writer = ShardWriter(path, spec, metadata.source)
        write_changed(writer, checking, change, quarantined=bad)
        if bad:
            write_quarantine(bad_path, bad)
        commit_shard(output_url, name, path, bad_path if bad else None, spec=spec, source=metadata.source)
    return Written(writer.statistics.num_images, writer.statistics.num_tokens)
