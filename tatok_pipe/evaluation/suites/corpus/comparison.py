"""All that was measured of two token datasets, and what a part of the report says of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from tatok_pipe.evaluation.findings import Figure, Table
from tatok_pipe.evaluation.suites.corpus.comparable import left_out
from tatok_pipe.evaluation.suites.corpus.counts import Counts
from tatok_pipe.evaluation.suites.corpus.pairs import Pairs


@dataclass(frozen=True)
class Comparison:
    """Both datasets hold at least one image. An "image" in a sentence is a crop where images have several."""

    first: Counts
    other: Counts
    pairs: Pairs

    @property
    def sides(self) -> tuple[Counts, Counts]:
        return self.first, self.other

    @property
    def num_images(self) -> tuple[int, int]:
        return self.first.statistics.num_images, self.other.statistics.num_images

    @property
    def noun(self) -> str:
        return "image" if all(side.spec.crops_per_image == 1 for side in self.sides) else "crop"

    @property
    def size(self) -> str:
        """For sentences: nothing is claimed without it."""
        first, other = self.num_images
        return f"n = {first:,} and {other:,} {self.noun}s"

    @cached_property
    def left_out(self) -> dict[str, str]:
        """What these two do not allow, and why."""
        return left_out(self.first.spec, self.other.spec)


@dataclass(frozen=True)
class Section:
    """`left_out` says why a comparison was not made."""

    verdicts: Sequence[str] = ()
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
