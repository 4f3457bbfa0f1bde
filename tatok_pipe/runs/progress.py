"""Lines that tell how far a long run is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunState:
    """How far a run is. Counts are those of finished shards and, so far, of shards in work."""

    num_shards: int
    num_done: int
    num_failed: int
    num_images: int
    num_tokens: int
    num_quarantined: int
    bytes_in: int  # of finished shards
    bytes_out: int
    num_actors: int  # ready
    num_actors_wanted: int
    share: float  # in shards: the sum over those in work
    seconds: float = field(compare=False)  # since the first shard was handed out; 0 before

    @property
    def left_s(self) -> float:
        """Seconds that the rest will take at the pace so far; infinite where nothing says so yet."""
        behind = self.num_done + self.share
        return max(0.0, self.seconds * (self.num_shards - behind) / behind) if behind else float("inf")


class Every:
    """A question that is answered with yes once in `seconds`, the first time after so long."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last_s = time.monotonic()

    def __call__(self) -> bool:
        if time.monotonic() - self._last_s < self._seconds:
            return False
        self._last_s = time.monotonic()
        return True


def progress_line(state: RunState, *, has_quarantine: bool = True, row_name: str = "image") -> str:
    """One line: shards, images/s, tokens an image, quarantined, time left."""
    rate = state.num_images / state.seconds if state.seconds else 0.0
    per_image = state.num_tokens / state.num_images if state.num_images else 0.0
    failed = f", {state.num_failed} failed" if state.num_failed else ""
    actors = (
        f", {state.num_actors} of {state.num_actors_wanted} actors" if state.num_actors_wanted > 1 else ""
    )
    quarantined = f"{state.num_quarantined} quarantined" if has_quarantine else ""
    quarantined = f"{(quarantined + actors).removeprefix(', ')}, " if quarantined + actors else ""
    return (
        f"{state.num_done}/{state.num_shards} shards{failed}, {state.num_images} {row_name}s, "
        f"{rate:.1f} {row_name}s/s, {per_image:.1f} tokens/{row_name}, "
        f"{quarantined}{format_duration(state.left_s)} left"
    )


def format_duration(seconds: float) -> str:
    """3725 s as `1 h 02 min`; unknown (infinite) as `?`."""
    if seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
