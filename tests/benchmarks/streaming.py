"""Reading image shards from an S3 server on this machine, as the job does, beside a bare reader of the same bytes.

Ours gives every sample, in order, checked and grouped. The bare reader is what gets the bytes soonest: ranges of
16 MiB, eight at a time, each kept until it was seen.
"""

from __future__ import annotations

import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tatok_pipe import storage
from tatok_pipe.commands.demo.server import s3_server
from tatok_pipe.images.source import open_samples
from tatok_pipe.images.webdataset.samples import read_samples
from tatok_pipe.records import ImageSample
from tests.benchmarks.measure import Results, environment, timed
from tests.benchmarks.pictures import make_pictures, write_shards

_RANGE_BYTES = 16 << 20
_NUM_AHEAD = 8
_COPIES = 60


def run(results: Results) -> None:
    pictures = make_pictures()
    with tempfile.TemporaryDirectory() as folder:
        (path,) = write_shards(Path(folder, "shards"), pictures, num_shards=1, copies=_COPIES)
        size = Path(path).stat().st_size
        with s3_server(Path(folder, "server"), bucket="tatok") as server, environment(server.environment()):
            url = "s3://tatok/shard.tar"
            storage.publish_file(path, url, exclusive=False)
            measure(results, url, path, size, num_images=_COPIES * len(pictures))


def measure(results: Results, url: str, path: str, size: int, *, num_images: int) -> None:
    info = storage.file_info(url)

    def samples() -> None:
        with open_samples(url, info=info) as found:
            count = sum(isinstance(sample, ImageSample) for sample in found)
        if count != num_images:
            raise SystemExit(f"{count} samples of {num_images}")

    def bare() -> None:
        filesystem, key = storage.open_filesystem(url)
        starts = range(0, size, _RANGE_BYTES)

        def fetch(start: int) -> int:
            return len(filesystem.cat_file(key, start=start, end=min(size, start + _RANGE_BYTES)))

        with ThreadPoolExecutor(_NUM_AHEAD) as pool:
            if sum(pool.map(fetch, starts)) != size:
                raise SystemExit("the bare reader came short")

    def local() -> None:
        with storage.open_stream(path) as stream:
            for _ in read_samples(stream, shard=path):
                pass

    megabytes = size / 1e6
    for warm in (samples, bare, local):
        warm()
    results.compare(
        "stream/ranges", f"a shard of {megabytes:.0f} MB from S3 as samples / its bytes, ranges in parallel",
        timed(megabytes, samples), timed(megabytes, bare), unit="MB/s",
    )  # fmt: skip
    results.compare(
        "stream/local", "the same / the same from the local disk",
        timed(megabytes, samples), timed(megabytes, local), unit="MB/s",
    )  # fmt: skip
