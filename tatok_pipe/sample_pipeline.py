"""Samples in, token rows out, in order: decoding and encoding side by side, with bounded queues between them.

Two shapes. With a device of its own to feed, threads decode single images and others pass full batches to the device.
On CPU one thread decodes a batch and encodes it: decoding threads beside the encoding ones would compete for the same
cores and pass Python's lock back and forth, which with a model that does nothing takes 1.6 times the CPU time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

from tatok_pipe.activity import Depths
from tatok_pipe.parallel import map_ahead
from tatok_pipe.records import DecodedImage, ImageSample, Quarantined, TokenRecord

Sample = ImageSample | Quarantined
Decoded = DecodedImage | Quarantined
Out = TypeVar("Out")

# Encoded images that may wait for a decoder, or be with one. Bounds memory where members are large.
_WAITING_BYTES = 256 << 20
_CHUNK_SAMPLES = 8  # for a thread that only decodes
_CHUNK_BYTES = 64 << 20
_MAX_QUARANTINED = 1024  # in a group: a shard of nothing but bad images must not grow one without end


@dataclass(frozen=True)
class Group:
    """Consecutive samples: the images of a batch, with the quarantined samples among them."""

    images: list[DecodedImage] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)

    def add(self, item: Decoded) -> None:
        if isinstance(item, Quarantined):
            self.quarantined.append(item)
        else:
            self.images.append(item)


class SamplePipeline:
    """The threads, shared by all streams of samples that run through them at once."""

    def __init__(
        self,
        decode: Callable[[Sample], Decoded],
        encode: Callable[[Group], list[TokenRecord]],
        *,
        batch_size: int,
        num_lanes: int,
        num_decoders: int,
    ) -> None:
        """`num_lanes` threads encode; with `num_decoders` 0 they decode too, else as many others do."""
        self._decode = decode
        self._encode = encode
        self._batch_size = batch_size
        self._num_lanes = num_lanes
        self._num_decoders = num_decoders
        self._lanes = ThreadPoolExecutor(num_lanes, "encode")
        self._decoders = ThreadPoolExecutor(num_decoders, "decode") if num_decoders else None

    def run(self, samples: Iterable[Sample], depths: Depths) -> Iterator[tuple[Group, list[TokenRecord]]]:
        """Groups of samples and the rows of their images, in order of the samples. Raises what a stage raises."""
        if self._decoders is None:
            yield from self._run_joined(samples, depths)
        else:
            yield from self._run_split(self._decoders, samples, depths)

    def close(self) -> None:
        """End the threads. Nothing may be running."""
        self._lanes.shutdown()
        if self._decoders is not None:
            self._decoders.shutdown()

    def _run_joined(
        self, samples: Iterable[Sample], depths: Depths
    ) -> Iterator[tuple[Group, list[TokenRecord]]]:
        def work(chunk: list[Sample]) -> tuple[Group, list[TokenRecord]]:
            group = Group()
            for item in self._decode_chunk(chunk, depths):
                group.add(item)
            return group, self._encode(group)

        counted = _counted(chunks(samples, self._batch_size), depths)
        yield from _map_chunks(self._lanes, work, counted, max_chunks=self._num_lanes + 2)

    def _run_split(
        self, decoders: ThreadPoolExecutor, samples: Iterable[Sample], depths: Depths
    ) -> Iterator[tuple[Group, list[TokenRecord]]]:
        max_chunks = self._num_decoders + 2 * self._num_lanes * -(-self._batch_size // _CHUNK_SAMPLES)
        counted = _counted(chunks(samples, _CHUNK_SAMPLES), depths)
        decoded = _map_chunks(
            decoders, lambda chunk: self._decode_chunk(chunk, depths), counted, max_chunks=max_chunks
        )

        def groups() -> Iterator[Group]:
            for group in gather(chain.from_iterable(decoded), self._batch_size):
                depths.add(batches=1)
                yield group

        def work(group: Group) -> tuple[Group, list[TokenRecord]]:
            try:
                return group, self._encode(group)
            finally:
                depths.add(batches=-1)

        yield from map_ahead(self._lanes, work, groups(), max_items=self._num_lanes + 2)

    def _decode_chunk(self, chunk: list[Sample], depths: Depths) -> list[Decoded]:
        try:
            return [self._decode(sample) for sample in chunk]
        finally:
            depths.add(samples=-len(chunk))


def chunks(samples: Iterable[Sample], max_samples: int) -> Iterator[list[Sample]]:
    """Runs of samples for one thread. To hand over small images one by one takes a quarter of the time that
    decoding them does; large ones are fewer at a time."""
    chunk: list[Sample] = []
    num_bytes = 0
    for sample in samples:
        chunk.append(sample)
        num_bytes += encoded_bytes(sample)
        if len(chunk) == max_samples or num_bytes >= _CHUNK_BYTES:
            yield chunk
            chunk, num_bytes = [], 0
    if chunk:
        yield chunk


def gather(decoded: Iterable[Decoded], batch_size: int) -> Iterator[Group]:
    """Groups of `batch_size` images, the last one smaller; quarantined samples go with the images around them."""
    group = Group()
    for item in decoded:
        group.add(item)
        if len(group.images) == batch_size or len(group.quarantined) >= _MAX_QUARANTINED:
            yield group
            group = Group()
    if group.images or group.quarantined:
        yield group


def encoded_bytes(sample: Sample) -> int:
    """What a sample holds in memory until it is decoded."""
    return len(sample.image) if isinstance(sample, ImageSample) else 0


def _counted(chunked: Iterable[list[Sample]], depths: Depths) -> Iterator[list[Sample]]:
    for chunk in chunked:
        depths.add(samples=len(chunk))
        yield chunk


def _map_chunks(
    pool: ThreadPoolExecutor,
    work: Callable[[list[Sample]], Out],
    chunked: Iterable[list[Sample]],
    *,
    max_chunks: int,
) -> Iterator[Out]:
    return map_ahead(
        pool,
        work,
        chunked,
        max_items=max_chunks,
        weigh=lambda chunk: sum(map(encoded_bytes, chunk)),
        max_weight=_WAITING_BYTES,
    )
