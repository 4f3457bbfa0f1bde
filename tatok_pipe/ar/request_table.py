"""The requests that a sampler has on its device, and what has been drawn for them.

A ring of C rows: the host fills those that are free with the next requests, slots take them in the same order, and
what has ended is fetched from them. One row more belongs to nobody: slots without a request write there.

Letters: C rows for requests, K globals, N places, W width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from tatok_pipe.ar.draws import uniforms
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.requests import ImageRequest, ImageTokens, Place


class RequestTable:
    """Tensors have one row a request, and the last one for nobody."""

    def __init__(self, model: Generator, *, capacity: int, max_patches: int | None) -> None:
        self.nobody = capacity
        self._model = model
        vocabulary = model.vocabulary
        self._num_globals, self._num_places = vocabulary.num_globals, vocabulary.num_patches
        self._max_patches = self._num_places if max_patches is None else max_patches
        weight = model.patch_codes.weight
        self._device = device = weight.device

        def table(*shape: int, dtype: torch.dtype = torch.int64, fill: int = 0) -> Tensor:
            return torch.full((capacity + 1, *shape), fill, dtype=dtype, device=device)

        width = model.config.width
        self.conditions = table(width, dtype=weight.dtype)  # first elements of the sequences
        self.unconditions = table(width, dtype=weight.dtype)  # and without what guidance guides to
        # Of all draws that an image may need: of the position and of the code that follow each of its elements.
        self.uniforms = table(2 * vocabulary.max_length, dtype=torch.float64)
        self.global_codes = table(max(1, self._num_globals), fill=Place.FREE)  # that are given
        self.patches = table(
            self._num_places, fill=Place.FREE
        )  # codes that are given, and what else is known
        # The first position that must be there after the last one (N: none), and how many there are, by last + 1.
        self.next_required = table(self._num_places + 1, fill=self._num_places)
        self.num_required = table(self._num_places + 1)
        self.is_absent = table(self._num_places + 1, dtype=torch.bool)  # never the last, which is the end
        # What was drawn; the last column is for what is not to be kept.
        self.drawn_globals = table(self._num_globals + 1, dtype=torch.int32)
        self.drawn_patches = table(self._num_places + 1, dtype=torch.int32, fill=Place.ABSENT)
        self.is_finished = table(dtype=torch.bool)

        self._handed_out = torch.zeros((), dtype=torch.int64, device=device)  # requests so far
        self._filled_in = torch.zeros((), dtype=torch.int64, device=device)
        self._num_filled_in = 0  # the same, on the host
        self._requests: list[ImageRequest | None] = [None] * capacity

    def clear(self) -> None:
        """No request is there any more, waiting or under way."""
        self._requests = [None] * self.nobody
        self.is_finished.zero_()
        self._handed_out.fill_(self._num_filled_in)
        self._filled_in.fill_(self._num_filled_in)

    def fill(self, source: Iterator[ImageRequest]) -> int:
        """Take as many requests as there is room for; how many these are. Raises ValueError for one that cannot be."""
        rows: list[int] = []
        new: list[ImageRequest] = []
        while len(rows) < self.nobody:
            row = self._num_filled_in % self.nobody
            if self._requests[row] is not None or (request := next(source, None)) is None:
                break
            self._check(request)
            self._requests[row] = request
            self._num_filled_in += 1
            rows.append(row)
            new.append(request)
        if new:
            self._write(torch.tensor(rows), new)
        return len(new)

    def hand_out(self, slots: Tensor) -> Tensor:
        """The requests of slots (B,) to what they are after those of nobody took the next ones."""
        is_idle = slots == self.nobody
        number = self._handed_out + is_idle.cumsum(0) - 1
        takes = is_idle & (number < self._filled_in)
        self._handed_out += takes.sum()
        return torch.where(takes, number % self.nobody, slots)

    def take_finished(self) -> list[ImageTokens]:
        """Images that have ended since the last call; their rows are free."""
        finished = self.is_finished[:-1].nonzero()[:, 0]
        if not len(finished):
            return []
        global_codes = self.drawn_globals[finished, :-1].cpu().numpy()
        patches = self.drawn_patches[finished, :-1].cpu().numpy()
        self.is_finished[finished] = False
        images = []
        for row, own_globals, own_patches in zip(finished.tolist(), global_codes, patches, strict=True):
            request = self._requests[row]
            assert request is not None
            self._requests[row] = None
            positions = np.flatnonzero(own_patches >= 0).astype(np.int32)
            images.append(ImageTokens(request.number, own_globals, own_patches[positions], positions))
        return images

    def _write(self, rows: Tensor, requests: list[ImageRequest]) -> None:
        places = np.stack([_or_free(request.patches, self._num_places) for request in requests])
        is_required = (places >= 0) | (places == Place.DRAWN)  # (n, N)
        positions = np.where(is_required, np.arange(self._num_places), self._num_places)
        # From the end on: the first that is required at a position or after it.
        after = np.minimum.accumulate(positions[:, ::-1], axis=1)[:, ::-1]
        count = np.cumsum(is_required[:, ::-1], axis=1)[:, ::-1]
        end = np.zeros((len(requests), 1), np.int64)
        rows = rows.to(self._device)

        def put(target: Tensor, values: np.ndarray) -> None:
            target[rows] = torch.from_numpy(np.ascontiguousarray(values)).to(self._device, target.dtype)

        if self._num_globals:
            given = [_or_free(request.global_codes, self._num_globals) for request in requests]
            put(self.global_codes, np.stack(given))
        put(self.patches, places)
        put(self.next_required, np.concatenate([after, end + self._num_places], axis=1))
        put(self.num_required, np.concatenate([count, end], axis=1))
        put(self.is_absent, np.concatenate([places == Place.ABSENT, end != 0], axis=1))
        seeds = torch.tensor([[_signed(request.seed)] for request in requests], device=self._device)
        draws = torch.arange(self.uniforms.shape[1], device=self._device)
        self.uniforms[rows] = uniforms(seeds, draws)
        self.drawn_patches[rows] = int(Place.ABSENT)
        self.conditions[rows] = self._embed(requests, is_conditional=True)
        if self._model.config.condition != "none":
            self.unconditions[rows] = self._embed(requests, is_conditional=False)
        self._filled_in.fill_(self._num_filled_in)

    def _embed(self, requests: list[ImageRequest], *, is_conditional: bool) -> Tensor:
        """First elements, (n, W); not `is_conditional`: with the condition hidden. Budgets are no part of it."""
        embeddings, config = None, self._model.config
        has_condition = np.array([_has_condition(request) for request in requests])
        if config.condition == "embedding":
            none = np.zeros(config.embedding_dim, np.float32)
            given = [none if request.embedding is None else request.embedding for request in requests]
            embeddings = torch.from_numpy(np.stack(given).astype(np.float32))
            embeddings = embeddings.to(self._device, self.conditions.dtype)
        asked = [-1 if request.num_patches is None else request.num_patches for request in requests]
        return self._model.embed_condition(
            torch.tensor([request.label or 0 for request in requests], device=self._device),
            torch.from_numpy(has_condition & is_conditional).to(self._device),
            torch.tensor(asked, device=self._device),
            embeddings,
        )

    def _check(self, request: ImageRequest) -> None:
        """Here, because on a GPU an index out of range ends the process without saying which."""
        config, vocabulary = self._model.config, self._model.vocabulary
        shown = f"image {request.number}: "
        if request.label is not None and config.condition != "class":
            raise ValueError(f"{shown}label {request.label}: the generator's condition is {config.condition}")
        if request.label is not None and not 0 <= request.label < config.num_classes:
            raise ValueError(f"{shown}label {request.label}: expected 0 to {config.num_classes - 1}")
        if request.embedding is not None and (
            config.condition != "embedding" or request.embedding.shape != (config.embedding_dim,)
        ):
            raise ValueError(
                f"{shown}embedding of shape {request.embedding.shape}: the generator's condition is "
                f"{config.condition}, embedding_dim={config.embedding_dim}"
            )
        if request.num_patches is not None and not config.num_budgets:
            raise ValueError(f"{shown}num_patches={request.num_patches}: the generator knows no budgets")
        if request.num_patches is not None and not 0 <= request.num_patches <= vocabulary.num_patches:
            raise ValueError(
                f"{shown}num_patches={request.num_patches}: expected 0 to {vocabulary.num_patches}"
            )
        for name, codes, shape, lowest, vocab in (
            (
                "global_codes",
                request.global_codes,
                vocabulary.num_globals,
                Place.FREE,
                vocabulary.global_vocab,
            ),
            ("patches", request.patches, vocabulary.num_patches, Place.ABSENT, vocabulary.patch_vocab),
        ):
            if codes is None:
                continue
            if codes.shape != (shape,) or codes.min(initial=0) < lowest or codes.max(initial=0) >= vocab:
                raise ValueError(
                    f"{shown}{name} of shape {codes.shape}, {codes.min(initial=0)} to {codes.max(initial=0)}: expected "
                    f"({shape},), codes up to {vocab - 1}"
                )
        if request.patches is not None:
            required = int(((request.patches >= 0) | (request.patches == Place.DRAWN)).sum())
            if required > self._max_patches:
                raise ValueError(
                    f"{shown}{required} patches are given or asked for: expected at most "
                    f"max_patches={self._max_patches}"
                )


def _or_free(codes: np.ndarray | None, count: int) -> np.ndarray:
    return np.full(count, int(Place.FREE), np.int64) if codes is None else codes.astype(np.int64)


def _has_condition(request: ImageRequest) -> bool:
    return request.label is not None or request.embedding is not None


def _signed(seed: int) -> int:
    """The lowest 64 bits, as torch holds them."""
    return int(np.uint64(seed & ((1 << 64) - 1)).astype(np.int64))
