"""Token datasets without images: rows that somebody made up, committed as a run would."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tatok_pipe.records import TokenRecord
from tatok_pipe.tokens.commit import commit_shard
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter, token_shard_name
from tatok_pipe.tokens.spec import FilterSpec, TokenSpec

TINY = TokenSpec(
    num_globals=2,
    num_patches=16,
    global_vocab=8,
    patch_vocab=12,
    image_size=32,
    patch_size=8,
    tokenizer_fingerprint="12" * 32,
    dtf=FilterSpec("threshold", "entropy", 0.25, 1),
)


def make_rows(
    count: int, *, spec: TokenSpec = TINY, num_classes: int = 4, seed: int = 0, first: int = 0
) -> list[TokenRecord]:
    """Rows with something to learn: a class prefers some codes, and neighbouring places have neighbouring codes."""
    random = np.random.default_rng((seed, first))
    rows = []
    for number in range(first, first + count):
        label = int(random.integers(num_classes))
        kept = np.flatnonzero(random.random(spec.num_patches) < random.uniform(0.2, 0.9)).astype(np.uint16)
        walk = np.cumsum(random.integers(0, 2, len(kept))) + 3 * label
        rows.append(
            TokenRecord(
                key=f"image-{number:06d}",
                label=label,
                caption=None,
                meta=None,
                width=64,
                height=48,
                crop=0,
                global_codes=((label + random.integers(0, 2, spec.num_globals)) % spec.global_vocab).astype(
                    np.uint16
                ),
                patch_codes=(walk % spec.patch_vocab).astype(np.uint16),
                patch_positions=kept,
                entropy_total=float(spec.num_patches),
                entropy_dropped=float(spec.num_patches - len(kept)),
            )
        )
    return rows


def write_token_dataset(url: str, shards: Sequence[Sequence[TokenRecord]], *, spec: TokenSpec = TINY) -> None:
    """Begin a dataset at `url`, or go on with the one there, and commit a token shard for each list of rows."""
    create_or_check(url, spec, {})
    with tempfile.TemporaryDirectory() as folder:
        for number, rows in enumerate(shards):
            source = ShardSource(f"/images/{number:06d}.tar", 1000 + number)
            path = Path(folder, f"{number}.parquet")
            with ShardWriter(path, spec, source) as writer:
                writer.append(rows)
            commit_shard(url, token_shard_name(source.url), path, None, spec=spec, source=source)
