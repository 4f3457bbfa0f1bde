"""What the programs of this folder share: their command line, decoding, the model, the table, the clock and the memory.

Each is what a user would otherwise write to turn image shards into tokens, with the same tokenizer, filter and batches
as tokenize_corpus. They do less than it does, as such programs do: no labels, no entropies, nothing checked or read
back, no statistics, no second try, no bad image survived. What is counted is told at `Clock` and `PeakMemory`.

Letters: B images a batch, S image size, K globals, N patches.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.model import TaTok, Tokens
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokenizer.trainer import to_model_input
from tests.benchmarks.pictures import decode_with_pillow

BATCH = 16
CORES = os.cpu_count() or 1
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
# Of Parquet, as everywhere with variable length: a list a row.
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("global_codes", pa.list_(pa.uint16())),
        ("patch_codes", pa.list_(pa.uint16())),
        ("patch_positions", pa.list_(pa.uint16())),
    ]
)
_SAMPLE_S = 0.5
_MAX_START_S = 300  # of the processes that wait for one another


@dataclass(frozen=True)
class Task:
    """What a program was asked to do."""

    source: Path  # folder of shards, or of images
    output: Path
    num_images: int  # in all of them: to have written fewer or more is an error
    is_null: bool  # a model that does nothing
    decode: str  # of DECODERS
    image_size: int  # S
    ranks: int  # processes that encode, one torch thread each

    @property
    def clock(self) -> Clock:
        return Clock(self.output / "begun")

    @property
    def gate(self) -> Gate:
        return Gate(self.output / "ready", self.ranks)

    @property
    def shards(self) -> list[str]:
        return sorted(str(path) for path in self.source.glob("*.tar"))

    @property
    def files(self) -> list[str]:
        """Images that are files already, in a folder a shard. Ends the program where there are none."""
        files = sorted(str(path) for path in self.source.rglob("*") if path.suffix in IMAGE_ENDINGS)
        if not files:
            raise SystemExit(f"{self.source}: no {', '.join(IMAGE_ENDINGS)} in it or its folders")
        return files


@dataclass(frozen=True)
class Row:
    """What is kept of an image."""

    key: str
    global_codes: np.ndarray  # (K,)
    patch_codes: np.ndarray  # the kept ones
    patch_positions: np.ndarray  # raster indices of these


def parse_task(
    description: str | None, *, add: Callable[[argparse.ArgumentParser], Any] | None = None
) -> tuple[Task, argparse.Namespace]:
    """The task of the command line, and all its options, also those that `add` adds."""
    parser = argparse.ArgumentParser(description=(description or "").split("\n\n")[0])
    parser.add_argument("source", type=Path, metavar="FOLDER")
    parser.add_argument("output", type=Path, metavar="OUTPUT")
    parser.add_argument("--images", type=int, required=True, help="how many the shards have")
    parser.add_argument("--null", action="store_true", help="a model that does nothing")
    parser.add_argument("--decode", choices=tuple(DECODERS), default="pillow")
    parser.add_argument("--ranks", type=int, default=CORES, help="processes that encode; one a core without")
    if add is not None:
        add(parser)
    given = parser.parse_args()
    given.output.mkdir(parents=True)
    task = Task(
        source=given.source,
        output=given.output,
        num_images=given.images,
        is_null=given.null,
        decode=given.decode,
        image_size=load_tokenizer().model.config.image_size,
        # No more than there are batches: those that wait for one another would wait for one that has nothing to do.
        ranks=min(given.ranks, -(-given.images // BATCH)),
    )
    return task, given


def add_workers(parser: argparse.ArgumentParser) -> None:
    """The option of those that read with a DataLoader."""
    parser.add_argument(
        "--workers", type=int, default=0, help="processes that decode, for each rank; 0: the ranks themselves"
    )


def decode_as_adm(data: bytes, size: int) -> np.ndarray:
    """The centre square as ADM's scripts cut it, and after them LlamaGen's: halved by a box filter while it is twice
    too large, then scaled, then cropped. (S, S, 3) uint8."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return np.asarray(image.crop((left, top, left + size, top + size)))


def decode_as_ours(data: bytes, size: int) -> np.ndarray:
    return decode_image(data, PreprocessConfig(image_size=size))[0]


def decode_scaled(data: bytes, size: int) -> np.ndarray:
    return decode_with_pillow(data, size, draft=True)


DECODERS: dict[str, Callable[[bytes, int], np.ndarray]] = {
    "pillow": decode_scaled,
    "adm": decode_as_adm,
    "ours": decode_as_ours,
}


class Decoder:
    """Bytes of an image to (S, S, 3) uint8. The first one begins the clock."""

    def __init__(self, task: Task) -> None:
        self._decode = DECODERS[task.decode]
        self._size = task.image_size
        self._clock = task.clock

    def __call__(self, data: bytes) -> np.ndarray:
        self._clock.begin()
        return self._decode(data, self._size)


class Encoder:
    """Decoded images to rows, on one torch thread."""

    def __init__(self, task: Task) -> None:
        torch.set_num_threads(1)
        tokenizer = load_tokenizer()
        self._model = tokenizer.model
        self._filter = tokenizer.filter(DTFConfig())
        self._is_null = task.is_null
        # A batch of another size goes through other kernels, whose last bits differ and now and then a code. Our job
        # always encodes full batches; where tokens have to be equal, so does this one, and otherwise not: it takes
        # time.
        self._is_padded = task.decode == "ours"

    def __call__(self, keys: Sequence[str], pixels: np.ndarray) -> list[Row]:
        """`pixels` (B, S, S, 3) uint8."""
        if self._is_padded and len(pixels) < BATCH:
            pixels = np.concatenate([pixels, np.zeros((BATCH - len(pixels), *pixels.shape[1:]), np.uint8)])
        with torch.inference_mode():
            images = to_model_input(pixels, "cpu")
            tokens = (
                do_nothing(self._model, images)
                if self._is_null
                else self._model.tokenize(images, self._filter)
            )
        global_codes, patch_codes, keep = (
            each.numpy() for each in (tokens.global_codes, tokens.patch_codes, tokens.keep)
        )
        return [
            Row(key, global_codes[row], patch_codes[row, keep[row]], np.flatnonzero(keep[row]))
            for row, key in enumerate(keys)
        ]


@functools.cache
def load_parts(task: Task) -> tuple[Decoder, Encoder]:
    """Those of this process, made once, when every process that encodes has its own: for libraries that start the
    processes themselves."""
    parts = Decoder(task), Encoder(task)
    task.gate.wait()
    return parts


def encode_all(model: TaTok, pixels: np.ndarray) -> np.ndarray:
    """All codes of images (n, S, S, 3) uint8, filtered or not, (n, K + N)."""
    with torch.inference_mode():
        encoded = [model.encode(batch) for batch in to_model_input(pixels, "cpu").split(BATCH)]
    return torch.cat([torch.cat([each.globals.codes, each.patches.codes], dim=1) for each in encoded]).numpy()


def do_nothing(model: TaTok, images: torch.Tensor) -> Tokens:
    """What null_model makes of our job's batches: all codes 0, all patches kept."""
    codes = torch.zeros(len(images), model.config.num_patches, dtype=torch.long)
    return Tokens(codes[:, : model.config.num_globals], codes, codes.float(), codes == 0, codes.float(), None)


def to_table(rows: Sequence[Row]) -> pa.Table:
    columns = ([getattr(row, name) for row in rows] for name in SCHEMA.names)
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)], SCHEMA
    )


def read_rows(output: Path) -> list[Row]:
    """All rows of the Parquet files in a folder."""
    table = pa.concat_tables(
        pq.read_table(path).select(SCHEMA.names) for path in sorted(output.glob("*.parquet"))
    )
    return [
        Row(row["key"], *(np.array(row[name], np.int64) for name in SCHEMA.names[1:]))
        for row in table.to_pylist()
    ]


class Clock:
    """From when some process is about to decode its first image to the last change of a file of results.

    So nothing counts of what programs take to start, to load the model, to start their workers, or to end; as in our
    job's own figure, which goes from the first shard begun to the last one committed. A file says when it began.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._has_begun = False

    def begin(self) -> None:
        """In any process, as often as one likes: the first call of all of them counts."""
        if not self._has_begun:
            self._has_begun = True
            with suppress(FileExistsError):
                self._path.open("x").close()

    def seconds(self, results: Sequence[Path]) -> float:
        """Until the last of these files was written."""
        end_ns = max(path.stat().st_mtime_ns for path in results)
        return (end_ns - self._path.stat().st_mtime_ns) / 1e9


class Gate:
    """Where processes that a library starts wait, each with its model, until all are there: the clock of the others
    would run otherwise while one still loads."""

    def __init__(self, folder: Path, num_processes: int) -> None:
        self._folder = folder
        self._num_processes = num_processes

    def wait(self) -> None:
        """Raises TimeoutError where one does not come."""
        self._folder.mkdir(exist_ok=True)
        (self._folder / str(os.getpid())).touch()
        begin = time.monotonic()
        while (num_ready := len(list(self._folder.iterdir()))) < self._num_processes:
            if time.monotonic() - begin > _MAX_START_S:
                raise TimeoutError(f"{num_ready} of {self._num_processes} processes after {_MAX_START_S} s")
            time.sleep(0.01)


class PeakMemory:
    """The largest sum of resident sets of a process and all below it, looked at twice a second. Memory that several
    of them share, such as Ray's object store, counts in each."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._process = psutil.Process(pid)
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._is_over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._is_over.wait(_SAMPLE_S):
            total = 0
            with suppress(psutil.Error):
                for process in (self._process, *self._process.children(recursive=True)):
                    with suppress(psutil.Error):
                        total += process.memory_info().rss
            self.peak_bytes = max(self.peak_bytes, total)


@dataclass(frozen=True)
class Run:
    """What a program prints at its end, as one line of JSON."""

    images: int
    seconds: float
    images_per_s: float
    peak_rss_bytes: int


def report(task: Task, results: Sequence[Path], num_rows: int, memory: PeakMemory) -> None:
    """Print the last line. Ends the program where a result is missing."""
    if num_rows != task.num_images:
        raise SystemExit(f"{num_rows} results of {task.num_images} images")
    seconds = task.clock.seconds(results)
    print(json.dumps(asdict(Run(num_rows, seconds, num_rows / seconds, memory.peak_bytes))))


def report_parquet(task: Task, memory: PeakMemory) -> None:
    results = sorted(task.output.glob("*.parquet"))
    report(task, results, sum(pq.read_metadata(path).num_rows for path in results), memory)


def run_ranks(function: Callable[..., None], task: Task, *arguments: Any) -> None:
    """`function(rank, task, barrier, *arguments)` in a process each, as torchrun starts a script; they are to wait at
    the barrier once they have their model."""
    processes: Any = torch.multiprocessing
    barrier = processes.get_context("spawn").Barrier(task.ranks)
    processes.spawn(function, (task, barrier, *arguments), nprocs=task.ranks)


def own_memory() -> PeakMemory:
    return PeakMemory(os.getpid())
