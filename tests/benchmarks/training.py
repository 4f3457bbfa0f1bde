"""Generator training on this machine's CPUs: packed rows beside padded batches, and where a step's time goes.

The sequences are the demo corpus as the packaged tokenizer makes it. Padded training is what a script would write:
batches of sequences, each as long as the longest one there is, dense causal attention, logits at every position,
padding ignored in the loss. Both sides have the same model, optimizer and sequences, take turns, and give the same
nats per image, which is checked first.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tatok_pipe.ar.batch import Vocabulary, to_tensors
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import GeneratorConfig, TrainingConfig
from tatok_pipe.ar.parallel import parallelize
from tatok_pipe.ar.throughput import Ceiling
from tatok_pipe.ar.trainer import GeneratorTrainer
from tatok_pipe.encoding.shard_tokenizer import ShardTokenizer, TokenizeJob, token_spec
from tatok_pipe.images.demo import write_demo_corpus
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.nn.blocks import attend
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.options import PACKAGED, DTFConfig
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.loading.conditions import ConditionConfig
from tatok_pipe.tokens.loading.sources import Source
from tatok_pipe.tokens.loading.step_loader import LoaderConfig, StepLoader
from tatok_pipe.tokens.loading.training_set import read_training_set
from tests.benchmarks.measure import Results, from_pairs, timed

PAIRS = 2
ROW_TOKENS = 1024
ROWS = 8
MODEL = GeneratorConfig(width=256, depth=4, heads=4, num_classes=20)
TRAINING = TrainingConfig(steps=1000)


def write_tokens(folder: Path) -> str:
    """The demo corpus, tokenized."""
    corpus = write_demo_corpus(folder / "corpus", num_shards=4, crops_per_source=8)
    tokenizer = load_tokenizer()
    filter = tokenizer.filter(DTFConfig())
    spec = token_spec(tokenizer, filter, encoding={})
    url = str(folder / "tokens")
    create_or_check(url, spec, {})
    job = TokenizeJob(
        checkpoint=PACKAGED, output_url=url, spec=spec, filter=filter,
        preprocess=PreprocessConfig(image_size=spec.image_size), limits=ShardLimits(), precision="fp32", batch_size=16,
        mutual_information=False, patch_entropy=False,
    )  # fmt: skip
    tokenize = ShardTokenizer(job, device="cpu", num_threads=2)
    for shard in corpus.shards:
        if error := tokenize(shard).error:
            raise SystemExit(error)
    tokenize.close()
    return url


class PaddedBatch:
    """Sequences as rows of one length: (B, L) of each field, for `padded_nats`."""

    def __init__(self, records: list, vocabulary: Vocabulary, *, length: int) -> None:
        count, num_globals, num_patches = len(records), vocabulary.num_globals, vocabulary.num_patches
        self.labels = torch.tensor([record.label for record in records])
        self.codes = torch.zeros(count, length, dtype=torch.long)
        self.places = torch.full((count, length), -1)
        self.next_places = torch.full((count, length), -100)
        self.next_codes = torch.full((count, length), -100)
        for row, record in enumerate(records):
            kept = len(record.patch_codes)
            stop = 1 + num_globals + kept
            self.codes[row, 1 : 1 + num_globals] = torch.from_numpy(record.global_codes.astype(np.int64))
            self.codes[row, 1 + num_globals : stop] = torch.from_numpy(record.patch_codes.astype(np.int64))
            self.places[row, 1 + num_globals : stop] = torch.from_numpy(
                record.patch_positions.astype(np.int64)
            )
            self.next_codes[row, : stop - 1] = self.codes[row, 1:stop]
            self.next_places[row, num_globals : stop - 1] = self.places[row, 1 + num_globals : stop]
            self.next_places[row, stop - 1] = num_patches

    def __len__(self) -> int:
        return len(self.labels)


def padded_nats(model: Generator, batch: PaddedBatch) -> Tensor:
    """The sum of all nats of a padded batch, by the weights of a Generator."""
    count, length = batch.codes.shape
    num_globals, num_patches = model.vocabulary.num_globals, model.vocabulary.num_patches
    is_patch = batch.places >= 0
    patches = model.embed_patch(batch.codes, batch.places.clamp(min=0))
    x = torch.where(is_patch[..., None], patches, 0)
    x[:, 0] = model.embed_condition(
        batch.labels, torch.ones(count, dtype=torch.bool), torch.full((count,), -1)
    )
    x[:, 1 : 1 + num_globals] = model.embed_global(
        batch.codes[:, 1 : 1 + num_globals], torch.arange(num_globals).expand(count, -1)
    )

    def dense(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        heads = (each.unflatten(0, (count, length)).transpose(1, 2) for each in (query, key, value))
        return attend(*heads, causal=True).transpose(1, 2).flatten(0, 1)

    spots = torch.where(is_patch, 1 + num_globals + batch.places, torch.arange(length))
    rotary = model.rotary[spots.flatten()]
    x = x.flatten(0, 1)
    for block in model.blocks:
        x = block(x, rotary, dense)
    x = model.norm(x).unflatten(0, (count, length))
    nats = F.cross_entropy(
        model.global_logits(x[:, :num_globals]).flatten(0, 1),
        batch.next_codes[:, :num_globals].flatten(),
        reduction="sum",
    )
    tail, places = x[:, num_globals:], batch.next_places[:, num_globals:]
    nats = nats + F.cross_entropy(
        model.position_logits(tail, batch.places[:, num_globals:]).flatten(0, 1),
        places.flatten(),
        reduction="sum",
    )
    logits = model.code_logits(tail, places.clamp(min=0, max=num_patches - 1))
    return nats + F.cross_entropy(
        logits.flatten(0, 1), batch.next_codes[:, num_globals:].flatten(), reduction="sum"
    )


def make_trainer(vocabulary: Vocabulary) -> GeneratorTrainer:
    torch.manual_seed(0)
    model, device = Generator(MODEL, vocabulary), torch.device("cpu")
    parallel = parallelize(model, TRAINING, device=device, num_ranks=1)
    return GeneratorTrainer(model, parallel.network, TRAINING, num_steps=1000, device=device, seed=0)


def run(results: Results) -> None:
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory() as folder:
        url = write_tokens(Path(folder))
        dataset = read_training_set(url)
        spec, shards = dataset.spec, dataset.shards
        vocabulary = Vocabulary.from_spec(spec)
        records = list(TokenDataset(url).rows())
        lengths = np.array([1 + record.num_tokens for record in records])
        loader = StepLoader(
            [Source(url, shards)], spec,
            LoaderConfig(row_tokens=ROW_TOKENS, rows_per_step=10_000, rows_per_microbatch=ROWS),
            condition=ConditionConfig(kind="class", num_classes=20, drop_condition=0.0), seed=0,
        )  # fmt: skip
        epoch = next(iter(loader))
        packed = [each for each in epoch.microbatches if each.num_sequences]
        per_batch = max(1, ROWS * ROW_TOKENS // int(lengths.max()))
        padded = [
            PaddedBatch(records[at : at + per_batch], vocabulary, length=int(lengths.max()))
            for at in range(0, len(records), per_batch)
        ]
    trainer = make_trainer(vocabulary)
    with torch.no_grad():
        ours = sum(
            float(trainer.model(to_tensors(each, "cpu", vocabulary=vocabulary)).total.sum())
            for each in packed
        )
        theirs = sum(float(padded_nats(trainer.model, each)) for each in padded)
    if abs(ours - theirs) > 1e-4 * ours:
        raise SystemExit(f"packed rows cost {ours:.1f} nats, padded batches {theirs:.1f}")

    def packed_epoch() -> None:
        for each in packed:
            trainer.step([to_tensors(each, "cpu", vocabulary=vocabulary)], num_codes=1000)

    def padded_epoch() -> None:
        for each in padded:
            padded_nats(trainer.model, each).div(1000).backward()
            torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad(set_to_none=True)

    trainer.step([to_tensors(packed[0], "cpu", vocabulary=vocabulary)], num_codes=1000)
    ideal = float(lengths.max() / lengths.mean())
    packed_speed, padded_speed = timed(len(records), packed_epoch), timed(len(records), padded_epoch)
    pairs = [(packed_speed(), padded_speed()) for _ in range(PAIRS)]
    name = "training on packed rows / on padded batches, the same nats"
    figure = results.add(from_pairs("train/padded", name, pairs, unit="images/s"))
    results.note(f"the longest sequence is {ideal:.2f} × the mean: the most that padding can cost")
    elements = int(sum((each.kinds != 0).sum() for each in packed))
    flops = elements / len(records) * trainer.model.flops_per_token(float(lengths.mean())) / 1e9
    ceiling = Ceiling(torch.device("cpu"), precision="fp32").flops_per_s() / 1e9
    name = "arithmetic of a training step / a matrix product"
    results.add(from_pairs("train/matmul", name, [(figure.ours * flops, ceiling)], unit="GFLOP/s"))
    best = lengths.sum() / (-(-lengths.sum() // ROW_TOKENS) * ROW_TOKENS)
    fill = [(_row_fill(packed), float(best))]
    results.add(
        from_pairs("train/fill", f"fill of rows of {ROW_TOKENS} / what whole rows allow", fill, unit="share")
    )
    results.note(step_split(trainer, packed, vocabulary))


def _row_fill(batches: list) -> float:
    """Of the rows that hold anything."""
    kinds = np.concatenate([each.kinds.reshape(each.num_rows, -1) for each in batches])
    used = kinds[(kinds != 0).any(axis=1)]
    return float((used != 0).mean())


def step_split(trainer: GeneratorTrainer, batches: list, vocabulary: Vocabulary) -> str:
    """Where the time of a step goes."""
    parts: dict[str, float] = dict.fromkeys(("to tensors", "forward", "backward", "optimizer"), 0.0)

    def took(part: str, start: float) -> float:
        now = time.perf_counter()
        parts[part] += now - start
        return now

    for each in batches:
        start = time.perf_counter()
        tensors = to_tensors(each, "cpu", vocabulary=vocabulary)
        start = took("to tensors", start)
        loss = trainer.model(tensors).total.sum() / 1000
        start = took("forward", start)
        loss.backward()
        start = took("backward", start)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        took("optimizer", start)
    total = sum(parts.values())
    return "a step: " + ", ".join(f"{name} {100 * seconds / total:.1f} %" for name, seconds in parts.items())
