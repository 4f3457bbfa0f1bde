"""What was found in a shard, counted, with an example: what its user ought to know, or why samples were refused."""

from __future__ import annotations

from dataclasses import dataclass

# What tars and Parquet have in common; the same words in every shard.
EMPTY = "there is nothing in the shard"
MENDED_JSON = "JSON holds NaN or Infinity, which JSON does not have: stored as null"
GAP = "the file of the label says nan, none or null: no label"
JSON_LABEL = "the label in the JSON is no number of a class, and stays in meta alone"


def other_labels(taken: str, others: str) -> str:
    """Something looks like a label and is not taken; `taken` is empty where nothing else is."""
    instead = f"the label is {taken}" if taken else "there is no label"
    return f"{instead}; {others} is not taken (a label is called label, cls, ...: docs/inputs.md)"


@dataclass(frozen=True)
class Notice:
    """One thing that is true of `num_samples` samples. The text is the same in every shard that it is true of, so
    that a run can tell it once; the example is of its first sample."""

    text: str
    example: str
    num_samples: int


class Notices:
    """The notices of one shard, as it is read."""

    def __init__(self) -> None:
        self._found: dict[str, Notice] = {}

    def add(self, text: str, example: str) -> None:
        old = self._found.get(text)
        self._found[text] = Notice(
            text, old.example if old else example[:400], old.num_samples + 1 if old else 1
        )

    def count(self, text: str) -> int:
        """Of how many samples this was told."""
        return self._found[text].num_samples if text in self._found else 0

    def example(self, text: str) -> str:
        """Of the first sample that this was told of."""
        return self._found[text].example

    @property
    def all(self) -> tuple[Notice, ...]:
        return tuple(self._found.values())
