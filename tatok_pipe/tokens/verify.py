"""Re-reading a whole token dataset: every byte of every shard, every promise of format 1, and what lies about.

It changes nothing and may run beside jobs that add shards. What it finds says what `repair_dataset` can do about it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.parallel import map_ahead
from tatok_pipe.tokens.check import (
    CheckedShard,
    CorruptShard,
    Damage,
    count_reasons,
    read_checked_quarantine,
    verify_shard_file,
)
from tatok_pipe.tokens.dataset import read_dataset_file
from tatok_pipe.tokens.format import empty_statistics, token_shard_name
from tatok_pipe.tokens.layout import (
    DATA_DIRECTORY,
    DATASET_FILE,
    QUARANTINE_DIRECTORY,
    SUFFIX,
    SUMMARY_FILE,
    data_url,
    quarantine_url,
)
from tatok_pipe.tokens.remedies import Finding, Judge, Remedy, is_name_of, spare
from tatok_pipe.tokens.statistics import ShardStatistics

_NUM_READERS = 8  # each holds one shard in memory
_SHARD_NAME = re.compile(r"(.+-[0-9a-f]{8})\.parquet")
_TEMPORARY_NAME = re.compile(r"\..+\.[0-9a-f]{16}\.tmp")
_MAY_REPEAT = "DuplicateKey"  # the quarantined sample of this error has the key of a row by its nature

Progress = Callable[[int, int, int], None]  # (shards read, shards to read, findings so far)


def verify_dataset(url: str, *, on_progress: Progress | None = None) -> list[Finding]:
    """Everything that is wrong with the token dataset at `url`, by file; nothing where it is whole.

    Reads all of it, with 8 shards at a time in memory. `on_progress` is called after every shard, in this thread.
    Raises UserError where there is no dataset, or where `_dataset.json` itself is broken: without it nothing is known
    of what should be there.
    """
    verifier = Verifier(url)
    data = storage.list_files(storage.join(url, DATA_DIRECTORY))
    # After the data files: each of those had its quarantine file before.
    quarantine = storage.list_files(storage.join(url, QUARANTINE_DIRECTORY))
    shards = [name.removesuffix(SUFFIX) for name in data if name.endswith(SUFFIX) and name[0] not in "._"]
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
            if isinstance(result, Finding):
                findings.append(result)
                total = None
            elif total is not None:
                total.merge(result)
            if on_progress is not None:
                on_progress(number, len(shards), len(findings))
    if 2 * sum(each.kind == Damage.SPEC for each in findings) >= len(shards):
        findings = [spare(each) if each.kind == Damage.SPEC else each for each in findings]
    known = {name + SUFFIX for name in shards}
    findings += verifier.check_leftovers(DATA_DIRECTORY, (name for name in data if name not in known))
    findings += verifier.check_leftovers(
        QUARANTINE_DIRECTORY, (name for name in quarantine if name not in known)
    )
    findings += verifier.check_leftovers("", storage.list_files(url))
    findings += verifier.check_summary(len(shards), total)
    return sorted(findings, key=lambda each: each.file)


class Verifier:
    """Checks the parts of one dataset. Raises UserError as `verify_dataset`."""

    def __init__(self, url: str) -> None:
        self.url = url
        try:
            self.spec, _ = read_dataset_file(url)
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                f"{storage.redact(storage.join(url, DATASET_FILE))}: is broken ({type(error).__name__}: {error}); "
                "remove it and run the tokenize_corpus command that made the dataset again, which writes it anew"
            ) from error
        self._judge = Judge(url, self.spec)

    def check_shard(self, name: str, *, has_quarantine: bool) -> Finding | ShardStatistics:
        """What is wrong first with a token shard and its quarantine file; else its statistics."""
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
            return shard.metadata.statistics
        return finding if finding.kind == Damage.UNREACHABLE else self._judge.judge_shard(finding, content)

    def check_leftovers(self, directory: str, names: Iterable[str]) -> list[Finding]:
        """What is to be said of files in `directory` ("": the dataset's own) that are no token shards' files."""
        findings = []
        for name in names:
            file = f"{directory}/{name}" if directory else name
            if _TEMPORARY_NAME.fullmatch(name):
                finding = Finding(Damage.TEMPORARY, file, "left by a program that was killed")
                findings.append(self._judge.judge_leftover(finding))
            elif directory == QUARANTINE_DIRECTORY and (match := _SHARD_NAME.fullmatch(name)):
                # Its data file may have come since the listing.
                if not storage.exists(data_url(self.url, match[1])):
                    message = "has no data file; left by an attempt that ended before its commit"
                    findings.append(self._judge.judge_leftover(Finding(Damage.ORPHAN, file, message)))
            elif directory:
                findings.append(_foreign(file))
        return findings

    def check_summary(self, num_shards: int, total: ShardStatistics | None) -> list[Finding]:
        """What is wrong with `_summary.json`, given how many shards there are and what they hold, if that is known.

        A summary of fewer shards is that of an earlier run, and true of it.
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
        if num_counted > num_shards:
            return [
                _wrong_summary(
                    f"counts {num_counted} shards, {num_shards} are there; some were removed since"
                )
            ]
        if num_counted == num_shards and total is not None and (differences := counted.differences(total)):
            return [_wrong_summary(f"does not count what is there: {'; '.join(differences)}")]
        return []

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
        return None


def _check_name(name: str, shard: CheckedShard) -> None:
    source = shard.metadata.source
    if not is_name_of(name, source):
        raise CorruptShard(
            f"has the name of another shard: tokens of {storage.redact(source.url)} belong into "
            f"{token_shard_name(source.url)}{SUFFIX}",
            Damage.NAME,
        )


def _wrong_summary(message: str) -> Finding:
    return Finding(Damage.SUMMARY, SUMMARY_FILE, message, Remedy.REWRITE, "--repair writes it anew")


def _foreign(file: str) -> Finding:
    advice = "left: move it away where nobody needs it here"
    return Finding(Damage.FOREIGN, file, "is no file of a token dataset", advice=advice)


def _unreachable(file: str, error: Exception) -> Finding:
    message = f"could not be read: {' '.join(str(error).split())}"
    return Finding(Damage.UNREACHABLE, file, message, advice="left: nothing is known about it; verify again")
