"""Tars made of a few files, and the samples that are read from them."""

from __future__ import annotations

import io
import tarfile

from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.notices import Notices
from tatok_pipe.images.webdataset.samples import read_samples
from tatok_pipe.records import ImageSample, Quarantined


def pack(*files: tuple[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def read_noting(data: bytes, **limits) -> tuple[list[ImageSample | Quarantined], list[tuple[str, str, int]]]:
    """Samples, and what was told: text, example, number of samples."""
    notices = Notices()
    stream = io.BytesIO(data)
    samples = list(read_samples(stream, shard="x.tar", limits=ShardLimits(**limits), notices=notices))
    return samples, [(notice.text, notice.example, notice.num_samples) for notice in notices.all]


def read(data: bytes, **limits) -> list[ImageSample | Quarantined]:
    return list(read_samples(io.BytesIO(data), shard="s3://bucket/x.tar", limits=ShardLimits(**limits)))


def only(*files: tuple[str, bytes], **limits) -> ImageSample | Quarantined:
    samples = read(pack(*files), **limits)
    assert len(samples) == 1
    return samples[0]


def refused(*files: tuple[str, bytes], **limits) -> tuple[str, str]:
    sample = only(*files, **limits)
    assert isinstance(sample, Quarantined)
    assert sample.num_bytes == sum(len(data) for _, data in files)
    return sample.stage, sample.error
