"""Where the paid time of nodes went. Every paid second is in one part, so the parts add up to what is paid."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Part(StrEnum):
    """What a node's second was spent on."""

    USEFUL = "useful"  # images that were committed, at the actor's rate
    SLOWER = "slower"  # what those took longer: slow nodes, overhead, requests tried again
    STARTING = "starting"  # nodes and actors on their way
    PREEMPTED = "preempted"  # work that went with a node, and a node that takes no more
    FAILED = "failed"  # tries that gave nothing, and what a dying process had not committed
    WAITING = "waiting"  # for a shard, while there were some
    TAIL = "tail"  # for the end, when no shard was left


@dataclass(eq=False)
class Account:
    """A node's paid time. `until_s` is as far as it is written down."""

    is_spot: bool
    launched_s: float
    until_s: float


@dataclass(frozen=True)
class Books:
    """The ledger when all is over, seconds of nodes."""

    parts: dict[Part, float]
    spot_s: float
    on_demand_s: float
    tail_s: float  # paid while no shard was left to hand out; the share of it that was idle is parts[TAIL]


class Ledger:
    """Written as things happen; idle time is told apart into WAITING and TAIL when the end is known."""

    def __init__(self) -> None:
        self._parts = dict.fromkeys(Part, 0.0)
        self._idle: list[tuple[float, float]] = []  # from, to
        self._closed: list[Account] = []

    def spend(self, account: Account, part: Part, until_s: float) -> None:
        """The node's time from where it is written down to `until_s` was spent on `part`."""
        self._parts[part] += until_s - account.until_s
        account.until_s = until_s

    def idle(self, account: Account, until_s: float) -> None:
        """The node had nothing to do until `until_s`."""
        if until_s > account.until_s:
            self._idle.append((account.until_s, until_s))
            account.until_s = until_s

    def work(
        self, account: Account, until_s: float, *, useful_s: float, extra_s: float, wasted_s: float
    ) -> None:
        """The node worked until `until_s`, and these three are its time since it was written down."""
        self._parts[Part.USEFUL] += useful_s
        self._parts[Part.SLOWER] += extra_s
        self._parts[Part.FAILED] += wasted_s
        account.until_s = until_s

    def lose(self, part: Part, *, useful_s: float, extra_s: float) -> None:
        """Work that was written down was not committed after all."""
        self._parts[Part.USEFUL] -= useful_s
        self._parts[Part.SLOWER] -= extra_s
        self._parts[part] += useful_s + extra_s

    def close(self, account: Account) -> None:
        """The node is paid for no longer than it is written down."""
        self._closed.append(account)

    def settle(self, *, empty_s: float, end_s: float) -> Books:
        """All accounts are closed; no shard was left to hand out from `empty_s`, and all was over at `end_s`."""

        def share_of_tail(start_s: float, stop_s: float) -> float:
            return max(0.0, min(stop_s, end_s) - max(start_s, empty_s))

        parts = dict(self._parts)
        for start_s, stop_s in self._idle:
            tail_s = share_of_tail(start_s, stop_s)
            parts[Part.TAIL] += tail_s
            parts[Part.WAITING] += stop_s - start_s - tail_s
        return Books(
            parts=parts,
            spot_s=sum(account.until_s - account.launched_s for account in self._closed if account.is_spot),
            on_demand_s=sum(
                account.until_s - account.launched_s for account in self._closed if not account.is_spot
            ),
            tail_s=sum(share_of_tail(account.launched_s, account.until_s) for account in self._closed),
        )
