"""Generator training on this machine's CPUs: packed rows beside padded batches, and where a step's time goes.

The sequences are the demo corpus as the packaged tokenizer makes it. Padded training is what a script would write:
batches of sequences, each as long as the longest one there is, dense causal attention, logits at every position,
padding ignored in the loss. Both sides have the same model, optimizer and sequences, take turns, and give the same
nats per image, which is checked first.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tatok_pipe.ar.batch import BatchTensors, Vocabulary, to_tensors
from tatok_pipe.ar.model import Generator, GeneratorConfig
from tatok_pipe.ar.parallel import parallelize
from tatok_pipe.ar.throughput import Ceiling
from tatok_pipe.ar.trainer import GeneratorTrainer, TrainingConfig
from tatok_pipe.images.decode import PreprocessConfig
from tatok_pipe.images.demo import write_demo_corpus
from tatok_pipe.images.shards import ShardLimits
from tatok_pipe.nn.blocks import attend
from tatok_pipe.shard_tokenizer import ShardTokenizer, TokenizeJob, token_spec
from tatok_pipe.tokenizer.checkpoint import PACKAGED, load_tokenizer
from tatok_pipe.tokenizer.dtf import DTFConfig
from tatok_pipe.tokens.conditions import ConditionConfig
from tatok_pipe.tokens.dataset import TokenDataset, create_or_check
from tatok_pipe.tokens.loader import LoaderConfig, TokenLoader
from tatok_pipe.tokens.training_set import read_training_set

REPEATS = 2
ROW_TOKENS = 1024
ROWS = 8
MODEL = GeneratorConfig(width=256, depth=4, heads=4, num_classes=20)
TRAINING = TrainingConfig(steps=1000)


def write_tokens(folder: Path) -> str:
    """The demo corpus, tokenized."""
    corpus = write_demo_corpus(folder / "corpus", num_shards=4, crops_per_source=16)
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

    rotary = model.rotary[torch.arange(length)].repeat(count, 1, 1)
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


def timed(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def main() -> int:
    rows: list[dict[str, float | str]] = []
    with tempfile.TemporaryDirectory() as folder:
        url = write_tokens(Path(folder))
        dataset = read_training_set(url)
        spec, shards = dataset.spec, dataset.shards
        vocabulary = Vocabulary.from_spec(spec)
        records = list(TokenDataset(url).rows())
        lengths = np.array([1 + record.num_tokens for record in records])
        loader = TokenLoader(
            url, spec, shards,
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
            print(f"packed rows cost {ours:.1f} nats, padded batches {theirs:.1f}", file=sys.stderr)
            return 1

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
        pairs = [(timed(padded_epoch), timed(packed_epoch)) for _ in range(REPEATS)]
        ratios = [padded_s / packed_s for padded_s, packed_s in pairs]
        ideal = float(lengths.max() / lengths.mean())
        packed_s = statistics.median(s for _, s in pairs)
        padded_s = statistics.median(s for s, _ in pairs)
        num_images = len(records)
        print(f"{num_images} images, {lengths.mean():.1f} elements on average, {lengths.max()} at most")
        print(f"{'images/s':>40} {'packed':>9} {'padded':>9} {'ratio':>7} {'max/mean':>9} {'share':>7}")
        speed_up = statistics.median(ratios)
        print(
            f"{'training, the same sequences':>40} {num_images / packed_s:9.1f} {num_images / padded_s:9.1f} "
            f"{speed_up:7.2f} {ideal:9.2f} {speed_up / ideal:7.2f}  ({min(ratios):.2f} … {max(ratios):.2f})"
        )
        rows.append({"name": "packed / padded training", "ratio": speed_up, "ideal": ideal})
        rows += step_split(trainer, packed, vocabulary, mean_length=float(lengths.mean()))
        fill = epoch.num_elements / (len(packed) * ROWS * ROW_TOKENS)
        best = lengths.sum() / (-(-lengths.sum() // ROW_TOKENS) * ROW_TOKENS)
        print(
            f"fill of rows of {ROW_TOKENS}: {_row_fill(packed):.4f}, the most that whole rows allow: {best:.4f}"
        )
        rows.append({"name": "fill", "ratio": fill, "ideal": float(best)})
    if len(sys.argv) > 1:
        Path(sys.argv[1]).write_text(json.dumps(rows, indent=1) + "\n")
    return 0


def _row_fill(batches: list) -> float:
    """Of the rows that hold anything."""
    kinds = np.concatenate([each.kinds.reshape(each.num_rows, -1) for each in batches])
    used = kinds[(kinds != 0).any(axis=1)]
    return float((used != 0).mean())


def step_split(
    trainer: GeneratorTrainer, batches: list, vocabulary: Vocabulary, *, mean_length: float
) -> Iterator[dict[str, float | str]]:
    """Where the time of a step goes, and what share of the matrix product's speed it reaches."""
    parts: dict[str, list[float]] = {name: [] for name in ("to tensors", "forward", "backward", "optimizer")}
    ceiling = Ceiling(torch.device("cpu"), precision="fp32")
    elements = 0
    for each in batches:
        holder: list[BatchTensors] = []
        parts["to tensors"].append(
            timed(
                lambda each=each, holder=holder: holder.append(to_tensors(each, "cpu", vocabulary=vocabulary))
            )
        )
        start = time.perf_counter()
        loss = trainer.model(holder[0]).total.sum() / 1000
        parts["forward"].append(time.perf_counter() - start)
        parts["backward"].append(timed(loss.backward))
        start = time.perf_counter()
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        parts["optimizer"].append(time.perf_counter() - start)
        elements += int((each.kinds != 0).sum())
    total = sum(map(sum, parts.values()))
    flops = elements * trainer.model.flops_per_token(mean_length)
    share = flops / total / ceiling.flops_per_s()
    split = ", ".join(f"{name} {100 * sum(times) / total:.1f} %" for name, times in parts.items())
    print(
        f"a step: {split}; {elements / total:,.0f} tokens/s, {100 * share:.0f} % of a matrix product's speed"
    )
    yield {"name": "utilisation", "ratio": share}
    for name, times in parts.items():
        yield {"name": f"step: {name}", "ratio": sum(times) / total}


if __name__ == "__main__":
    raise SystemExit(main())
