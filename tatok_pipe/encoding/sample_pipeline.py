"""Samples in, token rows out, in order: decoding and encoding side by side, with bounded queues between them.

Two shapes. With a device of its own to feed, threads decode single images and others pass full batches to the device.
On CPU one thread decodes some batches and encodes them: decoding threads beside the encoding ones would compete for
the same cores and pass Python's lock back and forth, which with a model that does nothing takes 1.6 times the CPU time.

A sample gives one image or, cut into several crops, several; an "image" here is a crop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from typing import TypeVar

from tatok_pipe.parallel import map_ahead
from tatok_pipe.records import DecodedImage, ImageSample, Quarantined, TokenRecord
from tatok_pipe.runs.activity import Depths

Sample = ImageSample | Quarantined
Decoded = DecodedImage | Quarantined
Out = TypeVar("Out")

# Encoded images that may wait for a decoder, or be with one. Bounds memory where members are large.
_WAITING_BYTES = 256 << 20
_CHUNK_IMAGES = 8  # for a thread that only decodes
_CHUNK_BYTES = 64 << 20
_MAX_QUARANTINED = 1024  # in a group: a shard of nothing but bad images must not grow one without end
_MAX_CHUNK_BATCHES = 8  # for a thread that decodes and encodes: more would balance badly over threads


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


@dataclass(frozen=True)
class Encoded:
    """What became of the samples of a group. The pixels are gone, as these wait for their turn."""

    records: list[TokenRecord]
    quarantined: list[Quarantined]
    image_bytes: int  # of the encoded images that records are of; an image counts with its first crop

    @property
    def num_tokens(self) -> int:
        return sum(record.num_tokens for record in self.records)


class SamplePipeline:
    """The threads, shared by all streams of samples that run through them at once."""

    def __init__(
        self,
        decode: Callable[[Sample], Sequence[Decoded]],
        encode: Callable[[Group], list[TokenRecord]],
        *,
        batch_size: int,
        num_lanes: int,
        num_decoders: int,
        images_per_sample: int = 1,
    ) -> None:
        """`num_lanes` threads encode; with `num_decoders` 0 they decode too, else as many others do.

        `decode` gives a sample's `images_per_sample` images, by number of their crop, or one quarantine row.
        """
        self._decode = decode
        self._encode_images = encode
        self._batch_size = batch_size
        self._images_per_sample = images_per_sample
        self._num_lanes = num_lanes
        self._num_decoders = num_decoders
        self._lanes = ThreadPoolExecutor(num_lanes, "encode")
        self._decoders = ThreadPoolExecutor(num_decoders, "decode") if num_decoders else None

    def run(self, samples: Iterable[Sample], depths: Depths) -> Iterator[Encoded]:
        """The rows of the samples, a batch or less at a time, in their order. Raises what a stage raises."""
        if self._decoders is None:
            yield from self._run_joined(samples, depths)
        else:
            yield from self._run_split(self._decoders, samples, depths)

    def close(self) -> None:
        """End the threads. Nothing may be running."""
        self._lanes.shutdown()
        if self._decoders is not None:
            self._decoders.shutdown()

    def _run_joined(self, samples: Iterable[Sample], depths: Depths) -> Iterator[Encoded]:
        def work(chunk: list[Sample]) -> list[Encoded]:
            return [
                self._encode(group) for group in gather(self._decode_each(chunk, depths), self._batch_size)
            ]

        max_samples = fill_batches(self._batch_size, self._images_per_sample)
        counted = _counted(chunks(samples, max_samples), depths)
        for done in _map_chunks(self._lanes, work, counted, max_chunks=self._num_lanes + 2):
            yield from done

    def _run_split(
        self, decoders: ThreadPoolExecutor, samples: Iterable[Sample], depths: Depths
    ) -> Iterator[Encoded]:
        max_samples = max(1, _CHUNK_IMAGES // self._images_per_sample)
        chunk_images = max_samples * self._images_per_sample
        max_chunks = self._num_decoders + 2 * self._num_lanes * -(-self._batch_size // chunk_images)
        counted = _counted(chunks(samples, max_samples), depths)
        decoded = _map_chunks(
            decoders, lambda chunk: list(self._decode_each(chunk, depths)), counted, max_chunks=max_chunks
        )

        def groups() -> Iterator[Group]:
            for group in gather(chain.from_iterable(decoded), self._batch_size):
                depths.add(batches=1)
                yield group

        def work(group: Group) -> Encoded:
            try:
                return self._encode(group)
            finally:
                depths.add(batches=-1)

        yield from map_ahead(self._lanes, work, groups(), max_items=self._num_lanes + 2)

    def _decode_each(self, chunk: list[Sample], depths: Depths) -> Iterator[Decoded]:
        try:
            for sample in chunk:
                yield from self._decode(sample)
        finally:
            depths.add(samples=-len(chunk))

    def _encode(self, group: Group) -> Encoded:
        image_bytes = sum(image.num_bytes for image in group.images if image.crop == 0)
        return Encoded(self._encode_images(group), group.quarantined, image_bytes)


def fill_batches(batch_size: int, images_per_sample: int) -> int:
    """How many samples to decode and encode at once: the fewest whose images leave least of their batches empty."""

    def filled(num_samples: int) -> float:
        num_images = num_samples * images_per_sample
        return num_images / (-(-num_images // batch_size) * batch_size)

    most = max(1, _MAX_CHUNK_BATCHES * batch_size // images_per_sample)
    return max(range(1, most + 1), key=filled)


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
