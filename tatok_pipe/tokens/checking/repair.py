"""Removing what `verify_dataset` found broken, where it can be made again, and nothing else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.checking.check import CheckedShard, Damage
from tatok_pipe.tokens.checking.remedies import Finding, Remedy
from tatok_pipe.tokens.checking.verify import Verifier
from tatok_pipe.tokens.commit import committed_shards
from tatok_pipe.tokens.format import token_shard_name
from tatok_pipe.tokens.index import forget_sums
from tatok_pipe.tokens.layout import DATASET_FILE, SUMMARY_FILE, data_url, quarantine_url
from tatok_pipe.tokens.summary import write_summary


class Result(StrEnum):
    REMOVED = "removed"  # a token shard, with its quarantine file, or a leftover
    REWRITTEN = "written anew"
    CLEAR = "clear"  # nothing is wrong any more, and nothing was done
    LEFT = "left"


@dataclass(frozen=True)
class Outcome:
    """What became of a finding. `message` is one line: what was done, or why nothing was."""

    finding: Finding
    result: Result
    message: str
    missing: str = (
        ""  # the name of the token shard that is not there now, and that tokenize_corpus makes again
    )

    @property
    def is_left_damaged(self) -> bool:
        """Whether something is still wrong that running tokenize_corpus again does not mend."""
        return self.result == Result.LEFT and not self.finding.is_harmless and not self.missing


def repair_dataset(url: str, findings: Sequence[Finding], *, other_stores: bool = False) -> list[Outcome]:
    """Do about each finding of `verify_dataset` what its remedy says, and tell what was done.

    - A broken token shard is removed with its quarantine file where its image shard is as its footer (or
      `_index.parquet`) says; the data file first, so that a kill in between leaves what may be left. It is looked at
      once more before. The tokenize_corpus command that made the dataset then makes it again, to the same bytes.
    - A `_dataset.json` that is broken, or that all token shards contradict, is removed, and nothing else then: what is
      right is not known before tokenize_corpus has written it anew.
    - Leftovers of killed jobs, older than an hour, are removed.
    - `_summary.json` is written anew where it was wrong or shards were removed, and `_index.parquet`, a cache that may
      have counted them, forgets its sums before; what is lost stays written down in both.

    Nothing else is touched. Raises UserError where there is no dataset, OSError where storage fails.
    """
    wrong = next((finding for finding in findings if finding.kind == Damage.DATASET), None)
    if wrong is not None:  # what else was found was found by it
        storage.remove(storage.join(url, DATASET_FILE))
        outcome = Outcome(
            wrong, Result.REMOVED, "removed; run the tokenize_corpus command that made the dataset"
        )
        left = [Outcome(each, Result.LEFT, "left until then") for each in findings if each is not wrong]
        return [outcome, *left]
    verifier = Verifier(url, other_stores=other_stores)
    verifier.judge.learn_sources()
    outcomes = []
    removed: list[str] = []
    again = {
        finding.name: _look_again(verifier, finding)
        for finding in findings
        if finding.remedy == Remedy.MAKE_AGAIN
    }
    broken = [name for name, now in again.items() if now and now.remedy == Remedy.MAKE_AGAIN]
    if broken:  # all at once, and after the look: without its sums the index knows the rows of none any more
        forget_sums(url, verifier.spec, broken)
    for finding in findings:
        if finding.remedy == Remedy.MAKE_AGAIN:
            outcome = _remove_shard(verifier, finding, again[finding.name])
            if outcome.result == Result.REMOVED:
                removed.append(outcome.missing)
        elif finding.remedy == Remedy.REMOVE:
            outcome = _remove_leftover(verifier, finding)
        elif finding.remedy == Remedy.RUN:
            outcome = Outcome(finding, Result.LEFT, finding.advice, finding.name)
        elif finding.remedy == Remedy.REWRITE:
            continue  # at the end, when all shards are as they will be
        else:
            outcome = Outcome(finding, Result.LEFT, finding.advice)
        outcomes.append(outcome)
    if any(finding.kind == Damage.INDEX for finding in findings):
        outcomes += [_forget_index(verifier, each) for each in findings if each.kind == Damage.INDEX]
    stale = [
        finding for finding in findings if finding.kind == Damage.SUMMARY and finding.remedy == Remedy.REWRITE
    ]
    if removed and not stale and storage.exists(storage.join(url, SUMMARY_FILE)):
        stale = [Finding(Damage.SUMMARY, SUMMARY_FILE, "counts shards that were removed", Remedy.REWRITE)]
    return outcomes + [_rewrite_summary(url, finding, removed) for finding in stale]


def _look_again(verifier: Verifier, finding: Finding) -> Finding | None:
    """What is wrong with a token shard now; None where it is whole."""
    has_quarantine = storage.exists(quarantine_url(verifier.url, finding.name))
    now = verifier.check_shard(finding.name, has_quarantine=has_quarantine)
    return verifier.call_witness().hear(finding.name, now) if isinstance(now, CheckedShard) else now


def _remove_shard(verifier: Verifier, finding: Finding, now: Finding | None) -> Outcome:
    """`now` is what is wrong with it still."""
    if now is None:
        return Outcome(finding, Result.CLEAR, "whole by now")
    if now.remedy != Remedy.MAKE_AGAIN:
        return Outcome(finding, Result.LEFT, now.advice)
    storage.remove(data_url(verifier.url, finding.name))
    storage.remove(quarantine_url(verifier.url, finding.name))
    missing = token_shard_name(now.source_url) if now.kind == Damage.NAME else finding.name
    if storage.exists(data_url(verifier.url, missing)):
        return Outcome(
            finding, Result.REMOVED, "removed; its image shard has its token shard under another name"
        )
    message = "removed with its quarantine file, tokenize_corpus makes it again"
    return Outcome(finding, Result.REMOVED, message, missing)


def _remove_leftover(verifier: Verifier, finding: Finding) -> Outcome:
    directory, _, name = finding.file.rpartition("/")
    if not any(now.remedy == Remedy.REMOVE for now in verifier.check_leftovers(directory, [name])):
        return Outcome(finding, Result.CLEAR, "in use by now")
    storage.remove(storage.join(verifier.url, finding.file))
    return Outcome(finding, Result.REMOVED, "removed")


def _forget_index(verifier: Verifier, finding: Finding) -> Outcome:
    """Without its sums it is made again by whoever needs it next; what is lost it goes on knowing."""
    forget_sums(verifier.url, verifier.spec, ())
    return Outcome(finding, Result.REWRITTEN, "written anew, by the next run")


def _rewrite_summary(url: str, finding: Finding, removed: Sequence[str]) -> Outcome:
    """The summary of the shards that are there."""
    verifier = Verifier(url)
    forget_sums(url, verifier.spec, ())
    try:
        renew_summary(url, also_planned=[name for name in removed if name])
    except UserError as error:
        return Outcome(finding, Result.LEFT, f"left: {' '.join(str(error).split())}")
    return Outcome(finding, Result.REWRITTEN, "written anew")


def renew_summary(url: str, *, also_planned: Sequence[str] = ()) -> None:
    """Write `_summary.json` on the token shards that are there, and those planned that are not, `also_planned` among
    them. What only the run knew is kept where the old one can be read."""
    try:
        found = json.loads(storage.read_bytes(storage.join(url, SUMMARY_FILE)))
    except (FileNotFoundError, ValueError):
        found = None
    old: dict[str, Any] = found if isinstance(found, dict) else {}
    missing, failed, run = old.get("missing_shards"), old.get("failed_shards"), old.get("run")
    planned = {
        *also_planned,
        *committed_shards(url),
        *(map(str, missing) if isinstance(missing, list) else ()),
    }
    write_summary(
        url,
        planned=sorted(planned),
        failed=failed if isinstance(failed, dict) else {},
        run=run if isinstance(run, dict) else {},
    )
