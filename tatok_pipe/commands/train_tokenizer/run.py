"""The run of train_tokenizer: what is known before Ray starts, then the training, then the finished tokenizer."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from tatok_pipe import storage
from tatok_pipe.commands.train_tokenizer.options import TrainTokenizerConfig
from tatok_pipe.commands.train_tokenizer.worker import TokenizerRun, TokenizerTraining
from tatok_pipe.config.load import to_dict
from tatok_pipe.encoding.image_input import ListPlace, find_image_shards
from tatok_pipe.errors import EXIT_DONE, UserError
from tatok_pipe.images.limits import IMAGES_ONLY
from tatok_pipe.ray_runtime.cluster import check_ray_can_start, has_gpu, start_ray
from tatok_pipe.ray_runtime.training import run_training
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.lease import hold_output
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.tokenizer.options import PACKAGED
from tatok_pipe.tokenizer.start import load_start
from tatok_pipe.tokenizer.training_cost import estimate_training_cost
from tatok_pipe.tokenizer.training_options import STAGES, TrainingConfig
from tatok_pipe.training.checkpoint_folder import newest_manifest
from tatok_pipe.training.settings import check_changes, flatten
from tatok_pipe.training.weights_and_biases import check_wandb

logger = logging.getLogger("tatok_pipe.train_tokenizer")

_IMAGES_PER_PART = 100  # of a folder; workers share out its parts


def run(config: TrainTokenizerConfig, *, argv: list[str], summary: JobSummary) -> int:
    """Exit code. `argv` is what the command was given; `summary` gets the run's figures.

    Raises UserError for what it cannot be given.
    """
    storage.configure(config.storage)
    check_wandb(config.logging.wandb_project)
    check_ray_can_start()
    for key, value in (
        ("input.shards", config.input.shards),
        ("validation.shards", config.validation.shards),
        ("output.url", config.output.url),
    ):
        if not value:
            raise UserError(f"{key}: not given; expected a URL or path")
    # Absolute from here on: Ray Train's workers run in a folder of their own.
    train_shards = _find(config, "input")
    held_out = _find(config, "validation")
    output_url = storage.canonical_url(config.output.url)
    if both := set(map(storage.canonical_url, train_shards)) & set(map(storage.canonical_url, held_out)):
        raise UserError(
            f"{storage.redact(min(both))}: in input.shards and in validation.shards; give it to one of them"
        )
    if config.workers.count > len(train_shards):
        raise UserError(
            f"workers.count={config.workers.count}: expected at most one worker an image shard, "
            f"input.shards={storage.redact(config.input.shards)} has {len(train_shards)}"
        )
    config = _with_start(config)
    run = TokenizerRun(
        entry="train_tokenizer",
        command=" ".join(["python -m tatok_pipe.train_tokenizer", *map(storage.redact_argument, argv)]),
        config=to_dict(config), settings=_list_settings(to_dict(config)),
        output_url=output_url, num_steps=config.training.num_steps, log_every_steps=config.logging.every_steps,
        validate_every_steps=config.validation.every_steps, save_every_steps=config.checkpoints.every_steps,
        num_checkpoints=config.checkpoints.keep, saves_async=config.checkpoints.upload == "async",
        peak_option="training.learning_rate", wandb_project=config.logging.wandb_project,
        train_shards=train_shards, held_out_shards=held_out,
    )  # fmt: skip
    _check_earlier(run)
    if config.dry_run:
        _start(config, num_shards=len(train_shards))
        return EXIT_DONE
    stop = StopSignal()
    with hold_output(output_url, stop):
        _start(config, num_shards=len(train_shards))
        summary.add({"output": storage.redact(config.output.url), "steps": run.num_steps})
        with stop:
            return run_training(
                TokenizerTraining, run, num_workers=(config.workers.count, config.workers.count),
                cpus=config.workers.cpus, stop=stop, summary=summary,
            )  # fmt: skip


def _start(config: TrainTokenizerConfig, *, num_shards: int) -> None:
    """Start Ray and say what the training will be."""
    start_ray(for_training=True)
    _show(config, num_shards=num_shards)


def _with_start(config: TrainTokenizerConfig) -> TrainTokenizerConfig:
    """`training.start_from` absolute, once it is sure that it fits."""
    url = config.training.start_from
    if url is None:
        return config
    load_start(url, config.model)
    absolute = url if url == PACKAGED else storage.canonical_url(url)
    return replace(config, training=replace(config.training, start_from=absolute))


def _tell_start(training: TrainingConfig) -> str:
    if training.start_from is not None:
        return f"from {storage.redact(training.start_from)}: "
    return f"closed form from {training.start_crops} crops, then " if training.starts_with_codes else ""


def _list_settings(config: dict[str, Any]) -> dict[str, Any]:
    """Of a TrainTokenizerConfig what makes the weights, but for the model."""
    parts = {name: config[name] for name in ("training", "input", "seed")}
    # How it is computed, where images lie, and what is behind.
    no_matter = ("training.microbatch_size", "training.compile", "training.start_crops", "input.shards")
    return flatten(parts, without=no_matter)


def _check_earlier(run: TokenizerRun) -> None:
    """Raise where the output holds another training, or one that is done with other settings. Learning rates, mixes and
    weights of losses may change on the way; what has a state may not."""
    earlier = newest_manifest(storage.join(run.output_url, "checkpoints"))
    if earlier is None:
        return
    output, before, now = storage.redact(run.output_url), earlier["extra"]["settings"], run.settings
    model = {f"model.{key}": value for key, value in earlier["extra"]["model"].items()}
    then = before | model
    later = now | {f"model.{key}": value for key, value in run.config["model"].items()}
    fixed = [
        *model,
        *(f"training.{stage}_steps" for stage in STAGES),
        "training.start",
        "training.start_from",
    ]
    changed = [key for key in fixed if then.get(key) != later.get(key)]
    switched = ("training.ema_decay", "training.loss.adversarial", "training.loss.rate")
    changed += [key for key in switched if bool(then[key]) != bool(later[key])]
    if changed:
        shown = ", ".join(f"{key}={then.get(key)} (now {later.get(key)})" for key in changed)
        raise UserError(
            f"output.url={output}: holds a training with {shown}; give another output.url, or the same settings"
        )
    num_steps_done = earlier["trainer"]["num_steps_done"]
    check_changes(before, now, num_steps_done=num_steps_done, num_steps=run.num_steps, output=output)


def _find(config: TrainTokenizerConfig, option: str) -> list[str]:
    """The image shards of "input" or "validation"; the list of loose images is kept in the output, but for a dry
    run."""
    list_url = storage.join(config.output.url, f"_{option}.parquet")
    given = getattr(config, option)
    place = ListPlace(
        list_url,
        _IMAGES_PER_PART,
        "" if config.dry_run else None,
        limits=IMAGES_ONLY,
        other_stores=given.other_stores,
    )
    return [shard.url for shard in find_image_shards(given.shards, option=f"{option}.shards", place=place)]


def _show(config: TrainTokenizerConfig, *, num_shards: int) -> None:
    training, count = config.training, config.workers.count
    device = torch.device("cuda" if has_gpu() else "cpu")
    cost = estimate_training_cost(
        config.model,
        training,
        images_per_pass=min(training.batch_size // count, training.microbatch_size or training.batch_size),
        device=device,
    )
    logger.info("model: %s", cost)
    logger.info(
        "%s%s of %d images from %d shards; %d workers on %s, %s",
        _tell_start(training),
        " + ".join(f"{getattr(training, f'{stage}_steps')} {stage}" for stage in training.stages) + " steps",
        training.batch_size, num_shards, count, device.type, training.precision_on(device),
    )  # fmt: skip
