"""Small trainings on small token datasets, in this process or in several."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from tatok_pipe.ar import training_state
from tatok_pipe.ar.batch import BatchTensors, Vocabulary, to_tensors
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import GeneratorConfig, OptimizerConfig, TrainingConfig
from tatok_pipe.ar.parallel import parallelize
from tatok_pipe.ar.trainer import GeneratorTrainer
from tatok_pipe.tokens.loading.conditions import ConditionConfig
from tatok_pipe.tokens.loading.sources import Source
from tatok_pipe.tokens.loading.step_loader import LoaderConfig, StepBatch, StepLoader
from tatok_pipe.tokens.loading.training_set import read_training_set
from tatok_pipe.training.checkpoint_folder import read_manifests, write_manifest
from tatok_pipe.training.schedule import ScheduleConfig
from tests.token_datasets import TINY

MODEL = GeneratorConfig(width=32, depth=2, heads=2, condition="class", num_classes=4)
VOCABULARY = Vocabulary.from_spec(TINY)
TRAINING = TrainingConfig(
    steps=12,
    batch_tokens=256,
    microbatch_rows=2,
    schedule=ScheduleConfig(peak=3e-3, warmup_steps=2),
    optimizer=OptimizerConfig(ema_decay=0.9),
)


def make_trainer(
    training: TrainingConfig = TRAINING,
    *,
    model: GeneratorConfig = MODEL,
    num_steps: int = 12,
    rank: int = 0,
    num_ranks: int = 1,
    seed: int = 0,
) -> GeneratorTrainer:
    torch.manual_seed(seed)
    generator = Generator(model, VOCABULARY)
    device = torch.device("cpu")
    parallel = parallelize(generator, training, device=device, num_ranks=num_ranks)
    return GeneratorTrainer(
        generator, parallel.network, training, num_steps=num_steps, device=device, seed=seed, rank=rank,
        num_ranks=num_ranks, set_sync=parallel.set_sync,
    )  # fmt: skip


def make_loader(
    url: str,
    *,
    rows_per_step: int = 4,
    rows_per_microbatch: int = 2,
    row_tokens: int = 64,
    rank: int = 0,
    num_ranks: int = 1,
    held_out_share: float = 0.0,
    split: str = "train",
) -> StepLoader:
    dataset = read_training_set(url)
    spec, shards = dataset.spec, dataset.shards
    config = LoaderConfig(
        row_tokens=row_tokens, rows_per_step=rows_per_step, rows_per_microbatch=rows_per_microbatch,
        held_out_share=held_out_share,
    )  # fmt: skip
    condition = ConditionConfig(kind="class", num_classes=4)
    return StepLoader(
        [Source(url, shards)],
        spec,
        config,
        condition=condition,
        rank=rank,
        num_ranks=num_ranks,
        seed=0,
        split=split,
    )


def tensors(batch: StepBatch) -> list[BatchTensors]:
    return [to_tensors(each, "cpu", vocabulary=VOCABULARY) for each in batch.microbatches]


def train(trainer: GeneratorTrainer, batches: Iterator[StepBatch], num_steps: int) -> list[float]:
    """The losses of so many steps."""
    losses = []
    for _ in range(num_steps):
        batch = next(batches)
        result = trainer.step(tensors(batch), num_codes=batch.num_codes)
        losses.append(result.losses.figures()["loss"])
    return losses


def save_part(
    folder: Path, trainer: GeneratorTrainer, extra: dict[str, Any], *, rank: int = 0, num_ranks: int = 1
) -> None:
    """This process's part of a checkpoint."""
    write_manifest(folder, training_state.save(folder, trainer), extra, rank=rank, num_ranks=num_ranks)


def load(folder: Path, trainer: GeneratorTrainer) -> dict[str, Any]:
    """Go on from a checkpoint; its extra."""
    manifest = read_manifests(folder)[0]
    training_state.load(folder, trainer, manifest["trainer"])
    return manifest["extra"]


def run_processes(num_ranks: int, **options: object) -> list[dict[str, object]]:
    """`tests.ar.worker` in so many processes that exchange gradients; what each of them found."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        shared = {"num_ranks": num_ranks, "port": port, "found": folder} | options
        command = [sys.executable, "-m", "tests.ar.worker"]
        processes = [
            subprocess.Popen(
                [*command, json.dumps(shared | {"rank": rank})],
                stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
            )
            for rank in range(num_ranks)
        ]  # fmt: skip
        try:
            for process in processes:
                _, err = process.communicate(timeout=120)
                assert process.returncode == 0, err[-3000:]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        return [json.loads(Path(folder, f"{rank}.json").read_text()) for rank in range(num_ranks)]
