"""Parts that look at generators: how long a step takes, what is drawn, and nats of test images.

Letters: M images.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tatok_pipe import storage
from tatok_pipe.ar.batch import BatchTensors, to_tensors
from tatok_pipe.ar.checkpoint import LoadedGenerator, load_generator
from tatok_pipe.ar.generation.conditions import trained_classes
from tatok_pipe.ar.generation.job import GenerationPlan, Requests
from tatok_pipe.ar.options import DrawConfig, SamplingConfig, TrainingConfig
from tatok_pipe.ar.ragged_tokens import RaggedTokens
from tatok_pipe.ar.requests import ImageRequest, ImageTokens, Place
from tatok_pipe.ar.sampler import Sampler
from tatok_pipe.ar.trainer import GeneratorTrainer, LossGraph
from tatok_pipe.commands.study.results import Result, interval_figures
from tatok_pipe.commands.study.training_rows import row_options, training_words
from tatok_pipe.commands.study.workshop import Workshop
from tatok_pipe.commands.train_ar.options import TrainArConfig
from tatok_pipe.commands.train_ar.worker import GeneratorRun, GeneratorTraining
from tatok_pipe.config.load import load_config, to_dict
from tatok_pipe.evaluation.statistics import bootstrap_ratio
from tatok_pipe.ray_runtime.training_task import Driver, Worker
from tatok_pipe.tokens.loading.conditions import ConditionConfig
from tatok_pipe.tokens.loading.sources import join_sets
from tatok_pipe.tokens.loading.step_loader import StepLoader
from tatok_pipe.tokens.loading.training_set import TrainingSet, read_training_set
from tatok_pipe.tokens.loading.window_stream import LoaderConfig

DRAWN = "drawn.npz"  # RaggedTokens, in order of their numbers
_STEPS_BEFORE = 2  # the first ones, which take longer
_NATS_BATCH_IMAGES = 32
_PARTS = ("global", "position", "patch")  # of the sums of nats in LossParts, which has sequences at place 6


def time_steps(workshop: Workshop) -> Result:
    """The median of some steps of a training of this arm."""
    training = _begin_training(workshop)
    times = []
    for _ in range(_STEPS_BEFORE + workshop.settings["timed_steps"]):
        start = time.perf_counter()
        training.step()
        if workshop.device.type == "cuda":
            torch.cuda.synchronize(workshop.device)
        times.append(time.perf_counter() - start)
        workshop.touch(0)
    return Result({}, {"step": statistics.median(times[_STEPS_BEFORE:])})


def _begin_training(workshop: Workshop) -> GeneratorTraining:
    tokens_url, settings = workshop.input("tokens"), workshop.settings
    dataset = read_training_set(tokens_url)
    words = training_words(
        workshop.part.words,
        tokens_url=tokens_url,
        dataset=dataset,
        images_per_step=settings["images_per_step"],
    )
    data = join_sets([dataset])
    run = GeneratorRun(
        entry="study", command="", config=to_dict(load_config(TrainArConfig, words, prog="", description="")),
        settings={}, output_url="", num_steps=_STEPS_BEFORE + settings["timed_steps"], log_every_steps=1,
        validate_every_steps=None, save_every_steps=1, num_checkpoints=1, saves_async=False, peak_option="",
        wandb_project=None,
        tokens=dataset.spec.to_json(), dataset=data.to_json(), sources=data.sources(), mixing=data.mixing,
        unigram_nats=dataset.unigram_nats, elements_per_sequence=dataset.num_elements / dataset.num_sequences,
        untrained_classes=[], codewords=None,
    )  # fmt: skip
    training = GeneratorTraining(run, Worker(0, 1, workshop.device, Driver(board=None)))
    training.begin(None)
    return training


def draw(workshop: Workshop) -> Result:
    """Images by number, each a function of the seed and its number: the same noise for every generator."""
    settings = workshop.settings
    generator = load_generator(workshop.input("generator"), device=workshop.device)
    plan = _plan_drawing(generator, settings)
    requests = list(_requests(workshop, plan))
    sampler = Sampler(generator.model, plan.sampling, num_slots=settings["slots"])
    drawn: list[ImageTokens] = []
    start = time.perf_counter()
    for image in sampler.sample(requests):
        drawn.append(image)
        workshop.touch(1)
    sampling_s = time.perf_counter() - start
    drawn.sort(key=lambda image: image.number)
    start = time.perf_counter()
    num_decoded = sum(len(images) for images in workshop.decode(drawn))
    decoding_s = time.perf_counter() - start
    spec = generator.tokens
    tokens = RaggedTokens.from_images(
        drawn, num_globals=spec.num_globals, fingerprint=spec.tokenizer_fingerprint
    )
    tokens.save(storage.join(workshop.folder, DRAWN))
    figures = {"num_images": num_decoded, "classes": list(plan.classes)}
    return Result(figures, {"sampling": sampling_s, "decoding": decoding_s})


def _plan_drawing(generator: LoadedGenerator, settings: dict[str, Any]) -> GenerationPlan:
    num_images = settings["num_images"]
    return GenerationPlan(
        num_images=num_images, images_per_shard=num_images, seed=settings["seed"], classes=trained_classes(generator),
        sampling=SamplingConfig(codes=DrawConfig(guidance=settings["guidance"])), num_patches=None,
        embeddings_url=None, start=None,
    )  # fmt: skip


def _requests(workshop: Workshop, plan: GenerationPlan) -> Iterator[ImageRequest]:
    """With all places given, where the arm keeps all of them: a generator of a grid has none to choose."""
    model = workshop.tokenizer.model.config
    everywhere = np.full(model.num_patches, Place.DRAWN) if workshop.settings["gives_places"] else None
    for request in Requests(plan, grid_side=model.grid_side, embedding_dim=0).shard(0):
        yield replace(request, patches=everywhere)


def score(workshop: Workshop) -> Result:
    """Nats of the test images' tokens, their places and ends included, told their classes: means over images."""
    generator = load_generator(workshop.input("generator"), device=workshop.device)
    dataset, model = read_training_set(workshop.input("tokens")), generator.model
    trainer = GeneratorTrainer(
        model, LossGraph(model, z_loss=0.0), TrainingConfig(), num_steps=1, device=workshop.device, seed=0
    )
    batches = _one_epoch(workshop, generator, dataset)
    sums = np.array([trainer.validate(iter([batch])).sums.cpu().numpy() for batch in batches])
    nats, images = sums[:, :3].sum(1), sums[:, 6]
    found = bootstrap_ratio(nats, images, confidence=workshop.settings["confidence"])
    by_part = {
        f"{name}_nats": float(sums[:, place].sum() / images.sum()) for place, name in enumerate(_PARTS)
    }
    return Result({"nats": interval_figures(found), "num_images": int(images.sum())} | by_part)


def _one_epoch(
    workshop: Workshop, generator: LoadedGenerator, dataset: TrainingSet
) -> Iterator[Sequence[BatchTensors]]:
    """Batches of all images, once."""
    rows = row_options(dataset, images_per_step=_NATS_BATCH_IMAGES)
    config, model = load_config(TrainArConfig, rows, prog="", description=""), generator.model
    loader = StepLoader(
        join_sets([dataset]).sources(), dataset.spec,
        LoaderConfig(
            row_tokens=config.packing.row_tokens, rows_per_step=config.rows_per_step,
            rows_per_microbatch=config.rows_per_step,
        ),
        condition=ConditionConfig(
            kind=model.config.condition, num_classes=model.config.num_classes, drop_condition=0.0
        ),
        seed=0,
    )  # fmt: skip
    for step in loader:
        yield [to_tensors(each, workshop.device, vocabulary=model.vocabulary) for each in step.microbatches]
        workshop.touch(step.num_sequences)
        if step.is_epoch_end:
            return
