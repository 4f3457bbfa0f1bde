"""A token dataset filtered again by the scores that its rows hold: rows/s, with the time of all cores together.

    python -m tests.benchmarks.filtering [--rows 100000]

Synthetic rows of the packaged tokenizer, all patches kept, in token shards of 10,000; half of the patches go. The
digest printed last is of all token shards that were made: the same before and after a change that makes it faster.
"""

from __future__ import annotations

import argparse
import hashlib
import resource
import tempfile
import time
from pathlib import Path

import numpy as np

from tatok_pipe.edit_tokens import main as edit_tokens
from tatok_pipe.encoding.shard_tokenizer import token_spec
from tatok_pipe.records import TokenRecord
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.dtf import Filter
from tatok_pipe.tokens.commit import commit_shard
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter, token_shard_name
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.summary import write_summary

SHARD_ROWS = 10_000


def make_rows(first: int, count: int, spec: TokenSpec) -> list[TokenRecord]:
    random = np.random.default_rng(first)
    shape = count, spec.num_patches
    # Costs and nats of as many sizes as those of photographs.
    scores = random.gamma(0.5, 0.01, shape).astype(np.float16)
    nats = random.gamma(4, 1, shape).astype(np.float32)
    codes = random.integers(0, spec.patch_vocab, shape).astype(np.uint16)
    global_codes = random.integers(0, spec.global_vocab, (count, spec.num_globals)).astype(np.uint16)
    return [
        TokenRecord(
            key=f"image-{first + row:08d}",
            label=row % 1000,
            caption=None,
            meta=None,
            width=500,
            height=375,
            crop=0,
            global_codes=global_codes[row],
            patch_codes=codes[row],
            patch_positions=np.arange(spec.num_patches, dtype=np.uint16),
            entropy_total=float(nats[row].astype(np.float64).sum()),
            entropy_dropped=0.0,
            mutual_information=1.5,
            patch_entropy=nats[row],
            patch_score=scores[row],
        )
        for row in range(count)
    ]


def write_dataset(url: str, num_rows: int, work: Path) -> None:
    tokenizer = load_tokenizer("packaged")
    spec = token_spec(tokenizer, Filter("none", 0.0), encoding={"scores": True})
    create_or_check(url, spec, {"tokenizer": {"checkpoint": "packaged"}})
    names = []
    for first in range(0, num_rows, SHARD_ROWS):
        source = ShardSource(f"/images/{first:08d}.tar", 1000)
        with ShardWriter(work / "data.parquet", spec, source) as writer:
            writer.append(make_rows(first, min(SHARD_ROWS, num_rows - first), spec))
        names.append(token_shard_name(source.url))
        commit_shard(url, names[-1], work / "data.parquet", None, spec=spec, source=source)
    write_summary(url, planned=names, failed={})


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--rows", type=int, default=100_000)
    num_rows = parser.parse_args().rows
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(f"{folder}/tokens", num_rows, Path(folder))
        wall_s, before = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
        code = edit_tokens([f"input.url={folder}/tokens", f"output.url={folder}/filtered"])
        wall_s, after = time.monotonic() - wall_s, resource.getrusage(resource.RUSAGE_SELF)
        assert code == 0, code
        digest = hashlib.sha256()
        for path in sorted(Path(folder, "filtered/data").iterdir()):
            digest.update(path.read_bytes())
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(
        f"{num_rows:,} rows: {wall_s:.1f} s, {num_rows / wall_s:,.0f} rows/s; {cpu_s:.1f} s of CPU, "
        f"{num_rows / cpu_s:,.0f} rows a second of it; SHA-256 {digest.hexdigest()[:16]}"
    )


if __name__ == "__main__":
    main()
