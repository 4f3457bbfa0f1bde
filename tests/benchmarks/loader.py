"""How fast the token loader reads, packs and lays out: tokens per second of one process, and what bounds it.

Made-up rows of 32 globals and 0 to 224 of 256 patches, as many as the number in the command line says (131,072 by
default), in shards of 8,192; from the local disk, and from an S3 server on this machine. Run it on an idle machine.
"""

from __future__ import annotations

import itertools
import os
import resource
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from tatok_pipe import storage
from tatok_pipe.demo_server import s3_server
from tatok_pipe.errors import UserError
from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.batches import Sequences, lay_out
from tatok_pipe.tokens.conditions import ConditionConfig
from tatok_pipe.tokens.dataset import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter
from tatok_pipe.tokens.layout import DATASET_FILE, data_url
from tatok_pipe.tokens.loader import TokenLoader
from tatok_pipe.tokens.packing import pack
from tatok_pipe.tokens.sequences import SequenceReader, concatenate
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.training_set import read_training_set
from tatok_pipe.tokens.window_stream import LoaderConfig
from tatok_pipe.tokens.windows import EpochPlanner

REPEATS = 3
SHARD_ROWS = 8192
CONDITION = ConditionConfig(kind="class", num_classes=1000)
SPEC = TokenSpec(
    num_globals=32,
    num_patches=256,
    global_vocab=4096,
    patch_vocab=16_384,
    image_size=256,
    patch_size=16,
    tokenizer_fingerprint="benchmark",
)


def make_records(count: int, random: np.random.Generator) -> list[TokenRecord]:
    records = []
    for index in range(count):
        num_kept = int(random.integers(0, 225))
        positions = np.sort(random.permutation(SPEC.num_patches)[:num_kept]).astype(np.uint16)
        records.append(
            TokenRecord(
                key=f"n{index:08d}/{random.integers(1 << 60):x}", label=int(random.integers(1000)), caption=None,
                meta=None, width=500, height=375, crop=0, entropy_total=500.0, entropy_dropped=100.0,
                global_codes=random.integers(0, SPEC.global_vocab, SPEC.num_globals).astype(np.uint16),
                patch_codes=random.integers(0, SPEC.patch_vocab, num_kept).astype(np.uint16),
                patch_positions=positions,
            )
        )  # fmt: skip
    return records


def write_dataset(url: str, num_rows: int) -> None:
    create_or_check(url, SPEC, {})
    random = np.random.default_rng(0)
    Path(url, "data").mkdir(exist_ok=True)
    for shard in range(-(-num_rows // SHARD_ROWS)):
        with ShardWriter(
            Path(url, f"data/{shard:05d}.parquet"), SPEC, ShardSource(f"{shard}.tar", 1)
        ) as writer:
            writer.append(make_records(SHARD_ROWS, random))


def measure(handle: Callable[[], int]) -> tuple[float, float]:
    """(median tokens per second, core seconds per second) of a function that returns the tokens it handled."""
    speeds, loads = [], []
    for _ in range(REPEATS):
        start, cpu = time.perf_counter(), time.process_time()
        num_tokens = handle()
        seconds = time.perf_counter() - start
        speeds.append(num_tokens / seconds)
        loads.append((time.process_time() - cpu) / seconds)
    return statistics.median(speeds), statistics.median(loads)


def report(name: str, handle: Callable[[], int]) -> None:
    speed, cores = measure(handle)
    print(f"{name:>58} {speed / 1e6:8.2f} M tokens/s {cores:6.2f} cores", flush=True)


def report_loader(name: str, url: str, config: LoaderConfig) -> None:
    """Whole epochs from the middle of a run, so that what is read ahead counts as much before as after."""
    dataset = read_training_set(url)
    spec, shards = dataset.spec, dataset.shards
    steps = iter(TokenLoader(url, spec, shards, config, condition=CONDITION, seed=0))

    def read_epoch() -> int:
        num_tokens = 0
        for step in steps:
            num_tokens += step.num_elements
            if step.is_epoch_end:
                break
        return num_tokens

    read_epoch()
    report(name, read_epoch)
    steps.close()
    while any(thread.name.startswith("token-") for thread in threading.enumerate()):
        time.sleep(0.01)  # or the next one is measured together with what is still read ahead for this one


def read_window(url: str, config: LoaderConfig) -> Sequences:
    """The parts alone, in one thread: one window from Parquet to columns."""
    dataset = read_training_set(url)
    spec, shards = dataset.spec, dataset.shards
    planner = EpochPlanner(shards, window_rows=config.window_sequences, seed=0)
    reader = SequenceReader(url, spec, CONDITION, held_out_share=config.held_out_share, is_held_out=False)
    return concatenate([reader.read(group) for group in planner.groups(planner.windows(0)[0])])


def measure_parts(url: str, config: LoaderConfig) -> None:
    sequences = read_window(url, config)
    num_tokens = int(sequences.lengths.sum())
    packing = pack(sequences.lengths, row_tokens=config.row_tokens, random=np.random.default_rng(0))
    rows = np.arange(packing.num_rows)

    def pack_window() -> int:
        return pack(
            sequences.lengths, row_tokens=config.row_tokens, random=np.random.default_rng(0)
        ).num_tokens

    def lay_out_window() -> int:
        lay_out(sequences, packing, rows)
        return num_tokens

    print(f"a window: {len(sequences)} sequences, {packing.num_rows} rows, fill {packing.fill:.2%}")
    report("Parquet to columns, one thread", lambda: int(read_window(url, config).lengths.sum()))
    report("packing", pack_window)
    report("layout", lay_out_window)


def copy_to_s3(source: Path, target: str) -> None:
    names = [DATASET_FILE, *(f"data/{path.name}" for path in sorted((source / "data").iterdir()))]

    def copy(name: str) -> None:
        storage.publish_file(source / name, storage.join(target, name), exclusive=False)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(copy, names))


def main(argv: Sequence[str]) -> int:
    num_rows = int(argv[0]) if argv else 131_072
    config = LoaderConfig()
    with tempfile.TemporaryDirectory() as folder:
        url = str(Path(folder, "tokens"))
        write_dataset(url, num_rows)
        size = Path(data_url(url, "00000")).stat().st_size
        print(f"{num_rows} sequences, {size / 1e6:.1f} MB a shard of {SHARD_ROWS}; {os.cpu_count()} cores")
        measure_parts(url, config)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for threads, share in itertools.product((1, 4), (0.0, 0.01)):
            loader = LoaderConfig(read_threads=threads, held_out_share=share)
            report_loader(f"loader, local disk, {threads} read threads, {share:.0%} held out", url, loader)
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"{'peak memory of the process':>58} {after >> 10:8d} MiB, {before >> 10} MiB before the loader"
        )
        try:
            with s3_server(Path(folder, "server"), bucket="tatok") as server:
                os.environ.update(server.environment())
                copy_to_s3(Path(url), "s3://tatok/tokens")
                for threads in (4, 8):
                    loader = LoaderConfig(read_threads=threads)
                    report_loader(
                        f"loader, S3 server on this machine, {threads} read threads",
                        "s3://tatok/tokens",
                        loader,
                    )
        except UserError as error:
            print(f"not from S3: {error}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
