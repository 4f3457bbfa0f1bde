"""Re-reading a whole token dataset: every byte of every shard, every promise of format 3, and what lies about.

It changes nothing and may run beside jobs that add shards. What it finds says what `repair_dataset` can do about it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from tatok_pipe import storage
from tatok_pipe.parallel import map_ahead
from tatok_pipe.tokens.checking.check import (
    CheckedShard,
    CorruptShard,
    Damage,
    count_reasons,
    read_checked_quarantine,
    verify_shard_file,
)
from tatok_pipe.tokens.checking.remedies import Finding, Judge, Remedy, is_name_of, spare
from tatok_pipe.tokens.dataset_file import BrokenDatasetFile, read_dataset_file
from tatok_pipe.tokens.format import empty_statistics, token_shard_name
from tatok_pipe.tokens.index_file import INDEX_SCHEMA, Index, read_index
from tatok_pipe.tokens.joined import (
    FILE_NAME,
    KEY,
    BrokenColumns,
    Joined,
    check_table,
    columns_file,
    read_joined,
)
from tatok_pipe.tokens.layout import (
    COLUMNS_DIRECTORY,
    COLUMNS_FILE,
    DATA_DIRECTORY,
    DATASET_FILE,
    INDEX_FILE,
    QUARANTINE_DIRECTORY,
    REMOVED_FILE,
    SUFFIX,
    SUMMARY_FILE,
    data_url,
    quarantine_url,
)
from tatok_pipe.tokens.listing import list_data
from tatok_pipe.tokens.owed import Owed, source_of
from tatok_pipe.tokens.removed import BrokenRemoved, Removed, read_removed
from tatok_pipe.tokens.statistics import ShardStatistics
from tatok_pipe.tokens.summary import read_lost
from tatok_pipe.tokens.versions import BrokenVersions, read_versions

_NUM_READERS = 8  # each holds one shard in memory
_SHARD_NAME = re.compile(r"(.+-[0-9a-f]{8})\.parquet")
TEMPORARY_NAME = re.compile(r"\.(.+)\.[0-9a-f]{16}\.tmp")
_MAY_REPEAT = "DuplicateKey"  # the quarantined sample of this error has the key of a row by its nature

Progress = Callable[[int, int, int], None]  # (shards read, shards to read, findings so far)


def verify_dataset(
    url: str, *, on_progress: Progress | None = None, other_stores: bool = False
) -> list[Finding]:
    """Everything that is wrong with the token dataset at `url`, by file; nothing where it is whole.

    Image shards are looked at where something is to be made of them again; those that are in another store than the
    dataset only with `other_stores`. Reads all of it, with 8 shards at a time in memory. `on_progress` is called
    after every shard, in this thread. Where `_dataset.json` itself is broken that is the only finding: without it
    nothing is known of what should be there. Raises UserError where there is no dataset.
    """
    try:
        verifier = Verifier(url, other_stores=other_stores)
    except BrokenDatasetFile as error:
        return [_wrong_dataset_file(error.reason)]
    data = storage.list_files(storage.join(url, DATA_DIRECTORY))
    # After the data files: each of those had its quarantine file before.
    quarantine = storage.list_files(storage.join(url, QUARANTINE_DIRECTORY))
    shards = [name.removesuffix(SUFFIX) for name in data if name.endswith(SUFFIX) and name[0] not in "._"]
    witness = verifier.call_witness()
    findings: list[Finding] = []
    total: ShardStatistics | None = empty_statistics(verifier.spec)
    with ThreadPoolExecutor(_NUM_READERS, "verify") as pool:
        results = map_ahead(
            pool,
            lambda name: verifier.check_shard(name, has_quarantine=name + SUFFIX in quarantine),
            shards,
            max_items=_NUM_READERS,
        )
        for number, result in enumerate(results, 1):
            if isinstance(result, CheckedShard):
                result = witness.hear(shards[number - 1], result) or result
            if isinstance(result, Finding):
                findings.append(result)
                if not result.is_harmless:
                    total = None
            elif total is not None:
                total.merge(result.metadata.statistics)
            if on_progress is not None:
                on_progress(number, len(shards), len(findings))
    others = [each.message for each in findings if each.kind == Damage.SPEC]
    if shards and len(others) == len(shards) and len(set(others)) == 1:
        findings = [_wrong_dataset_file(f"all {len(shards)} token shards were {others[0]}")]
    elif 2 * len(others) >= len(shards):
        findings = [spare(each) if each.kind == Damage.SPEC else each for each in findings]
    known = {name + SUFFIX for name in shards}
    findings += verifier.check_leftovers(DATA_DIRECTORY, (name for name in data if name not in known))
    findings += verifier.check_leftovers(
        QUARANTINE_DIRECTORY, (name for name in quarantine if name not in known)
    )
    findings += verifier.check_leftovers("", storage.list_files(url))
    for directory in (DATA_DIRECTORY, QUARANTINE_DIRECTORY):
        folders = storage.list_folders(storage.join(url, directory))
        findings += [_foreign(f"{directory}/{name}/") for name in folders]
    if not any(each.kind == Damage.DATASET for each in findings):  # which the index would have to agree with
        findings += witness.findings
    lost = verifier.find_lost(witness.owed, set(shards))
    findings += lost
    findings += verifier.check_summary(len(shards), total, num_lost=len(lost))
    findings += [*verifier.check_versions(), *verifier.check_removed(), *verifier.check_columns()]
    return sorted(findings, key=lambda each: each.file)


class Verifier:
    """Checks the parts of one dataset. Raises UserError where there is none, or its `_dataset.json` is broken."""

    def __init__(self, url: str, *, other_stores: bool = False) -> None:
        self.url = url
        self.spec, _ = read_dataset_file(url)
        self.judge = Judge(url, self.spec, other_stores=other_stores)
        self._removed, self._broken_removed = Removed(), None
        try:
            self._removed = read_removed(url)
        except BrokenRemoved as error:
            self._broken_removed = error

    def check_shard(self, name: str, *, has_quarantine: bool) -> Finding | CheckedShard:
        """What is wrong first with a token shard and its quarantine file; else what it holds."""
        file = f"{DATA_DIRECTORY}/{name}{SUFFIX}"
        try:
            content = pa.py_buffer(storage.read_bytes(data_url(self.url, name)))
        except OSError as error:
            return _unreachable(file, error)
        try:
            shard = verify_shard_file(content, spec=self.spec)
            _check_name(name, shard)
            finding = self._check_quarantine(name, shard, has_quarantine)
        except CorruptShard as error:
            if error.damage == Damage.UNREADABLE and not _SHARD_NAME.fullmatch(name + SUFFIX):
                return _foreign(file)
            finding = Finding(error.damage, file, str(error))
        if finding is None:
            return self._find_removed(file, name, shard.keys) or shard
        is_final = finding.kind in (Damage.UNREACHABLE, Damage.REMOVED)
        return finding if is_final else self.judge.judge_shard(finding, content)

    def check_leftovers(self, directory: str, names: Iterable[str]) -> list[Finding]:
        """What is to be said of files in `directory` ("": the dataset's own) that are no token shards' files."""
        findings = []
        for name in names:
            file = f"{directory}/{name}" if directory else name
            if TEMPORARY_NAME.fullmatch(name):
                finding = Finding(Damage.TEMPORARY, file, "left by a program that was killed")
                findings.append(self.judge.judge_leftover(finding))
            elif directory == QUARANTINE_DIRECTORY and (match := _SHARD_NAME.fullmatch(name)):
                # Its data file may have come since the listing.
                if not storage.exists(data_url(self.url, match[1])):
                    message = "has no data file; left by an attempt that ended before its commit"
                    findings.append(self.judge.judge_leftover(Finding(Damage.ORPHAN, file, message)))
            elif directory:
                findings.append(_foreign(file))
        return findings

    def call_witness(self) -> Witness:
        """What `_index.parquet` remembers."""
        try:
            return Witness(self.url, self.judge, read_index(self.url, self.spec), list_data(self.url))
        except ValueError as error:
            message, advice = f"is of no use: {error}", "--repair removes it; the next run writes it anew"
            finding = Finding(Damage.INDEX, INDEX_FILE, message, Remedy.REWRITE, advice)
            return Witness(self.url, self.judge, None, list_data(self.url), [finding])

    def find_lost(self, owed: Iterable[Owed], present: set[str]) -> list[Finding]:
        """The token shards that are known to have been there, and are not: by `owed`, and by `_summary.json`."""
        known = {each.name: each for each in (*read_lost(self.url), *owed) if each.name not in present}
        return [
            self.judge.judge_lost(
                Finding(
                    Damage.LOST, f"{DATA_DIRECTORY}/{name}{SUFFIX}", f"is gone, with {each.num_rows} rows"
                ),
                each.source,
            )
            for name, each in sorted(known.items())
            if not storage.exists(data_url(self.url, name))  # by now, since the listing
        ]

    def check_summary(
        self, num_shards: int, total: ShardStatistics | None, *, num_lost: int = 0
    ) -> list[Finding]:
        """What is wrong with `_summary.json`, given how many shards there are and what they hold, if that is known.

        A summary of fewer shards is that of an earlier run, and true of it. `num_lost` are told of elsewhere.
        """
        try:
            summary = json.loads(storage.read_bytes(storage.join(self.url, SUMMARY_FILE)))
            num_counted = int(summary["num_shards_committed"])
            counted = ShardStatistics.from_json(summary["statistics"])
        except FileNotFoundError:
            return []
        except OSError as error:
            return [_unreachable(SUMMARY_FILE, error)]
        except Exception as error:  # whatever else JSON of another kind leads to
            return [_wrong_summary(f"is none ({type(error).__name__}: {' '.join(str(error).split())})")]
        differences = counted.differences(total) if total is not None else []
        if num_counted > num_shards:
            message = f"counts {num_counted} shards, {num_shards} are there; some were removed since"
            if num_counted <= num_shards + num_lost or total is not None and not differences:
                return [_wrong_summary(message)]
            # Written anew it would forget them.
            advice = (
                "left: nothing tells which they were; the tokenize_corpus command that made them makes them again "
                "and writes it anew"
            )
            return [Finding(Damage.SUMMARY, SUMMARY_FILE, message, advice=advice)]
        if num_counted == num_shards and differences:
            return [_wrong_summary(f"does not count what is there: {'; '.join(differences)}")]
        if counted.to_summary() != summary.get("figures"):
            return [_wrong_summary("its figures are not those of its statistics")]
        num_missing = summary["num_shards_planned"] - num_counted
        if len(summary["missing_shards"]) < num_missing:
            named = len(summary["missing_shards"])
            return [_wrong_summary(f"names {named} missing shards, at least {num_missing} are")]
        return []

    def check_versions(self) -> list[Finding]:
        """What is wrong with what is written down of the versions."""
        try:
            read_versions(self.url)
        except BrokenVersions as error:
            return [Finding(Damage.VERSIONS, error.file, error.reason, advice=f"left: {error.advice}")]
        return []

    def check_removed(self) -> list[Finding]:
        """What is wrong with what is written down of removed rows."""
        error = self._broken_removed
        if error is None:
            return []
        return [Finding(Damage.REMOVED, REMOVED_FILE, error.reason, advice=f"left: {error.advice}")]

    def check_columns(self) -> list[Finding]:
        """What is wrong with the columns that were joined."""
        try:
            joined = read_joined(self.url)
        except BrokenColumns as error:
            return [Finding(Damage.COLUMNS, error.file, error.reason, advice=f"left: {error.advice}")]
        findings = [each for name in joined.tables for each in self._check_columns_of(joined, name)]
        known = {columns_file(name, mark) for name, mark in joined.tables.items()}
        for name in storage.list_files(storage.join(self.url, COLUMNS_DIRECTORY)):
            file = f"{COLUMNS_DIRECTORY}/{name}"
            if TEMPORARY_NAME.fullmatch(name) or (FILE_NAME.fullmatch(name) and file not in known):
                message = f"is not named by {COLUMNS_FILE}; left by an edit that ended before its commit"
                findings.append(self.judge.judge_leftover(Finding(Damage.TEMPORARY, file, message)))
            elif file not in known:
                findings.append(_foreign(file))
        return findings

    def _check_columns_of(self, joined: Joined, name: str) -> list[Finding]:
        file = columns_file(name, joined.tables[name])
        try:
            table = check_table(self.url, joined, name)
        except BrokenColumns as error:
            return [Finding(Damage.COLUMNS, file, error.reason, advice=f"left: {error.advice}")]
        except OSError as error:
            return [_unreachable(file, error)]
        found = self._find_removed(file, name, table[KEY].to_pylist())
        return [found] if found else []

    def _find_removed(self, file: str, name: str, keys: Sequence[str]) -> Finding | None:
        num_back = int(self._removed.find(name, keys).sum())
        if not num_back:
            return None
        advice = "edit_tokens on this dataset, without further options, removes them again"
        return Finding(Damage.REMOVED, file, f"has {num_back} rows that were removed", advice=advice)

    def _check_quarantine(self, name: str, shard: CheckedShard, has_file: bool) -> Finding | None:
        file = f"{QUARANTINE_DIRECTORY}/{name}{SUFFIX}"
        expected = shard.metadata.statistics.quarantine_reasons
        total = sum(expected.values())
        if has_file != bool(total):
            message = (
                f"{total} samples were quarantined, and there is {'a' if has_file else 'no'} quarantine file"
            )
            return Finding(Damage.QUARANTINE, file, message)
        if not has_file:
            return None
        try:
            rows = read_checked_quarantine(pa.py_buffer(storage.read_bytes(quarantine_url(self.url, name))))
        except OSError as error:
            return _unreachable(file, error)
        except CorruptShard as error:
            return Finding(Damage.QUARANTINE, file, str(error))
        if (found := count_reasons(rows)) != expected:
            message = (
                f"holds {dict(sorted(found.items()))}, the data file counts {dict(sorted(expected.items()))}"
            )
            return Finding(Damage.QUARANTINE, file, message)
        both = {row.key for row in rows if row.error != _MAY_REPEAT}.intersection(shard.keys)
        if both:
            return Finding(Damage.QUARANTINE, file, f"key {min(both)!r} is a row and quarantined, too")
        return self._find_removed(file, name, [row.key for row in rows])


class Witness:
    """Holds token shards against what the index says of them."""

    def __init__(
        self, url: str, judge: Judge, index: Index | None, listing: pa.Table, findings: Sequence[Finding] = ()
    ) -> None:
        self._url, self.judge = url, judge
        self.findings = list(findings)
        table = index.table if index is not None else INDEX_SCHEMA.empty_table()
        self._versions = {row["name"]: (row["size_bytes"], row["version"]) for row in listing.to_pylist()}
        self._table, self._places = table, {name: at for at, name in enumerate(table["name"].to_pylist())}
        gone = (self._row(name) for name in self._places if name not in self._versions)
        owed = index.owed if index is not None else ()
        self.owed = [*owed, *(Owed(row["name"], source_of(row), row["num_rows"], "") for row in gone)]
        self._digests = {each.name: each for each in owed if each.content_digest}

    def _row(self, name: str) -> dict[str, Any]:
        return self._table.slice(self._places[name], 1).to_pylist()[0]

    def hear(self, name: str, shard: CheckedShard) -> Finding | None:
        """What is wrong with a shard that is whole by itself, or with what the index says of it."""
        source, row = shard.metadata.source, self._row(name) if name in self._places else None
        earlier = self._digests.get(name)
        if earlier is None and row is not None:
            earlier = Owed(name, source_of(row), row["num_rows"], row["content_digest"])
        is_current = row is not None and (row["size_bytes"], row["version"]) == self._versions.get(name)
        if earlier is not None and not is_current or name in self._digests:
            assert earlier is not None
            if earlier.source == source and earlier.content_digest != shard.content_digest:
                return self.judge.judge_owner(
                    Finding(
                        Damage.CONTENT,
                        f"{DATA_DIRECTORY}/{name}{SUFFIX}",
                        f"its rows have digest {shard.content_digest[:12]}, those that {INDEX_FILE} counted, of the "
                        f"same image shard, {earlier.content_digest[:12]}",
                    ),
                    source,
                )
        if row is None or not is_current:
            return None
        statistics = shard.metadata.statistics
        found = {
            **{f"source_{key}": value for key, value in asdict(source).items()},
            "num_rows": shard.metadata.num_rows,
            "num_tokens": statistics.num_tokens,
            "num_quarantined": statistics.num_quarantined,
            "content_digest": shard.content_digest,
        }
        wrong = [f"{key}: {row[key]}, not {value}" for key, value in found.items() if row[key] != value]
        if not wrong:
            return None
        message = f"says of {name} what is not so: {storage.redact('; '.join(wrong))}"
        self.findings.append(
            Finding(Damage.INDEX, INDEX_FILE, message, Remedy.REWRITE, "--repair writes it anew")
        )
        return None


def _check_name(name: str, shard: CheckedShard) -> None:
    source = shard.metadata.source
    if not is_name_of(name, source):
        raise CorruptShard(
            f"has the name of another shard: tokens of {storage.redact(source.url)} belong into "
            f"{token_shard_name(source.url)}{SUFFIX}",
            Damage.NAME,
        )


def _wrong_dataset_file(message: str) -> Finding:
    advice = "--repair removes it, and the tokenize_corpus command that made the dataset writes it anew"
    return Finding(Damage.DATASET, DATASET_FILE, message, Remedy.REMOVE, advice)


def _wrong_summary(message: str) -> Finding:
    return Finding(Damage.SUMMARY, SUMMARY_FILE, message, Remedy.REWRITE, "--repair writes it anew")


def _foreign(file: str) -> Finding:
    advice = "left: move it away where nobody needs it here"
    return Finding(Damage.FOREIGN, file, "is no file of a token dataset", advice=advice)


def _unreachable(file: str, error: Exception) -> Finding:
    message = f"could not be read: {' '.join(str(error).split())}"
    return Finding(Damage.UNREACHABLE, file, message, advice="left: nothing is known about it; verify again")
