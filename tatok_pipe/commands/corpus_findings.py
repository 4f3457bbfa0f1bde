"""What a run finds in its image shards, for people: a thing that is true of a thousand shards is told once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tatok_pipe import storage
from tatok_pipe.images.notices import Notice
from tatok_pipe.report.figures import count
from tatok_pipe.runs.shard_work import ShardResult

# So many of the shards that failed alike are named; all of them are in the summary.
_NUM_NAMED = 3
_MAX_TOLD = 20  # causes of failures, and notices
# What differs between messages of one cause: values in quotes, extensions, numbers.
_PARTICULAR = re.compile(r"b?'(?:[^'\\]|\\.)*'|b?\"(?:[^\"\\]|\\.)*\"|\.[^\s,;)]+|\d+")


@dataclass
class _Group:
    """Shards of which the same is true."""

    shard: str  # the first
    example: str
    num_shards: int = 0
    num_samples: int = 0

    def add(self, num_samples: int) -> None:
        self.num_shards += 1
        self.num_samples += num_samples


@dataclass
class Findings:
    """Of all shards so far. Shards are named without secrets."""

    failed: dict[str, str] = field(default_factory=dict)  # error by image shard
    _alike: dict[str, list[str]] = field(default_factory=dict)  # cause -> shards that failed of it
    _notices: dict[str, _Group] = field(default_factory=dict)
    _refusals: dict[str, _Group] = field(default_factory=dict)  # by error class of the quarantine rows

    def add(self, result: ShardResult) -> tuple[list[str], list[str]]:
        """Take in a result. Gives the errors and warnings that are news, a line each."""
        shard = storage.redact(result.url)
        if result.error:
            return self.add_failure(shard, result.error), []
        for refusal in result.refusals:
            self._refusals.setdefault(refusal.text, _Group(shard, refusal.example)).add(refusal.num_samples)
        return [], self.add_notices(shard, result.notices)

    def add_failure(self, shard: str, error: str) -> list[str]:
        """The line to tell, none where a shard before failed alike."""
        self.failed[shard] = error
        alike = self._alike.setdefault(_cause(shard, error), [])
        alike.append(shard)
        is_told = len(alike) == 1 and len(self._alike) <= _MAX_TOLD
        return [f"failed: {self._explain_failure(shard)}"] if is_told else []

    def add_notices(self, shard: str, notices: Iterable[Notice]) -> list[str]:
        """The lines to tell: of what no shard before had."""
        news = []
        for notice in notices:
            if notice.text not in self._notices and len(self._notices) < _MAX_TOLD:
                news.append(_tell(notice.text, shard, notice.num_samples, notice.example))
            group = self._notices.setdefault(notice.text, _Group(shard, notice.example))
            group.add(notice.num_samples)
        return news

    def failure_lines(self, *, verb: str = "failed", named_in: str = "_summary.json") -> list[str]:
        """Shards that failed, one of many that failed alike; `named_in` is where all of them are."""
        lines = []
        where = f"; {named_in} names them all" if named_in else ""
        for shards in list(self._alike.values())[:_MAX_TOLD]:
            if len(shards) <= _NUM_NAMED:
                lines += [f"{verb} {self._explain_failure(shard)}" for shard in shards]
                continue
            lines.append(f"{verb} {self._explain_failure(shards[0])}")
            more = count(len(shards) - 1, "more shard")
            lines.append(f"{more} {verb} like it: {', '.join(shards[1:_NUM_NAMED])}, ...{where}")
        num_left = sum(len(shards) for shards in list(self._alike.values())[_MAX_TOLD:])
        return [*lines, f"{count(num_left, 'more shard')} {verb}{where}"] if num_left else lines

    def _explain_failure(self, shard: str) -> str:
        return f"{shard}: {self.failed[shard].removeprefix(f'{shard}: ')}"

    def notice_lines(self, *, min_shards: int = 2) -> list[str]:
        """What is true of so many shards: by default of more than the one that it was told of."""
        return [
            f"{count(group.num_shards, 'shard')}: {_tell(text, group.shard, group.num_samples, group.example)}"
            for text, group in list(self._notices.items())[:_MAX_TOLD]
            if group.num_shards >= min_shards
        ]

    def refusal_lines(self) -> list[str]:
        """Quarantine rows by their error class."""
        return [
            f"quarantined {group.num_samples}: {error}{self.explain(error)}"
            for error, group in sorted(self._refusals.items())
        ]

    def explain(self, error: str) -> str:
        """An example of an error class of quarantine rows, where this run had one; begins with "; "."""
        group = self._refusals.get(error)
        return f"; first in {group.shard}: {group.example}" if group else ""

    @property
    def figures(self) -> dict[str, Any]:
        """For the summary: how many shards each notice is of."""
        shown = list(self._notices.items())[:_MAX_TOLD]
        return {"notices": {text: group.num_shards for text, group in shown}} if shown else {}


def _tell(text: str, shard: str, num_samples: int, example: str) -> str:
    samples = f"{count(num_samples, 'sample')}: " if example else ""
    return f"{samples}{text}; first: {shard}{': ' if example else ''}{example}"


def _cause(shard: str, error: str) -> str:
    """The error without what may differ between shards that failed of the same."""
    return _PARTICULAR.sub("", error.replace(shard, ""))
