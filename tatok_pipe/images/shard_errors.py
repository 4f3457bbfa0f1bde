"""Why an image shard cannot be read, whatever its format."""

from __future__ import annotations


class ShardError(Exception):
    """A shard that cannot be read to its end. `num_samples` were read before that."""

    def __init__(
        self, shard: str, num_samples: int, reason: str, advice: str = "write or copy the shard again"
    ) -> None:
        super().__init__(f"{shard}: {reason}, after {num_samples} samples; {advice}")
        self.num_samples = num_samples
        self._arguments = (shard, num_samples, reason, advice)

    def __reduce__(self) -> tuple[type[ShardError], tuple[str, int, str, str]]:
        """Errors cross processes: by their arguments, since the default would pass the message as the first."""
        return type(self), self._arguments


class LastingShardError(ShardError):
    """A shard that is of another kind than it should be, or beyond a limit: to read it again tells the same."""


class UnusableShard(LastingShardError):
    """A shard that is whole, and of which no use can be made: to read it again tells the same."""

    def __init__(self, shard: str, num_samples: int, reason: str, advice: str) -> None:
        super().__init__(shard, num_samples, reason, advice)
        self.args = (f"{shard}: {reason}; {advice}",)


class InterleavedShard(ShardError):
    """The files of a sample do not follow one another: what was read is to be thrown away, and the shard read
    again with `regroup`."""
