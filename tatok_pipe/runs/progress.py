"""Lines that tell how far a long run is."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(frozen=True)
class RunState:
    """How far a run is. Counts are those of finished shards and, so far, of shards in work."""

    num_shards: int
    num_done: int = 0
    num_failed: int = 0
    num_images: int = 0
    num_tokens: int = 0
    num_quarantined: int = 0
    bytes_in: int = 0  # of finished shards
    bytes_out: int = 0
    num_actors: int = 0  # ready
    num_actors_wanted: int = 0
    share: float = 0.0  # in shards: the sum over those in work
    seconds: float = field(default=0.0, compare=False)  # since the first shard was handed out; 0 before

    @property
    def images_per_s(self) -> float:
        return self.num_images / self.seconds if self.seconds else 0.0

    @property
    def tokens_per_image(self) -> float:
        return self.num_tokens / self.num_images if self.num_images else 0.0

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
    failed = f", {state.num_failed} failed" if state.num_failed else ""
    actors = (
        f", {state.num_actors} of {state.num_actors_wanted} actors" if state.num_actors_wanted > 1 else ""
    )
    quarantined = f"{state.num_quarantined} quarantined" if has_quarantine else ""
    quarantined = f"{(quarantined + actors).removeprefix(', ')}, " if quarantined + actors else ""
    # Packing images and joining columns count none.
    tokens = f"{state.tokens_per_image:.1f} tokens/{row_name}, " if state.num_tokens else ""
    return (
        f"{state.num_done}/{state.num_shards} shards{failed}, {state.num_images} {row_name}s, "
        f"{state.images_per_s:.1f} {row_name}s/s, {tokens}{quarantined}{format_duration(state.left_s)} left"
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
