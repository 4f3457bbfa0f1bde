"""Both shapes of the pipeline: every sample once, in order, in bounded queues, and errors where they belong."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

from tatok_pipe.encoding import sample_pipeline
from tatok_pipe.encoding.sample_pipeline import Group, Sample, SamplePipeline, chunks, fill_batches, gather
from tatok_pipe.records import DecodedImage, ImageSample, Quarantined, TokenRecord
from tatok_pipe.runs.activity import Depths

SHAPES = [pytest.param(0, id="joined"), pytest.param(3, id="split")]


def make_samples(count: int, *, seed: int = 0) -> list[Sample]:
    """Images of some bytes; one in five is quarantined by the reader, one in five will not decode."""
    rng = random.Random(seed)
    samples: list[Sample] = []
    for i in range(count):
        fate = rng.random()
        if fate < 0.2:
            samples.append(Quarantined(f"{i:04d}", "shard", "NoImage", "", 0))
        else:
            samples.append(ImageSample(f"{i:04d}", b"bad" if fate < 0.4 else b"image"))
    return samples


def decode(sample: Sample, num_crops: int = 1) -> list[DecodedImage | Quarantined]:
    time.sleep(random.random() * 0.001)
    if isinstance(sample, Quarantined):
        return [sample]
    if sample.image == b"bad":
        return [Quarantined(sample.key, "decode", "Corrupt", "", len(sample.image))]
    pixels = np.zeros((1, 1, 3), np.uint8)
    return [
        DecodedImage(sample.key, None, None, None, len(sample.image), pixels, 1, 1, crop)
        for crop in range(num_crops)
    ]


def encode(group: Group) -> list[TokenRecord]:
    time.sleep(random.random() * 0.002)
    codes = np.zeros(1, np.int64)
    return [
        TokenRecord(image.key, None, None, None, 1, 1, image.crop, codes, codes, codes, 0.0, 0.0)
        for image in group.images
    ]


def make(num_decoders: int, **changes: object) -> SamplePipeline:
    options: dict = {"batch_size": 4, "num_lanes": 2, "num_decoders": num_decoders} | changes
    return SamplePipeline(options.pop("decode", decode), options.pop("encode", encode), **options)


@pytest.mark.parametrize("num_decoders", SHAPES)
def test_every_sample_once_and_in_order(num_decoders: int) -> None:
    samples = make_samples(300)
    pipeline, depths = make(num_decoders), Depths()
    keys, quarantined = [], []
    for encoded in pipeline.run(samples, depths):
        assert len(encoded.records) <= 4
        assert encoded.image_bytes == len(b"image") * len(encoded.records)
        keys += [record.key for record in encoded.records]
        quarantined += [row.key for row in encoded.quarantined]
    pipeline.close()
    good = [s.key for s in samples if isinstance(s, ImageSample) and s.image == b"image"]
    assert keys == good and len(good) > 100
    assert quarantined == [s.key for s in samples if s.key not in set(good)]
    assert (depths.samples, depths.batches) == (0, 0)


@pytest.mark.parametrize("num_decoders", SHAPES)
@pytest.mark.parametrize("num_crops", [2, 3, 10])
def test_all_crops_of_an_image_stand_together_in_full_batches(num_decoders: int, num_crops: int) -> None:
    samples = make_samples(120)
    pipeline = make(
        num_decoders, decode=lambda sample: decode(sample, num_crops), images_per_sample=num_crops
    )
    depths = Depths()
    done = list(pipeline.run(samples, depths))
    pipeline.close()
    good = [s.key for s in samples if isinstance(s, ImageSample) and s.image == b"image"]
    rows = [(record.key, record.crop) for encoded in done for record in encoded.records]
    assert rows == [(key, crop) for key in good for crop in range(num_crops)]
    quarantined = [row.key for encoded in done for row in encoded.quarantined]
    assert quarantined == [s.key for s in samples if s.key not in set(good)]
    assert sum(encoded.image_bytes for encoded in done) == len(b"image") * len(good)
    sizes = [len(encoded.records) for encoded in done]
    assert max(sizes) == 4
    if num_decoders:
        assert sizes[:-1] == [4] * (len(sizes) - 1)
    assert (depths.samples, depths.batches) == (0, 0)


@pytest.mark.parametrize(
    ("batch_size", "images_per_sample", "expected"),
    [
        (16, 1, 16),
        (128, 1, 128),
        (16, 2, 8),
        (16, 10, 8),  # 80 images in 5 batches
        (16, 9, 7),  # 63 of 64; 16 samples would be 9 batches
        (16, 100, 1),  # 100 of 112
        (16, 200, 1),
        (4, 3, 4),
        (1, 5, 1),
    ],
)
def test_samples_that_fill_batches(batch_size: int, images_per_sample: int, expected: int) -> None:
    assert fill_batches(batch_size, images_per_sample) == expected


@pytest.mark.parametrize("num_decoders", SHAPES)
def test_two_streams_at_once_do_not_mix(num_decoders: int) -> None:
    pipeline = make(num_decoders)
    found: dict[int, list[str]] = {}

    def run(seed: int) -> None:
        found[seed] = [
            record.key
            for encoded in pipeline.run(make_samples(200, seed=seed), Depths())
            for record in encoded.records
        ]

    threads = [threading.Thread(target=run, args=(seed,)) for seed in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    pipeline.close()
    for seed in (1, 2):
        samples = make_samples(200, seed=seed)
        assert found[seed] == [s.key for s in samples if isinstance(s, ImageSample) and s.image == b"image"]
    assert found[1] != found[2]


@pytest.mark.parametrize("num_decoders", SHAPES)
def test_reading_stays_a_bounded_way_ahead(num_decoders: int) -> None:
    num_read = 0

    def endless() -> Iterator[Sample]:
        nonlocal num_read
        while True:
            num_read += 1
            yield ImageSample(str(num_read), b"image")

    pipeline = make(num_decoders)
    stream = pipeline.run(endless(), Depths())
    for _ in range(10):
        next(stream)
    time.sleep(0.1)
    assert num_read <= 40 + 200
    stream.close()  # type: ignore[attr-defined]
    pipeline.close()


@pytest.mark.parametrize("num_decoders", SHAPES)
def test_large_images_wait_in_bounded_memory(num_decoders: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_pipeline, "_WAITING_BYTES", 1000)
    monkeypatch.setattr(sample_pipeline, "_CHUNK_BYTES", 200)
    held, most, lock = 0, 0, threading.Lock()

    def read() -> Iterator[Sample]:
        nonlocal held, most
        for i in range(200):
            with lock:
                held += 100
                most = max(most, held)
            yield ImageSample(str(i), bytes(100))

    def slow(sample: Sample) -> list[DecodedImage | Quarantined]:
        nonlocal held
        time.sleep(0.001)
        with lock:
            held -= 100
        return decode(sample)

    pipeline = make(num_decoders, decode=slow)
    assert sum(len(encoded.records) for encoded in pipeline.run(read(), Depths())) == 200
    pipeline.close()
    assert most <= 1000 + 3 * 200  # and the chunk that is being read


@pytest.mark.parametrize("num_decoders", SHAPES)
@pytest.mark.parametrize("stage", ["read", "decode", "encode"])
def test_an_error_of_a_stage_is_raised_and_the_threads_stay_good(num_decoders: int, stage: str) -> None:
    is_broken = True

    def fail(where: str, key: str) -> None:
        if is_broken and where == stage and int(key) == 57:
            raise OSError(f"{where} {key}")

    def read() -> Iterator[Sample]:
        for i in range(100):
            fail("read", str(i))
            yield ImageSample(str(i), b"image")

    def decode_one(sample: Sample) -> list[DecodedImage | Quarantined]:
        fail("decode", sample.key)
        return decode(sample)

    def encode_all(group: Group) -> list[TokenRecord]:
        for image in group.images:
            fail("encode", image.key)
        return encode(group)

    pipeline = make(num_decoders, decode=decode_one, encode=encode_all)
    with pytest.raises(OSError, match=f"{stage} 57"):
        list(pipeline.run(read(), Depths()))
    is_broken = False
    assert sum(len(encoded.records) for encoded in pipeline.run(read(), Depths())) == 100
    pipeline.close()


def test_chunks_end_at_a_number_of_samples_or_of_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample_pipeline, "_CHUNK_BYTES", 250)
    samples: list[Sample] = [
        ImageSample(str(size), bytes(size)) for size in (1, 1, 1, 1, 300, 100, 100, 100, 5)
    ]
    assert [[s.key for s in chunk] for chunk in chunks(samples, 3)] == [
        ["1", "1", "1"],
        ["1", "300"],
        ["100", "100", "100"],
        ["5"],
    ]


def test_a_shard_of_bad_images_gives_groups_too() -> None:
    rows = [Quarantined(str(i), "decode", "Corrupt", "", 1) for i in range(2500)]
    groups = list(gather(rows, 4))
    assert [len(group.quarantined) for group in groups] == [1024, 1024, 452]
