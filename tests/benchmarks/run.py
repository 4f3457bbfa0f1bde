"""`make bench`: how fast the stages of tokenize_corpus are on this machine's CPUs, each beside what bounds it.

Every comparison runs both sides in turn in this process, several times; medians and the spread are printed. Speed is
reported after equal results were checked.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from tatok_pipe import storage
from tatok_pipe.images.decode import PreprocessConfig, decode_image
from tatok_pipe.images.demo import write_demo_corpus
from tatok_pipe.images.shards import ShardLimits, read_samples
from tatok_pipe.records import ImageSample
from tatok_pipe.shard_tokenizer import ShardTokenizer, TokenizeJob, token_spec
from tatok_pipe.tokenizer.checkpoint import PACKAGED, load_tokenizer
from tatok_pipe.tokenizer.dtf import DTFConfig, keep_mask
from tatok_pipe.tokenizer.prior import entropy_nats
from tatok_pipe.tokenizer.trainer import to_model_input
from tatok_pipe.tokens.dataset import TokenDataset, create_or_check
from tatok_pipe.tokens.format import ShardSource, ShardWriter

REPEATS = 5
BATCH = 16


@dataclass(frozen=True)
class Row:
    """One comparison: images per second of ours and of the other side, and their ratio, pair by pair."""

    name: str
    ours: float
    other: float
    ratio: float
    ratio_min: float
    ratio_max: float


def compare(name: str, num_images: int, ours: Callable[[], object], other: Callable[[], object]) -> Row:
    ours()  # caches, allocators, lazy imports
    other()
    speeds = []
    for _ in range(REPEATS):
        pair = []
        for function in (ours, other):
            start = time.perf_counter()
            function()
            pair.append(num_images / (time.perf_counter() - start))
        speeds.append(pair)
    ratios = [a / b for a, b in speeds]
    return Row(
        name,
        ours=statistics.median(a for a, _ in speeds),
        other=statistics.median(b for _, b in speeds),
        ratio=statistics.median(ratios),
        ratio_min=min(ratios),
        ratio_max=max(ratios),
    )


def bare_pillow(data: bytes, size: int) -> np.ndarray:
    """What a script would write: decode all, centre crop, resize."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side))
    return np.asarray(image.resize((size, size), Image.Resampling.BICUBIC))


def main() -> int:
    torch.set_num_threads(1)
    threads = os.cpu_count() or 1
    tokenizer = load_tokenizer()
    model, config = tokenizer.model, tokenizer.model.config
    filter = tokenizer.filter(DTFConfig())
    preprocess = PreprocessConfig(image_size=config.image_size)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = write_demo_corpus(Path(folder, "corpus"), num_shards=1, crops_per_source=6)
        samples: list[ImageSample] = []
        for shard in corpus.shards:
            with storage.open_stream(shard) as stream:
                samples += [s for s in read_samples(stream, shard=shard) if isinstance(s, ImageSample)]
        decoded = [decode_image(s.image, preprocess)[0] for s in samples]
        error = np.mean([np.abs(bare_pillow(s.image, config.image_size).astype(float) - d).mean()
                         for s, d in zip(samples, decoded, strict=True)])  # fmt: skip
        if error > 2:
            print(f"decode differs from Pillow by {error:.2f} levels on average", file=sys.stderr)
            return 1
        rows.append(
            compare(
                "decode, one core: ours / bare Pillow",
                len(samples),
                lambda: [decode_image(s.image, preprocess) for s in samples],
                lambda: [bare_pillow(s.image, config.image_size) for s in samples],
            )
        )

        # As the job does it: every batch full, the last one padded.
        padded = np.zeros((-(-len(decoded) // BATCH) * BATCH, *decoded[0].shape), np.uint8)
        padded[: len(decoded)] = decoded
        batches = list(to_model_input(padded, "cpu").split(BATCH))

        def encode_only() -> None:
            with torch.inference_mode():
                for batch in batches:
                    model.encode(batch)

        def tokenize_all() -> None:
            with torch.inference_mode():
                for batch in batches:
                    model.tokenize(batch, filter)

        rows.append(
            compare(
                "one core: encoder + entropy model + DTF / encoder alone",
                len(samples),
                tokenize_all,
                encode_only,
            )
        )
        with torch.inference_mode():
            first = model.tokenize(batches[0], filter)
            logits = model.predict(first.global_codes, first.patch_codes).patch_logits
            if not torch.equal(keep_mask(entropy_nats(logits), filter), first.keep):
                print("tokenize and its parts disagree", file=sys.stderr)
                return 1

        spec = token_spec(tokenizer, filter, encoding={})
        output = Path(folder, "out")
        job = TokenizeJob(
            checkpoint=PACKAGED, output_url=str(output), spec=spec, filter=filter, preprocess=preprocess,
            limits=ShardLimits(), precision="fp32", batch_size=BATCH,
            mutual_information=False, patch_entropy=False,
        )  # fmt: skip
        tokenize = ShardTokenizer(job, device="cpu", num_threads=threads)

        def whole_job() -> None:
            shutil.rmtree(output, ignore_errors=True)
            create_or_check(str(output), spec, {})
            for shard in corpus.shards:
                tokenize(shard)

        lanes = ThreadPoolExecutor(threads)

        def bare_model() -> None:
            def one(batch: torch.Tensor) -> None:
                with torch.inference_mode():
                    model.tokenize(batch, filter)

            list(lanes.map(one, batches))

        whole_job()
        records = list(TokenDataset(str(output)).rows())
        if len(records) != len(samples):
            print(f"{len(records)} rows of {len(samples)} images", file=sys.stderr)
            return 1
        rows.append(
            compare(
                f"{threads} threads: shard to committed Parquet / bare model on decoded tensors",
                len(samples), whole_job, bare_model,
            )
        )  # fmt: skip

        def write() -> None:
            with ShardWriter(Path(folder, "x.parquet"), spec, ShardSource("x", 0, "")) as writer:
                writer.append(records)

        rows.append(compare("one core: Parquet writing / whole job", len(records), write, whole_job))
        lanes.shutdown()
    print(f"{'images/s':>70} {'ours':>9} {'other':>9} {'ratio':>7}  (min … max of {REPEATS})")
    for row in rows:
        spread = f"({row.ratio_min:.2f} … {row.ratio_max:.2f})"
        print(f"{row.name:>70} {row.ours:9.1f} {row.other:9.1f} {row.ratio:7.2f}  {spread}")
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
