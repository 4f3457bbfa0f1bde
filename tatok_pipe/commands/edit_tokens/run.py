"""The run of edit_tokens: which rows go, the token shards without them, and what is told of it.

In this order, so that it can end anywhere and be gone on with: the version that there was is recorded; the hashes of
what goes are written down, from when on nobody brings it back; the report goes; token shards are written anew one by
one; index, summary and version follow. Whatever is left of an edit is found by the hashes, by any edit after it.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

from tatok_pipe import storage
from tatok_pipe.commands.edit_tokens.export import export_dataset
from tatok_pipe.commands.edit_tokens.finished import check_finished
from tatok_pipe.commands.edit_tokens.join import join_columns, prune_joined
from tatok_pipe.commands.edit_tokens.options import EditTokensConfig, RemoveConfig
from tatok_pipe.commands.edit_tokens.shard_threads import edit_shards
from tatok_pipe.commands.inspect_tokens.options import REPORT_FILE
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS, EXIT_INTERRUPTED, UserError
from tatok_pipe.images.loose.image_list import LIST_FILE
from tatok_pipe.report.figures import count
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.lease import hold_output
from tatok_pipe.runs.progress_file import ProgressFile, was_cut_short
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.tokens.checking.repair import renew_summary
from tatok_pipe.tokens.dataset_file import read_dataset_file
from tatok_pipe.tokens.editing.rewrite import remove_leftovers, rewrite_shard
from tatok_pipe.tokens.editing.selection import Match, Request, Selector
from tatok_pipe.tokens.index import forget_shards, refresh_index
from tatok_pipe.tokens.index_file import Index
from tatok_pipe.tokens.removed import read_removed, write_removed
from tatok_pipe.tokens.row_condition import read_condition
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.versions import find_current, record_version

logger = logging.getLogger("tatok_pipe.edit_tokens")

COMMAND = "edit_tokens"


def run(config: EditTokensConfig, *, argv: list[str], summary: JobSummary) -> int:
    """Exit code. `summary` gets the run's figures. Raises UserError for what it cannot be given."""
    storage.configure(config.storage)
    url = config.input.url
    if config.export is not None and config.output.url is not None:
        return export_dataset(config, config.export, config.output.url, summary)
    if config.output.url is not None:
        # Here, so that rows are removed without torch, which takes seconds to import.
        from tatok_pipe.commands.edit_tokens.filter import filter_dataset

        return filter_dataset(config, config.output.url, summary)
    if config.join.table is not None:
        return join_columns(config, config.join.table, summary)
    spec, _ = read_dataset_file(url)
    request = read_request(config.remove, url, spec)
    if config.dry_run:
        edit = _Edit(url, spec, request, save=False)
        for line in edit.plan_lines:
            print(line)
        return EXIT_DONE
    stop = StopSignal()
    with hold_output(url, stop, option="input.url"):
        return _Edit(url, spec, request, save=True, every_s=config.progress.every_s).do(stop, summary)


def read_request(config: RemoveConfig, url: str, spec: TokenSpec) -> Request:
    """What the options ask for. Raises UserError where that is nothing, or cannot be read."""
    lines, where = frozenset[str](), None
    if config.keys is not None:
        told = f"remove.keys={storage.redact(config.keys)}"
        lines = frozenset(_read_lines(config.keys, told))
        if not lines:
            raise UserError(f"{told}: nothing to remove; expected a key a line")
    if config.where is not None:
        where = read_condition(url, spec, config.where, option="remove.where")
    return Request(lines, where)


def _read_lines(given: str, told: str) -> Sequence[str]:
    if not given.startswith("@"):
        return [given]
    try:
        text = storage.read_bytes(given[1:]).decode("utf-8-sig")
    except (FileNotFoundError, IsADirectoryError):
        raise UserError(f"{told}: not found; expected a text file with a key a line") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{told}: is no text in UTF-8 ({error}); expected a key a line") from None
    return [line for line in (line.removesuffix("\r") for line in text.split("\n")) if line.strip()]


class _Edit:
    """One request on one dataset, as it is now. With `save` its index is brought up to date on the way."""

    def __init__(
        self, url: str, spec: TokenSpec, request: Request, *, save: bool, every_s: float = 0.0
    ) -> None:
        self._url, self._spec, self._request = url, spec, request
        self._every_s = every_s
        self._shown = storage.redact(url)
        self._index = refresh_index(url, spec, save=save)
        check_finished(url, self._index.names)
        self._removed = read_removed(url)
        selector = Selector(url, self._index.names, request, self._removed)
        matches = list(selector.matches())
        self._matches = [match for match in matches if match.num_rows or match.num_quarantined]
        self._check_keys(selector, matches)
        is_known = request.digest in self._removed.requests
        if not self._matches and not is_known:
            what = (
                "no row is what remove.where asks for"
                if request.where
                else "give remove.keys or remove.where"
            )
            raise UserError(f"{self._shown}: nothing to remove; {what}")

    @property
    def plan_lines(self) -> list[str]:
        """What will be done, for people."""
        current = find_current(self._url, self._index)
        return [
            f"{self._shown}: {current}, {count(len(self._index), 'token shard')}, "
            f"{count(self._index.total('num_rows'), self._spec.row_name)}",
            f"to be removed: {self._show(self._matches)}",
            f"to be written anew: {count(len(self._matches), 'token shard')}",
            *self._warnings,
        ]

    def do(self, stop: StopSignal, summary: JobSummary) -> int:
        """Exit code."""
        url, spec, request = self._url, self._spec, self._request
        names = [match.name for match in self._matches]
        remove_leftovers(url, names)
        if self._removed.hashes:
            # Of an edit that was killed when its rows were gone: they are no version with their joined columns.
            prune_joined(url, self._removed)
        if not any(match.num_pending for match in self._matches):
            record_version(url, self._index, by=COMMAND)  # what it was before
        new = frozenset[bytes]().union(*(match.hashes for match in self._matches))
        requests = [request.digest] if request else []
        removed = self._removed.add(new, requests)
        if removed != self._removed:
            write_removed(url, removed)
        has_report = bool(names) and storage.exists(storage.join(url, REPORT_FILE))
        if has_report:
            storage.remove(storage.join(url, REPORT_FILE))
        logger.info("%s: removing %s", self._shown, self._show(self._matches))
        summary.add({"output": self._shown, "shards_planned": len(names)})
        forget_shards(url, spec, names)
        if names or was_cut_short(url):
            summary.keep_progress(
                ProgressFile(url, entry=COMMAND, every_s=self._every_s, num_todo=len(names))
            )
        outcome = edit_shards(
            names, lambda name: rewrite_shard(url, name, spec, removed), stop=stop, summary=summary,
            every_s=self._every_s, row_name=spec.row_name,
        )  # fmt: skip
        done, failed = outcome.done, outcome.failed
        figures = {
            "shards_done": len(done),
            "shards_failed": len(failed),
            "rows": sum(each.num_images_removed for each in done),
            "tokens": sum(each.num_tokens_removed for each in done),
            "quarantined": sum(each.num_quarantined_removed for each in done),
        }
        summary.add(figures)
        if outcome.num_over < len(names):
            logger.warning(
                "interrupted: %d of %d token shards are done; the same command does the rest",
                len(done), len(names),
            )  # fmt: skip
            return EXIT_INTERRUPTED
        prune_joined(url, removed)
        renew_summary(url)
        index = refresh_index(url, spec)
        if failed:
            self._tell_failed(failed)
            return EXIT_FAILED_SHARDS
        version = record_version(url, index, by=COMMAND)
        summary.add({"dataset_images": index.total("num_rows"), "dataset_version": version.number})
        self._tell_done(figures, index, version=str(version), has_report=has_report)
        return EXIT_DONE

    def _check_keys(self, selector: Selector, matches: Sequence[Match]) -> None:
        found = frozenset[str]().union(*(match.lines for match in matches))
        missing = sorted(line for line in self._request.lines - found if not selector.is_removed(line))
        if missing:
            raise UserError(
                f"{self._shown}: {len(missing)} of {len(self._request.lines)} keys of remove.keys are not there, first "
                f"{missing[0]!r}; give keys as the rows have them, or TOKEN_SHARD/KEY"
            )

    def _tell_failed(self, failed: dict[str, str]) -> None:
        name, reason = next(iter(failed.items()))
        logger.error(
            "%d token shards are not whole, and were left, first %s: %s; inspect_tokens --repair removes them, the "
            "tokenize_corpus command that made them makes them again without what was removed",
            len(failed), name, reason,
        )  # fmt: skip

    def _tell_done(self, figures: dict[str, int], index: Index, *, version: str, has_report: bool) -> None:
        rows = count(figures["rows"], "row")
        lines = [
            f"{self._shown}: {rows} with {count(figures['tokens'], 'token')} removed from "
            f"{count(figures['shards_done'], 'token shard')}, and {figures['quarantined']} quarantined samples; "
            f"{count(index.total('num_rows'), 'row')} are left; {version}"
            if figures["shards_done"]
            else f"{self._shown}: all that was asked for was removed before; {version}",
        ]
        if has_report:
            lines.append(
                f"{REPORT_FILE} was removed, as it may show what was; python -m tatok_pipe.inspect_tokens "
                f"input.url={self._shown} makes it anew"
            )
        for line in [*lines, *self._warnings]:
            logger.info("%s", line)

    @property
    def _warnings(self) -> list[str]:
        """What cannot be undone from here."""
        lines = [
            "not undone, as nobody can know of them from here: generators trained on earlier versions, pictures drawn "
            "from those, evaluations, reports written elsewhere, embeddings by key, copies, older versions that the "
            "store keeps, tables that were joined; and the image shards are as they were",
        ]
        if storage.exists(storage.join(self._url, LIST_FILE)):
            lines.append(
                f"{LIST_FILE} goes on naming the images that this dataset was made of, those removed among them"
            )
        return lines

    def _show(self, matches: Sequence[Match]) -> str:
        num_rows = sum(match.num_rows for match in matches)
        num_quarantined = sum(match.num_quarantined for match in matches)
        quarantined = f" and {count(num_quarantined, 'quarantined sample')}" if num_quarantined else ""
        return f"{count(num_rows, 'row')}{quarantined} in {count(len(matches), 'token shard')}"
