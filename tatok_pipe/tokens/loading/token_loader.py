"""Token datasets in a training of one's own: batches as torch tensors, under torch's DataLoader or without it.

Letters: R rows, T elements of a row, S sequences, K globals, N patch places, Q stretches of sequences and padding.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from tatok_pipe import storage
from tatok_pipe.records import Kind, PackedBatch
from tatok_pipe.tokens.loading.batches import join
from tatok_pipe.tokens.loading.conditions import ConditionConfig
from tatok_pipe.tokens.loading.packing import rows_per_rank
from tatok_pipe.tokens.loading.sources import join_sets
from tatok_pipe.tokens.loading.step_loader import StepBatch, StepLoader
from tatok_pipe.tokens.loading.training_set import read_training_set
from tatok_pipe.tokens.loading.window_stream import LoaderConfig

_ROW_TOKENS = 4096
NO_TARGET = -100  # torch's cross entropy passes it over


@dataclass(frozen=True)
class TokenBatch:
    """A rank's rows of a step. A sequence is `[condition] g_1 … g_K patch_1 … patch_M`, the patches in raster order."""

    ids: Tensor  # (R, T) int64, of one vocabulary, as `TokenLoader` says; its `end_id` where a row is padding
    targets: Tensor  # (R, T) int64, the next id of the sequence, `end_id` at its last; NO_TARGET in padding
    # (R, T) int64: 0 for a condition, then K for globals, then N for patches; 0 in padding.
    positions: Tensor
    kinds: Tensor  # (R, T) uint8, `tatok_pipe.records.Kind`: padding, condition, global, patch
    order: Tensor  # (R, T) int32, place in the sequence, and in a stretch of padding
    # (Q + 1,) int32, cumulative over all rows: where sequences and padding begin, then R·T. Kernels for sequences of
    # many lengths call it cu_seqlens.
    boundaries: Tensor
    labels: Tensor  # (S,) int64, classes; 0 where the loader was given none
    sequences: Tensor  # (S,) int64, numbers of the rows in their dataset, as `TokenDataset` counts them
    sources: Tensor  # (S,) int64, which of the loader's datasets they are in
    epoch: int
    state: dict[str, Any]  # for `TokenLoader.load_state_dict`: the position after this step

    @property
    def attention_mask(self) -> Tensor:
        """Who sees whom, (R, 1, T, T) bool, for `scaled_dot_product_attention`: what came before in its sequence."""
        stretches = (self.order == 0).cumsum(dim=1)
        is_same = stretches[:, None, :, None] == stretches[:, None, None, :]
        return is_same.tril()

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> TokenBatch:
        """The same on a device."""
        return self._map(lambda each: each.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TokenBatch:
        """The same in memory that copies to a GPU need not wait for; DataLoader calls it with `pin_memory=True`."""
        return self._map(lambda each: each.pin_memory())

    def _map(self, change: Any) -> TokenBatch:
        tensors = {
            each.name: change(value)
            for each in dataclasses.fields(self)
            if isinstance(value := getattr(self, each.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)


class TokenLoader(IterableDataset[TokenBatch]):
    """Steps of training on the token dataset at `url`, as it is now or in an earlier `version`, endlessly or for some
    epochs; or one pass over what is held out. Several datasets, of one tokenizer, are mixed. With `where`, a condition
    on columns such as "aesthetic > 5 and label=3", of the rows that it is true of (`edit_tokens join.table=…` joins
    columns).

    The order follows from (seed, epoch) alone: at any number of ranks and workers a step has the same sequences.
    A step is `rows_per_step` rows over all ranks, and the last one of an epoch what is left; ranks that have none of it
    get rows of padding. With layout "packed" a row of `row_tokens` elements (4,096, or `num_positions` where that is
    more) has as many sequences as fit; with "padded" it has one, and the rows of a step, which are alike in length, end
    with the longest of the rank's.

    Ids are of one vocabulary: codes of globals, then codes of patches, then `num_classes` classes, `none_id` for a
    condition that is hidden (of the share `drop_condition`) or not read (`num_classes=0`), and `end_id`.

    With a list of URLs each dataset goes through shuffled epochs of its own. `weights` say how often an image of each
    comes (3 and 1: three of the first to one of the second; none: each image as often as any other), and
    `weight_changes` from which step on they are others: {10_000: [1, 1]}. `version` may be a list then, None for what
    is there now. Classes of one name are one class, whatever their labels: `spec.class_names` has the names of all.

    Under torch's DataLoader give `batch_size=None`. `state` of a batch, or `state_dict` where this object is iterated
    itself, goes on after exactly that step, also with other ranks and workers, and (packed) another `rows_per_step`.
    Where the dataset or the settings have changed since, `load_state_dict` raises UserError. Rank and number of ranks
    are torch.distributed's, else RANK and WORLD_SIZE of the environment, where they are not given.

    Raises UserError for settings that do not go with the data; so does iterating, where a shard cannot be read.
    """

    def __init__(
        self,
        url: str | Sequence[str],
        *,
        weights: Sequence[float] | None = None,
        weight_changes: Mapping[int, Sequence[float]] | None = None,
        version: int | None | Sequence[int | None] = None,
        where: str = "",
        rows_per_step: int = 64,
        row_tokens: int | None = None,
        layout: str = "packed",
        num_classes: int = 0,
        drop_condition: float = 0.0,
        seed: int = 0,
        epochs: int | None = None,
        split: str = "train",
        held_out_share: float = 0.0,
        window_sequences: int = 32_768,
        rank: int | None = None,
        num_ranks: int | None = None,
    ) -> None:
        _check_whole(
            rows_per_step=rows_per_step, row_tokens=row_tokens, num_classes=num_classes, seed=seed, epochs=epochs,
            window_sequences=window_sequences, rank=rank, num_ranks=num_ranks,
            **{f"weight_changes at step {step!r}": step for step in weight_changes or {}},
        )  # fmt: skip
        if epochs is not None and epochs < 1:
            raise ValueError(f"epochs={epochs}: expected at least 1, or None to go on endlessly")
        if (rank is None) != (num_ranks is None):
            raise ValueError(f"rank={rank}, num_ranks={num_ranks}: give both, or neither")
        if row_tokens is not None and layout == "padded":
            raise ValueError(
                f"row_tokens={row_tokens} with layout='padded': expected none, rows are as long as needed"
            )
        found_rank, found_ranks = _find_rank() if rank is None or num_ranks is None else (rank, num_ranks)
        urls = [url] if isinstance(url, str) else list(url)
        if epochs is not None and len(urls) > 1:
            raise ValueError(
                f"epochs={epochs} with {len(urls)} datasets: expected none, each goes through epochs of its own; take "
                "as many steps as you want"
            )
        pairs = _pair_versions(urls, version)
        sets = [read_training_set(each, version=at, where=where) for each, at in pairs]
        data = join_sets(
            sets, weights=weights, weight_changes=weight_changes, num_classes=num_classes or None
        )
        self.spec = data.spec
        self.num_classes = num_classes
        self.epochs = epochs
        if row_tokens is None:
            row_tokens = self.num_positions if layout == "padded" else max(_ROW_TOKENS, self.num_positions)
        self._steps = StepLoader(
            data.sources(),
            data.spec,
            LoaderConfig(
                row_tokens=row_tokens,
                rows_per_step=rows_per_step,
                rows_per_microbatch=rows_per_rank(rows_per_step, found_ranks),
                window_sequences=window_sequences,
                held_out_share=held_out_share,
                layout=layout,
            ),
            condition=ConditionConfig(
                kind="class" if num_classes else "none",
                num_classes=num_classes,
                drop_condition=drop_condition,
            ),
            mixing=data.mixing,
            seed=seed,
            rank=found_rank,
            num_ranks=found_ranks,
            split=split,
            ends_with_longest=layout == "padded",
        )
        self._state: dict[str, Any] = {**self._steps.state_dict(), "step": 0}

    @property
    def none_id(self) -> int:
        """The id of a condition that tells nothing."""
        return self.spec.global_vocab + self.spec.patch_vocab + self.num_classes

    @property
    def end_id(self) -> int:
        """The id that every sequence ends with, which no row holds but as padding."""
        return self.none_id + 1

    @property
    def vocab_size(self) -> int:
        """How many ids there are."""
        return self.end_id + 1

    @property
    def num_positions(self) -> int:
        """How many positions there are: 1 + K + N."""
        return 1 + self.spec.num_globals + self.spec.num_patches

    def state_dict(self) -> dict[str, Any]:
        """The position after the step that was given out last, as JSON types. In a worker of a DataLoader it is that
        worker's, for the same worker of the same number of them."""
        return dict(self._state)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on at a position, from the next iteration on."""
        self._steps.load_state_dict(state)  # which checks it
        self._state = dict(state)

    def set_epoch(self, epoch: int) -> None:
        """Begin at this epoch with the next iteration. Needed before each where `epochs` is given and a DataLoader
        starts its workers anew for it: this object does not see how far they came."""
        self._state = self._begin(epoch, 0)

    def _begin(self, epoch: int, step: int) -> dict[str, Any]:
        return {"epoch": epoch, "window": 0, "row": 0, "digest": self._steps.digest, "step": step}

    def __iter__(self) -> Generator[TokenBatch, None, None]:
        info = get_worker_info()
        worker, num_workers = (0, 1) if info is None else (info.id, info.num_workers)
        state = self._state
        # Steps go to the workers in turn. One that goes on where it was itself begins after the steps of the others.
        is_own = "worker" in state
        next_step = state["step"] + (num_workers - 1 if is_own else worker)
        first_epoch = state["epoch"]
        self._steps.load_state_dict(state)
        number = state["step"]
        for step in self._steps:
            if self.epochs is not None and step.epoch >= first_epoch + self.epochs:
                break
            if number == next_step:
                next_step += num_workers
                after = {**self._steps.state_dict(), "step": number + 1}
                self._state = after if info is None else {**after, "worker": worker}
                yield self._to_batch(step, after)
            number += 1
        # The same for all workers, whoever had the last step.
        self._state = self._begin(0 if self.epochs is None else first_epoch + self.epochs, number)

    def _to_batch(self, step: StepBatch, state: dict[str, Any]) -> TokenBatch:
        batch = join(step.microbatches)
        ids = self._ids(batch)
        columns = [ids, self._targets(batch, ids), self._positions(batch), batch.kinds, batch.order]
        columns = [each.reshape(batch.num_rows, -1) for each in columns]
        sources = np.searchsorted(self._steps.source_rows, batch.sequences, "right") - 1
        ids, targets, positions, kinds, order = map(torch.from_numpy, columns)
        return TokenBatch(
            ids=ids,
            targets=targets,
            positions=positions,
            kinds=kinds,
            order=order,
            boundaries=torch.from_numpy(batch.boundaries),
            labels=torch.from_numpy(batch.labels.astype(np.int64)),
            sequences=torch.from_numpy(batch.sequences - self._steps.source_rows[sources]),
            sources=torch.from_numpy(sources),
            epoch=step.epoch,
            state=state,
        )

    def _ids(self, batch: PackedBatch) -> np.ndarray:
        """(R·T,) int64."""
        first = np.zeros(len(Kind), np.int64)  # of each kind; codes are 0 where there is none
        first[[Kind.PADDING, Kind.PATCH]] = self.end_id, self.spec.global_vocab
        ids = first[batch.kinds]
        ids += batch.codes
        first_class = self.spec.global_vocab + self.spec.patch_vocab
        conditions = np.where(batch.is_conditional, first_class + batch.labels, self.none_id)
        ids[_begins(batch)] = conditions
        return ids

    def _targets(self, batch: PackedBatch, ids: np.ndarray) -> np.ndarray:
        """(R·T,) int64: what comes next in the same sequence."""
        targets = np.empty_like(ids)
        targets[:-1] = ids[1:]
        targets[batch.boundaries[1:] - 1] = self.end_id
        targets[batch.kinds == Kind.PADDING] = NO_TARGET
        return targets

    def _positions(self, batch: PackedBatch) -> np.ndarray:
        """(R·T,) int64."""
        first = np.zeros(len(Kind), np.int64)
        first[[Kind.GLOBAL, Kind.PATCH]] = 1, 1 + self.spec.num_globals
        positions = first[batch.kinds]
        positions += batch.places
        return positions


def _begins(batch: PackedBatch) -> np.ndarray:
    """Where the sequences begin, (S,)."""
    begins = batch.boundaries[:-1]
    return begins[batch.kinds[begins] == Kind.CONDITION]


def _check_whole(**values: object) -> None:
    """Numbers that come as text or as floats, from files of settings, would be told of by whatever meets them first."""
    for name, value in values.items():
        if value is not None and not isinstance(value, Integral):
            raise TypeError(f"{name}={value!r}: expected a whole number")


def _pair_versions(
    urls: Sequence[str], version: int | None | Sequence[int | None]
) -> list[tuple[str, int | None]]:
    if not urls:
        raise ValueError("url=[]: expected at least one dataset")
    versions = [version] * len(urls) if version is None or isinstance(version, int) else list(version)
    _check_whole(
        **{f"version of {storage.redact(url)}": each for url, each in zip(urls, versions, strict=False)}
    )
    if len(versions) != len(urls) or (isinstance(version, int) and len(urls) > 1):
        raise ValueError(f"version={version} with {len(urls)} datasets: expected a version of each, or none")
    return list(zip(urls, versions, strict=True))


def _find_rank() -> tuple[int, int]:
    """(rank, number of ranks) of this process."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
