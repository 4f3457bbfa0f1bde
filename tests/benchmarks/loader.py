"""How fast the token loader reads, packs and lays out: tokens per second of one process, and what it holds.

Made-up rows of 32 globals and 0 to 224 of 256 patches, in shards of 8,192; from the local disk, and from an S3 server
on this machine. `tatok_pipe.TokenLoader` beside the loader of train_ar, and beside litData's StreamingDataset, each in
a process of its own (loader_side.py, peers/litdata_loader.py): the same tokens, shuffled, with litData as batches of 64
padded rows. litData is measured where LITDATA_PYTHON is a Python that has it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import psutil

from tatok_pipe import TokenLoader, storage
from tatok_pipe.commands.demo.server import s3_server
from tatok_pipe.records import Kind, TokenRecord
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter
from tatok_pipe.tokens.layout import DATASET_FILE
from tatok_pipe.tokens.loading.batches import Sequences
from tatok_pipe.tokens.loading.conditions import ConditionConfig
from tatok_pipe.tokens.loading.packing import pack
from tatok_pipe.tokens.loading.sequences import SequenceReader, concatenate
from tatok_pipe.tokens.loading.sources import Source
from tatok_pipe.tokens.loading.step_loader import StepLoader
from tatok_pipe.tokens.loading.training_set import read_training_set
from tatok_pipe.tokens.loading.window_stream import LoaderConfig
from tatok_pipe.tokens.loading.windows import EpochPlanner, RowGroups
from tatok_pipe.tokens.spec import FilterSpec, TokenSpec
from tests.benchmarks.measure import Results, environment, from_pairs, timed

_ROOT = Path(__file__).parents[2]
PAIRS = 3
EPOCHS = 3  # timed at once
NUM_ROWS = 65_536
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
    dtf=FilterSpec("none", "gain", 0.0, 1),
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


class Epochs:
    """Whole epochs from the middle of a run, so that what is read ahead counts as much before as after."""

    def __init__(self, url: str, config: LoaderConfig) -> None:
        dataset = read_training_set(url)
        self._steps = iter(
            StepLoader([Source(url, dataset.shards)], dataset.spec, config, condition=CONDITION, seed=0)
        )
        self._read()

    def tokens_per_s(self) -> float:
        self._read()  # what was read ahead while the other side was measured
        start = time.perf_counter()
        return sum(self._read() for _ in range(EPOCHS)) / (time.perf_counter() - start)

    def _read(self) -> int:
        num_tokens = 0
        for step in self._steps:
            num_tokens += step.num_elements
            if step.is_epoch_end:
                break
        return num_tokens

    def close(self) -> None:
        self._steps.close()


def run_side(command: list[str]) -> dict[str, float]:
    """Tokens per second and peak memory of a program that prints them."""
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def our_side(side: str, url: str) -> dict[str, float]:
    return run_side([sys.executable, "-m", "tests.benchmarks.loader_side", side, url])


def write_rows(url: str, path: Path) -> None:
    """What the peers are given: ids and positions of all rows, end to end."""
    ids, positions, lengths = [], [], []
    for batch in TokenLoader(url, num_classes=1000, epochs=1):
        is_token = batch.kinds.numpy() != Kind.PADDING
        ids.append(batch.ids.numpy()[is_token].astype(np.int32))
        positions.append(batch.positions.numpy()[is_token].astype(np.int32))
        begins = batch.boundaries.numpy()
        lengths.append(np.diff(begins)[is_token.ravel()[begins[:-1]]])
    starts = np.concatenate([[0], np.cumsum(np.concatenate(lengths))])
    np.savez(path, ids=np.concatenate(ids), positions=np.concatenate(positions), starts=starts)


def compare_token_loader(results: Results, url: str, folder: Path) -> None:
    pairs = [(our_side("packed", url), our_side("steps", url)) for _ in range(PAIRS)]
    speeds = [(ours["tokens_per_s"], other["tokens_per_s"]) for ours, other in pairs]
    name = "TokenLoader / the loader of train_ar"
    results.add(from_pairs("loader/token_loader", name, speeds, unit="tokens/s", target=1.0))
    peak = max(ours["peak_bytes"] for ours, _ in pairs) / 1e9
    results.limit("loader/process", "all memory of a process with TokenLoader", peak, 0.5, unit="GB")
    python = os.environ.get("LITDATA_PYTHON")
    if not python:
        results.note("litData: not measured; LITDATA_PYTHON=PYTHON is one with `pip install litdata`")
        return
    program = [python, str(_ROOT / "tests/benchmarks/peers/litdata_loader.py")]
    write_rows(url, folder / "rows.npz")
    written = [*program, "write", str(folder / "rows.npz"), str(folder / "litdata")]
    subprocess.run(written, check=True, capture_output=True)
    read = [*program, "read", str(folder / "litdata")]
    pairs = [(our_side("padded", url), run_side(read)) for _ in range(PAIRS)]
    speeds = [(ours["tokens_per_s"], other["tokens_per_s"]) for ours, other in pairs]
    name = "TokenLoader, padded / litData StreamingDataset"
    results.add(from_pairs("loader/litdata", name, speeds, unit="tokens/s", target=2.0))
    results.note(f"litData: {max(other['peak_bytes'] for _, other in pairs) / 1e9:.2f} GB")


def wait_for_readers() -> None:
    """What is still read ahead would be measured together with the next one."""
    while any(thread.name.startswith("token-") for thread in threading.enumerate()):
        time.sleep(0.01)


def read_window(url: str, config: LoaderConfig) -> Sequences:
    """The parts alone, in one thread: one window from Parquet to columns."""
    dataset = read_training_set(url)
    spec, shards = dataset.spec, dataset.shards
    planner = EpochPlanner(RowGroups([shards]), window_rows=config.window_sequences, seed=0)
    reader = SequenceReader(
        Source(url, shards), spec, CONDITION, held_out_share=config.held_out_share, is_held_out=False
    )
    return concatenate([reader.read(group) for group in planner.groups(planner.windows(0)[0])])


def copy_to_s3(source: Path, target: str) -> None:
    names = [DATASET_FILE, *(f"data/{path.name}" for path in sorted((source / "data").iterdir()))]

    def copy(name: str) -> None:
        storage.publish_file(source / name, storage.join(target, name), exclusive=False)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(copy, names))


def run(results: Results) -> None:
    config = LoaderConfig()
    with tempfile.TemporaryDirectory() as folder:
        url = str(Path(folder, "tokens"))
        write_dataset(url, NUM_ROWS)
        sequences = read_window(url, config)
        num_tokens = int(sequences.lengths.sum())
        before = psutil.Process().memory_info().rss
        epochs = Epochs(url, config)
        results.compare(
            "loader/columns", "token loader, local disk / one thread from Parquet to columns",
            epochs.tokens_per_s, timed(num_tokens, lambda: read_window(url, config)), unit="tokens/s", pairs=PAIRS,
        )  # fmt: skip
        more = (psutil.Process().memory_info().rss - before) / 1e9
        results.limit("loader/memory", "memory of the token loader", max(more, 0.001), 1.0, unit="GB")
        epochs.close()
        wait_for_readers()

        def pack_window() -> None:
            pack(sequences.lengths, row_tokens=config.row_tokens, random=np.random.default_rng(0))

        compare_token_loader(results, url, Path(folder))
        results.compare(
            "loader/packing", "packing a window / the loader",
            timed(num_tokens, pack_window), timed(num_tokens, lambda: read_window(url, config)), unit="tokens/s",
            pairs=PAIRS,
        )  # fmt: skip
        with s3_server(Path(folder, "server"), bucket="tatok") as server, environment(server.environment()):
            copy_to_s3(Path(url), "s3://tatok/tokens")
            local, remote = Epochs(url, config), Epochs("s3://tatok/tokens", config)
            results.compare(
                "loader/s3", "token loader, S3 server on this machine / local disk",
                remote.tokens_per_s, local.tokens_per_s, unit="tokens/s", pairs=PAIRS,
            )  # fmt: skip
            local.close()
            remote.close()
            wait_for_readers()
