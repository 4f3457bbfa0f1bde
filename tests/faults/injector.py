"""What a test plans to go wrong inside the processes of a job, and what then happened there."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

INJECT_FOLDER = Path(__file__).with_name("inject")


@dataclass(frozen=True)
class Fault:
    """At `point` (named in inject/sitecustomize.py) of `shard` `action` happens, `times` times in all.

    Actions: sigkill, segv, hang, hang_gil, exit:CODE, raise, oom_error, oom_kill, sleep:SECONDS, and meet:COUNT,
    which waits until as many processes are at the point of this shard, for 30 seconds at most.
    """

    point: str
    action: str
    shard: str = "*"  # six digits, or any
    times: int | None = 1  # None: always


@dataclass(frozen=True)
class Event:
    """A process passed a logged point of a shard, or (with an action) a fault fired there."""

    time: float  # seconds since 1970
    pid: int
    node: str  # Ray's id of the node, hex; empty outside of Ray's workers
    point: str
    shard: str
    action: str
    won: bool | None  # after_put: what commit_shard returned, whether this attempt published the shard


class Injector:
    """Faults for one or several runs of a job. Their processes find it by `environment()`."""

    def __init__(self, folder: Path, faults: Sequence[Fault] = ()) -> None:
        self.faults = list(faults)
        self._state = folder / f"faults-{uuid.uuid4().hex[:8]}"
        self._state.mkdir(parents=True)
        self._plan = self._state / "plan.json"
        planned = [{"id": str(index), **asdict(fault)} for index, fault in enumerate(self.faults)]
        self._plan.write_text(json.dumps({"state": str(self._state), "faults": planned}))

    def environment(self) -> dict[str, str]:
        folders = [str(INJECT_FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
        return {"TATOK_FAULTS": str(self._plan), "PYTHONPATH": os.pathsep.join(folders)}

    def events(self, point: str | None = None) -> list[Event]:
        """What was passed, in order of time; of one point, or of all."""
        found = [event for path in self._state.glob("events-*") for event in _read(path)]
        return sorted(
            (event for event in found if point in (None, event.point)), key=lambda event: event.time
        )

    def fired(self, fault: Fault) -> list[Event]:
        """Each time that the fault fired, in order of time."""
        index = self.faults.index(fault)
        found = [event for path in self._state.glob(f"fired-{index}-*") for event in _read(path)]
        return sorted(found, key=lambda event: event.time)

    def begun(self) -> list[Event]:
        """Each time that an actor began a shard, in order of time. A driver looks into the first one before it starts
        Ray, which begins none."""
        return [event for event in self.events("begin") if event.node]

    def attempts(self) -> dict[str, int]:
        """How often each shard was begun, over all runs."""
        counts: dict[str, int] = {}
        for event in self.begun():
            counts[event.shard] = counts.get(event.shard, 0) + 1
        return counts

    def check(self) -> None:
        """Raise AssertionError where a planned fault never happened: the test would show nothing."""
        broken = {path.name: path.read_text() for path in self._state.glob("broken-*")}
        assert not broken, f"cannot inject: {broken}"
        silent = [fault for fault in self.faults if not self.fired(fault)]
        assert not silent, f"never fired: {silent}"


def _read(path: Path) -> list[Event]:
    return [Event(**json.loads(line)) for line in path.read_text().splitlines()]
