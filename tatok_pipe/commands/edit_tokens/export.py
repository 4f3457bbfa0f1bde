"""A token dataset in the format of another loader: `_export.json` first, then each token shard, the index last."""

from __future__ import annotations

import json
import logging
from typing import Any

from tatok_pipe import storage
from tatok_pipe.commands.edit_tokens.finished import check_finished
from tatok_pipe.commands.edit_tokens.options import EditTokensConfig
from tatok_pipe.commands.edit_tokens.places import check_apart
from tatok_pipe.commands.edit_tokens.shard_threads import Written, edit_shards
from tatok_pipe.errors import EXIT_DONE, EXIT_INTERRUPTED, RefusedError, UserError
from tatok_pipe.report.figures import count
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.progress_file import PROGRESS_FILE, ProgressFile, was_cut_short
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.tokens.checking.verify import TEMPORARY_NAME
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.exporting.base import Exported, Exporter
from tatok_pipe.tokens.exporting.table import EXPORTERS
from tatok_pipe.tokens.layout import to_json_file

logger = logging.getLogger("tatok_pipe.edit_tokens")

EXPORT_FILE = "_export.json"
_FORMAT = 1


def export_dataset(config: EditTokensConfig, format: str, output_url: str, summary: JobSummary) -> int:
    """Exit code. Raises UserError for what it cannot be given."""
    dataset, exporter = TokenDataset(config.input.url), EXPORTERS[format]
    check_apart(dataset.url, output_url)
    check_finished(dataset.url, dataset.shards)
    shown = storage.redact(output_url)
    told = f"{count(len(dataset.shards), 'token shard')} of {storage.redact(dataset.url)}, {dataset.version}"
    if config.dry_run:
        print(f"{shown}: {told}, to be written as {exporter.help}")
        return EXIT_DONE
    _begin(output_url, dataset, exporter)
    there = storage.list_files(output_url)
    names = {name: f"{name}{exporter.suffixes[-1]}" for name in dataset.shards}
    todo = [name for name in dataset.shards if names[name] not in there]
    logger.info("%s: %d of %d files to write, of %s", shown, len(todo), len(names), told)
    summary.add({"output": shown, "shards_planned": len(names), "shards_todo": len(todo)})
    if todo or was_cut_short(output_url):
        summary.keep_progress(ProgressFile(
            output_url, entry="edit_tokens", every_s=config.progress.every_s, num_todo=len(todo),
            num_done_before=len(names) - len(todo), row_name=dataset.spec.row_name,
        ))  # fmt: skip
    outcome = edit_shards(
        todo, lambda name: _export_shard(dataset, exporter, name, output_url), stop=StopSignal(), summary=summary,
        every_s=config.progress.every_s, row_name=dataset.spec.row_name,
    )  # fmt: skip
    if outcome.num_over < len(todo):
        logger.warning("interrupted: the same command does the rest")
        return EXIT_INTERRUPTED
    _finish(output_url, dataset, exporter, names)
    summary.add({"rows": dataset.num_rows})
    logger.info("%s: %s as %s", shown, count(dataset.num_rows, dataset.spec.row_name), exporter.help)
    return EXIT_DONE


def _begin(url: str, dataset: TokenDataset, exporter: Exporter) -> None:
    """Write down what the output is, or make sure that it is that. Raises RefusedError where it is something else."""
    content: dict[str, Any] = {
        "format": _FORMAT,
        "export": exporter.name,
        "source": dataset.version.to_json(),
        "spec": dataset.spec.to_json(),
        "vocabulary": exporter.vocabulary(dataset.spec),
    }
    place, shown = storage.join(url, EXPORT_FILE), storage.redact(url)
    foreign = [name for name in storage.list_files(url) if not _is_ours(name)]
    if not storage.exists(place) and (foreign or storage.list_folders(url)):
        raise RefusedError(
            f"output.url={shown}: holds other files (first {(foreign or storage.list_folders(url))[0]}), and no "
            f"{EXPORT_FILE}; give an empty folder"
        )
    if storage.publish_bytes(to_json_file(content), place, exclusive=True):
        return
    try:
        found = json.loads(storage.read_bytes(place))
        was = {name: found[name] for name in content}
    except (ValueError, KeyError, TypeError) as error:
        raise RefusedError(
            f"{storage.redact(place)}: is broken ({error}); give another output.url"
        ) from error
    was["source"]["version"] = content["source"]["version"]  # a version may have got its number since
    if was != content:
        raise RefusedError(
            f"output.url={shown}: holds an export as {was['export']} of version {found['source']['digest'][:12]}, this "
            f"one is {exporter.name} of {dataset.version}; give another output.url"
        )


def _is_ours(name: str) -> bool:
    return name == PROGRESS_FILE or TEMPORARY_NAME.fullmatch(name) is not None


def _export_shard(dataset: TokenDataset, exporter: Exporter, name: str, url: str) -> Written:
    records = list(dataset.rows(name))
    try:
        files = exporter.encode(records, dataset.spec)
    except ValueError as error:
        raise UserError(f"{name}: cannot be exported as {exporter.name}: {error}") from None
    for suffix, content in zip(exporter.suffixes, files, strict=True):
        is_last = suffix == exporter.suffixes[-1]
        storage.publish_bytes(content, storage.join(url, name + suffix), exclusive=is_last)
    return Written(len(records), sum(record.num_tokens for record in records))


def _finish(url: str, dataset: TokenDataset, exporter: Exporter, names: dict[str, str]) -> None:
    """Write what tells of all token shards; of those without rows nothing is told."""
    shards = []
    for name, file in names.items():
        if num_rows := dataset.shard_metadata(name).num_rows:
            size_bytes = storage.file_info(storage.join(url, file)).size_bytes
            shards.append(Exported(file, size_bytes, num_rows))
    for file, content in exporter.index(shards, dataset.spec).items():
        storage.publish_bytes(content, storage.join(url, file), exclusive=False)
