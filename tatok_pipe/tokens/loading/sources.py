"""The token datasets that a training takes sequences from: one, or several that are mixed."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tatok_pipe import storage
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.images.class_names import join_names
from tatok_pipe.tokens.loading.mixing import Mixing, make_mixing
from tatok_pipe.tokens.loading.training_set import TrainingSet, entropy_nats
from tatok_pipe.tokens.loading.windows import ShardRows
from tatok_pipe.tokens.spec import TokenSpec

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """A dataset as those are told of it who read sequences."""

    url: str
    shards: Sequence[ShardRows]
    labels: tuple[int, ...] = ()  # what its labels become, by label; none: they are as they are
    where: str = ""  # the condition on the rows that count; empty: all of them
    embeddings_url: str = field(default="", repr=False)  # where it has a folder of its own


@dataclass(frozen=True)
class TrainingData:
    """All that a training sees, as it was at its start. An epoch of a mix is as many images as its datasets have."""

    sets: tuple[TrainingSet, ...]
    spec: TokenSpec  # of the first, with the names of all classes
    labels: tuple[tuple[int, ...], ...]  # as in `Source`, for each
    mixing: Mixing | None  # None where there is one dataset

    @property
    def num_sequences(self) -> int:
        return sum(each.num_sequences for each in self.sets)

    @property
    def num_elements(self) -> float:
        """Of an epoch."""
        if self.mixing is None:
            return self.sets[0].num_elements
        return self.num_sequences * sum(
            share * each.num_elements / each.num_sequences
            for share, each in zip(self._shares, self.sets, strict=True)
        )

    @property
    def longest_elements(self) -> int:
        """Of the longest sequence that there is."""
        return max(each.longest_elements for each in self.sets)

    @property
    def unigram_nats(self) -> dict[str, float]:
        """As `TrainingSet.unigram_nats`; of a mix by its first weights."""
        if self.mixing is None:
            return self.sets[0].unigram_nats
        return {
            "global": entropy_nats(self._mean_counts("global_code_counts")),
            "patch": entropy_nats(self._mean_counts("patch_code_counts")),
        }

    @property
    def shown(self) -> str:
        """What to call it in a message."""
        return ", ".join(storage.redact(each.url) for each in self.sets)

    def digests(self) -> str | list[str]:
        """What changes with the tokens: one a dataset."""
        digests = [each.version.digest for each in self.sets]
        return digests if self.mixing else digests[0]

    def to_json(self) -> dict[str, Any]:
        """Versions, and of a mix the weights, for those who want to know what something was trained on."""
        if self.mixing is None:
            return self.sets[0].version.to_json()
        return {
            "sources": [{"url": storage.redact(each.url), **each.version.to_json()} for each in self.sets],
            "weights": list(self.mixing.weights),
            "weight_changes": [[step, list(weights)] for step, weights in self.mixing.changes],
        }

    def sources(self, embeddings_urls: Sequence[str] = ()) -> list[Source]:
        """For the workers of a training, who may have other working folders."""
        urls = [*embeddings_urls, *[""] * (len(self.sets) - len(embeddings_urls))]
        return [
            Source(storage.canonical_url(each.url), each.shards, labels, each.where, url)
            for each, labels, url in zip(self.sets, self.labels, urls, strict=True)
        ]

    @property
    def _shares(self) -> np.ndarray:
        assert self.mixing is not None
        return np.array(self.mixing.weights) / sum(self.mixing.weights)

    def _mean_counts(self, name: str) -> np.ndarray:
        """How often an image has each code, in the mean."""
        counts = [getattr(each.statistics, name) / each.num_sequences for each in self.sets]
        return np.average(counts, axis=0, weights=self._shares)


def join_sets(
    sets: Sequence[TrainingSet],
    *,
    weights: Sequence[float] | None = None,
    weight_changes: Mapping[int, Sequence[float]] | None = None,
    num_classes: int | None = None,
) -> TrainingData:
    """Datasets to be trained on together. `num_classes` as the generator is told them: None where it is told none, 0
    where the datasets say how many there are.

    Raises UserError where two are the same, where some name their classes and others do not, or there are more names
    than classes; RefusedError for tokens of several tokenizers; ValueError for weights that are none.
    """
    if len(sets) == 1:
        if weights or weight_changes:
            make_mixing([1], weights, weight_changes)
        return TrainingData(tuple(sets), sets[0].spec, ((),), None)
    _check_codes(sets)
    _check_each_once(sets)
    mixing = make_mixing([each.num_sequences for each in sets], weights, weight_changes)
    names, labels = _join_classes(sets, num_classes)
    return TrainingData(tuple(sets), replace(sets[0].spec, class_names=names), labels, mixing)


def _check_each_once(sets: Sequence[TrainingSet]) -> None:
    seen: dict[tuple[str, str], TrainingSet] = {}
    for each in sets:
        same = seen.setdefault((each.version.digest, str(each.spec)), each)
        if same is not each:
            shown, other = storage.redact(each.url), storage.redact(same.url)
            told = "is given twice" if shown == other else f"has the same token shards as {other}"
            raise UserError(
                f"{shown}: {told}; give a dataset once, and a larger weight to have it more often"
            )


def _check_codes(sets: Sequence[TrainingSet]) -> None:
    first = sets[0]
    for each in sets[1:]:
        shown = f"{storage.redact(each.url)} and {storage.redact(first.url)}"
        if found := each.spec.differences_of_codes(first.spec):
            raise RefusedError(
                f"{shown}: tokens of other tokenizers, which mean other things ({'; '.join(found)}); give datasets of "
                "one tokenizer, or tokenize one of them again"
            )
        others = replace(each.spec, class_names=first.spec.class_names).differences(first.spec)
        if others:
            logger.warning("%s: of one tokenizer, with other settings (%s)", shown, "; ".join(others))


def _join_classes(
    sets: Sequence[TrainingSet], num_classes: int | None
) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]]:
    """The names of all classes, and what the labels of each dataset become."""
    as_they_are = ((),) * len(sets)
    named = [each for each in sets if each.spec.class_names]
    if num_classes is None:
        return sets[0].spec.class_names, as_they_are
    if not named:
        logger.warning("no dataset names its classes: a label means the same class in all of them")
        return (), as_they_are
    for each in sets:
        if not each.spec.class_names:
            raise UserError(
                f"{storage.redact(each.url)}: has no names of classes, and {storage.redact(named[0].url)} has, so that "
                "nobody knows which labels mean the same; tokenize it with input.class_names, or train without classes"
            )
    names, labels = join_names([each.spec.class_names for each in sets])
    if num_classes and num_classes < len(names):
        raise UserError(
            f"num_classes={num_classes}: the datasets have {len(names)} classes by their names; give that many or more"
        )
    return names, tuple(labels)
