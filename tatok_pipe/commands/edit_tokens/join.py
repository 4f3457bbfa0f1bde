"""Columns of a user's table joined to a token dataset; and what is left of joined columns when rows go.

All is looked at before anything is written. The files of the token shards come first, under names that nobody knows
yet, then `_columns.json`, which names them, then the version: killed anywhere, the same command does the rest.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from tatok_pipe import storage
from tatok_pipe.commands.edit_tokens.finished import check_finished
from tatok_pipe.commands.edit_tokens.options import EditTokensConfig, JoinConfig
from tatok_pipe.commands.edit_tokens.shard_threads import edit_shards
from tatok_pipe.errors import EXIT_DONE, EXIT_INTERRUPTED, UserError
from tatok_pipe.parallel import map_ahead
from tatok_pipe.report.figures import count
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.lease import hold_output
from tatok_pipe.runs.progress_file import ProgressFile
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.tokens.checking.verify import TEMPORARY_NAME
from tatok_pipe.tokens.dataset_file import read_dataset_file
from tatok_pipe.tokens.editing.join import (
    JoinCheck,
    JoinTable,
    differing_columns,
    prune_side_table,
    read_join_table,
    read_keys,
    write_side_table,
)
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.joined import FILE_NAME, Joined, read_joined, write_joined
from tatok_pipe.tokens.layout import COLUMNS_DIRECTORY, COLUMNS_FILE
from tatok_pipe.tokens.removed import Removed
from tatok_pipe.tokens.spec import token_schema
from tatok_pipe.tokens.versions import record_version

logger = logging.getLogger("tatok_pipe.edit_tokens")

_COMMAND = "edit_tokens"
_NUM_READERS = 8


@dataclass(frozen=True)
class _Written:
    """The file of a token shard."""

    shard: str
    mark: str
    num_images: int  # keys
    num_tokens: int = 0


def join_columns(config: EditTokensConfig, table_url: str, summary: JobSummary) -> int:
    """Exit code. Raises UserError for what it cannot be given."""
    url, stop = config.input.url, StopSignal()
    spec, _ = read_dataset_file(url)
    table = read_join_table(
        table_url, key=config.join.key, columns=config.join.columns, taken=token_schema(spec).names
    )
    if config.dry_run:
        join = _Join(config, table, save=False)
        print(join.plan_line)
        return EXIT_DONE
    with hold_output(url, stop, option="input.url"):
        return _Join(config, table, save=True).do(stop, summary)


class _Join:
    """A table and a dataset, as it is now. Raises UserError where they do not go together."""

    def __init__(self, config: EditTokensConfig, table: JoinTable, *, save: bool) -> None:
        self._url, self._every_s, self._table = config.input.url, config.progress.every_s, table
        self._spec, _ = read_dataset_file(self._url)
        self._index = refresh_index(self._url, self._spec, save=save)
        self._names = list(self._index.names)
        check_finished(self._url, self._names)
        self._joined = read_joined(self._url)
        self._check, changed = self._look()
        self._refuse(config.join, changed)
        new_types = {each.name: each.type for each in table.columns.schema}
        self._types = {**self._joined.types, **new_types}
        self._is_done = not changed and self._types == self._joined.types
        self._is_done = self._is_done and self._joined.tables.keys() == set(self._names)

    @property
    def plan_line(self) -> str:
        check, columns = self._check, ", ".join(self._table.columns.column_names)
        unused = f"; {check.num_unused} keys of the table are no row's" if check.num_unused else ""
        missing = f", {check.num_missing} of them without a value" if check.num_missing else ""
        return (
            f"{storage.redact(self._url)}: {columns} joined by {count(check.num_keys, 'key')}{missing}, in "
            f"{count(len(self._names), 'token shard')}{unused}"
        )

    def do(self, stop: StopSignal, summary: JobSummary) -> int:
        """Exit code."""
        url = self._url
        summary.add({"output": storage.redact(url), "shards_planned": len(self._names)})
        if not self._is_done:
            record_version(url, self._index, by=_COMMAND)  # what it was before
            summary.keep_progress(
                ProgressFile(url, entry=_COMMAND, every_s=self._every_s, num_todo=len(self._names))
            )
            outcome = edit_shards(
                self._names, self._write, stop=stop, summary=summary, every_s=self._every_s,
                row_name=self._spec.row_name,
            )  # fmt: skip
            if outcome.num_over < len(self._names):
                logger.warning("interrupted: nothing is changed yet; the same command does all of it")
                return EXIT_INTERRUPTED
            write_joined(url, Joined(self._types, {each.shard: each.mark for each in outcome.done}))
        remove_unused(url)
        version = record_version(url, self._index, by=_COMMAND)
        summary.add({"rows": self._check.num_keys, "dataset_version": version.number})
        told = "joined before" if self._is_done else self.plan_line.partition(": ")[2]
        logger.info("%s: %s; %s", storage.redact(url), told, version)
        return EXIT_DONE

    def _write(self, name: str) -> _Written:
        keys = read_keys(self._url, name)
        mark = write_side_table(self._url, self._joined, name, keys, self._table, self._types)
        return _Written(name, mark, len(keys))

    def _look(self) -> tuple[JoinCheck, list[str]]:
        """What the table has values for, and the columns that would get other ones."""
        check, changed = JoinCheck(self._table), set[str]()
        with ThreadPoolExecutor(_NUM_READERS, "keys") as pool:
            all_keys = map_ahead(pool, partial(read_keys, self._url), self._names, max_items=_NUM_READERS)
            for name, keys in zip(self._names, all_keys, strict=True):
                check.add(name, keys)
                changed.update(differing_columns(self._url, self._joined, name, keys, self._table))
        return check, sorted(changed)

    def _refuse(self, config: JoinConfig, changed: Sequence[str]) -> None:
        check, shown = self._check, self._table.shown
        if check.shared is not None:
            key, first, second = check.shared
            raise UserError(
                f"join.table={shown}: key {key!r} is in more than one token shard ({first}, {second}); give such keys "
                "as TOKEN_SHARD/KEY"
            )
        if check.num_missing and (config.missing == "error" or check.num_missing == check.num_keys):
            raise UserError(
                f"join.table={shown}: has no row for {check.num_missing} of {check.num_keys} keys, first "
                f"{check.first_missing}; give a table with all of them"
                + (
                    ", or join.missing=empty"
                    if check.num_missing < check.num_keys
                    else ", or another join.key"
                )
            )
        if changed and not config.replace:
            raise UserError(
                f"join.table={shown}: {', '.join(changed)} was joined before with other values; rename it, or give "
                "join.replace=true"
            )


def prune_joined(url: str, removed: Removed) -> None:
    """Take what was removed out of the joined columns of the dataset at `url`, too."""
    joined = read_joined(url)
    tables = {name: prune_side_table(url, joined, name, removed) for name in joined.tables}
    if tables != joined.tables:
        write_joined(url, Joined(joined.types, tables))
    remove_unused(url)


def remove_unused(url: str) -> None:
    """Remove the files of joined columns that `_columns.json` does not name, and what a killed edit left of files that
    it was writing. No other edit may be at work."""
    tables = read_joined(url).tables
    for file in storage.list_files(storage.join(url, COLUMNS_DIRECTORY)):
        match = FILE_NAME.fullmatch(file)
        if TEMPORARY_NAME.fullmatch(file) or (match and tables.get(match[1]) != match[2]):
            storage.remove(storage.join(url, f"{COLUMNS_DIRECTORY}/{file}"))
    for file in storage.list_files(url):
        match = TEMPORARY_NAME.fullmatch(file)
        if match and match[1] == COLUMNS_FILE:
            storage.remove(storage.join(url, file))
