"""The generator can learn real tokens by heart: 64 images of CIFAR-10."""

from __future__ import annotations

import itertools
import math
import tarfile
from collections import Counter
from pathlib import Path

import pytest
import torch

from tatok_pipe.ar.batch import Vocabulary, to_tensors
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import GeneratorConfig, TrainingConfig
from tatok_pipe.ar.parallel import parallelize
from tatok_pipe.ar.trainer import GeneratorTrainer
from tatok_pipe.encoding.shard_tokenizer import ShardTokenizer
from tatok_pipe.tokenizer.options import PACKAGED, DTFConfig
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.loading.conditions import ConditionConfig
from tatok_pipe.tokens.loading.sources import Source
from tatok_pipe.tokens.loading.step_loader import LoaderConfig, StepLoader
from tatok_pipe.tokens.loading.training_set import read_training_set
from tatok_pipe.training.schedule import ScheduleConfig
from tests.test_shard_tokenizer import make_job

CIFAR = Path(__file__).parents[3] / "shared/data/cifar10/train-000000.tar"
NUM_IMAGES, NUM_STEPS = 64, 60


def tokenize(folder: Path) -> str:
    """The first images of a CIFAR-10 shard as a token dataset of the packaged tokenizer."""
    shard = folder / "few.tar"
    with tarfile.open(CIFAR) as source, tarfile.open(shard, "w") as target:
        keys: set[str] = set()
        for member in source:
            keys.add(member.name.split(".")[0])
            if len(keys) > NUM_IMAGES:
                break
            target.addfile(member, source.extractfile(member))
    job = make_job(PACKAGED, folder / "tokens", DTFConfig(target_tokens=96), batch_size=16)
    tokenizer = ShardTokenizer(job, device="cpu", num_threads=2)
    assert not tokenizer(str(shard)).error
    return str(folder / "tokens")


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(
    not CIFAR.exists(), reason="needs CIFAR-10 as WebDataset shards in ../shared/data/cifar10"
)
def test_it_learns_64_images_by_heart(tmp_path: Path) -> None:
    url = tokenize(tmp_path)
    dataset = read_training_set(url)
    assert dataset.num_sequences == NUM_IMAGES
    vocabulary = Vocabulary.from_spec(dataset.spec)
    config = TrainingConfig(schedule=ScheduleConfig(peak=4e-3, warmup_steps=10))
    torch.manual_seed(0)
    torch.set_num_threads(2)
    device = torch.device("cpu")
    model = Generator(GeneratorConfig(width=192, depth=2, heads=4, num_classes=10), vocabulary)
    parallel = parallelize(model, config, device=device, num_ranks=1)
    trainer = GeneratorTrainer(
        model,
        parallel.network,
        config,
        num_steps=NUM_STEPS,
        device=device,
        seed=0,
        set_sync=parallel.set_sync,
    )
    rows = -(-dataset.num_elements // 512) + 1
    loader = StepLoader(
        [Source(url, dataset.shards)], dataset.spec,
        LoaderConfig(row_tokens=512, rows_per_step=rows, rows_per_microbatch=rows),
        condition=ConditionConfig(kind="class", num_classes=10, drop_condition=0.0), seed=0,
    )  # fmt: skip
    loss = float("inf")
    for step, batch in enumerate(itertools.islice(loader, NUM_STEPS)):
        assert batch.num_sequences == NUM_IMAGES  # the whole set, every step
        tensors = [to_tensors(each, device, vocabulary=vocabulary) for each in batch.microbatches]
        loss = trainer.step(tensors, num_codes=batch.num_codes).losses.figures()["loss"]
        if step % 10 == 9:
            print(f"step {step + 1}: {loss:.4f} nats a code", flush=True)
    # Which of the images of its class it is, no generator can know before the first code that tells them apart.
    labels = Counter(record.label for record in TokenDataset(url).rows())
    least = sum(count * math.log(count) for count in labels.values()) / (dataset.num_elements - NUM_IMAGES)
    print(f"{loss:.4f} nats a code, {least:.4f} at least")
    assert least - 1e-3 < loss < 0.05  # positions included; less than the least would be a look ahead
