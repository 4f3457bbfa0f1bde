"""Plans in which nothing takes time and nothing goes wrong but what a test says, and what a run of them took."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from tatok_pipe.config.load import from_dict
from tools.simulation.chances import Attempt, Chances, End
from tools.simulation.options import SimulateCorpusConfig
from tools.simulation.run import Outcome

# Nothing takes time but the images, at one a second, and nothing goes wrong.
PLAIN: dict[str, Any] = {
    "corpus": {"num_shards": 3, "images_per_shard": 100},
    "actor": {
        "images_per_s": 1.0, "shard_cv": 0.0, "shard_overhead_s": 0.0, "fetch_s": 0.0, "commit_s": 0.0,
        "start_s": 0.0,
    },
    "nodes": {
        "start_s": 0.0, "preemptions_per_hour": 0.0, "notice_s": 0.0, "replacement_wait_s": 0.0,
        "detection_s": 0.0, "slow_share": 0.0,
    },
    "faults": {"request_failures": 0.0, "errors": 0.0, "crashes": 0.0, "hangs": 0.0, "poisonous": 0.0},
    "driver": {"answer_s": 0.0, "step_per_worker_s": 0.0},
}  # fmt: skip


def plain(**sections: dict[str, Any]) -> SimulateCorpusConfig:
    """PLAIN with other values in its sections."""
    values = {name: {**PLAIN.get(name, {}), **sections.get(name, {})} for name in {*PLAIN, *sections}}
    return from_dict(SimulateCorpusConfig, values)


class Scripted(Chances):
    """Seconds of each shard, and lives of nodes in the order of their launch; the others live for ever."""

    def __init__(self, lengths_s: Sequence[float], lives_s: Sequence[float] = ()) -> None:
        self._lengths_s = lengths_s
        self._lives_s = list(lives_s)
        self.wait_s = 0.0

    def attempt(self, shard: int, *, slow_factor: float, max_tries: int) -> Attempt:
        return Attempt(self._lengths_s[shard], 0.0, 0.0, End.DONE, 1)

    def node_life_s(self, *, is_spot: bool) -> float:
        return self._lives_s.pop(0) if self._lives_s else math.inf

    def slow_factor(self) -> float:
        return 1.0

    def replacement_wait_s(self) -> float:
        return self.wait_s


def parts(outcome: Outcome) -> dict[str, float]:
    """Seconds of the parts that are not 0."""
    return {part.value: round(s, 6) for part, s in outcome.books.parts.items() if abs(s) > 1e-9}
