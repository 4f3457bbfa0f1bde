"""The stages of tokenize_corpus in one process, one core each unless said otherwise, beside what bounds them."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch

from tatok_pipe.ar.throughput import Ceiling
from tatok_pipe.encoding.shard_tokenizer import token_spec
from tatok_pipe.images.decode import decode_image
from tatok_pipe.images.demo import write_demo_corpus
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.dtf import keep_mask
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokenizer.trainer import to_model_input
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.format import ShardSource, ShardWriter
from tests.benchmarks.gpu.encode import count_flops
from tests.benchmarks.measure import Results, timed
from tests.benchmarks.pictures import (
    decode_with_pillow,
    decode_with_simplejpeg,
    make_pictures,
    read_images,
)
from tests.benchmarks.training import write_tokens

PAIRS = 3
BATCH = 16
_MAX_LEVELS = 2.0  # of 255 that another decoding may differ by on average


def run(results: Results) -> None:
    torch.set_num_threads(1)
    measure_decoding(results)
    with tempfile.TemporaryDirectory() as folder:
        measure_model(results, Path(folder))
        measure_writing(results, Path(folder))


def measure_decoding(results: Results) -> None:
    pictures = make_pictures()
    size = 256
    preprocess = PreprocessConfig(image_size=size)
    sides = {
        "pillow": lambda data: decode_with_pillow(data, size, draft=False),
        "pillow_draft": lambda data: decode_with_pillow(data, size, draft=True),
        "simplejpeg": lambda data: decode_with_simplejpeg(data, size),
    }
    names = {
        "pillow": "bare Pillow",
        "pillow_draft": "bare Pillow with draft",
        "simplejpeg": "simplejpeg + Pillow",
    }
    ours = [decode_image(picture, preprocess)[0].astype(float) for picture in pictures]
    for key, decode in sides.items():
        try:
            other = [decode(picture) for picture in pictures]
        except ImportError:
            results.note(f"{names[key]}: not installed")
            continue
        levels = float(np.mean([np.abs(a - b).mean() for a, b in zip(ours, other, strict=True)]))
        if levels > _MAX_LEVELS:
            raise SystemExit(f"decoding differs from {names[key]} by {levels:.2f} levels on average")
        results.compare(
            f"decode/{key}",
            f"decode 500×375 to {size} px, one core / {names[key]}",
            timed(len(pictures), lambda: [decode_image(picture, preprocess) for picture in pictures]),
            timed(len(pictures), lambda decode=decode: [decode(picture) for picture in pictures]),
            unit="images/s",
        )


def measure_model(results: Results, folder: Path) -> None:
    """The packaged tokenizer, batches of 16, one thread."""
    tokenizer = load_tokenizer()
    model, size = tokenizer.model, tokenizer.model.config.image_size
    filter = tokenizer.filter(DTFConfig())
    corpus = write_demo_corpus(folder / "corpus", num_shards=1, crops_per_source=4)
    pictures = read_images(corpus.shards)
    pictures = pictures[: len(pictures) // BATCH * BATCH]
    decoded = np.stack([decode_image(picture, PreprocessConfig(image_size=size))[0] for picture in pictures])
    batches = list(to_model_input(decoded, "cpu").split(BATCH))

    @torch.inference_mode()
    def encode() -> None:
        for batch in batches:
            model.encode(batch)

    @torch.inference_mode()
    def tokenize() -> None:
        for batch in batches:
            model.tokenize(batch, filter)

    with torch.inference_mode():
        first = model.tokenize(batches[0], filter)
        encoded = model.encode(batches[0])
        if not torch.equal(keep_mask(model.cost(filter.score, batches[0], encoded), filter), first.keep):
            raise SystemExit("tokenize and its parts disagree")
    encode()
    tokenize()
    count = len(pictures)
    results.compare(
        "model/encoder_alone", "encoder + entropy model + DTF, one core / encoder alone",
        timed(count, tokenize), timed(count, encode), unit="images/s", pairs=PAIRS,
    )  # fmt: skip
    ceiling = Ceiling(torch.device("cpu"), precision="fp32")
    flops = sum(count_flops(model.config)) / 1e9
    results.compare(
        "model/matmul", "arithmetic of the model, one core / a matrix product",
        timed(count * flops, tokenize), lambda: ceiling.flops_per_s() / 1e9, unit="GFLOP/s", pairs=PAIRS,
    )  # fmt: skip


def measure_writing(results: Results, folder: Path) -> None:
    """Rows to a finished Parquet file, one core, beside pyarrow writing the same table at once."""
    url = write_tokens(folder / "tokens-of-demo")
    dataset = TokenDataset(url)
    records = list(dataset.rows()) * 8
    tokenizer = load_tokenizer()
    spec = token_spec(tokenizer, tokenizer.filter(DTFConfig()), encoding={})
    path = folder / "rows.parquet"

    def write() -> None:
        with ShardWriter(path, spec, ShardSource("x", 0, "")) as writer:
            writer.append(records)

    write()
    table = pq.read_table(path)
    if table.num_rows != len(records):
        raise SystemExit(f"{table.num_rows} rows of {len(records)}")
    plain = folder / "plain.parquet"
    results.compare(
        "write/pyarrow", "rows with statistics to Parquet, one core / pyarrow, columns made",
        timed(len(records), write),
        timed(len(records), lambda: pq.write_table(table, plain, compression="zstd")),
        unit="rows/s",
    )  # fmt: skip
