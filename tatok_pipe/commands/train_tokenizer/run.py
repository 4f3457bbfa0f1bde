"""The run of train_tokenizer: what is known before Ray starts, then the training, then the finished tokenizer."""

from __future__ import annotations

import logging
import time

import torch

from tatok_pipe import storage
from tatok_pipe.commands.train_tokenizer.options import TrainTokenizerConfig
from tatok_pipe.commands.train_tokenizer.worker import TokenizerRun, train_tokenizer
from tatok_pipe.config.load import to_dict
from tatok_pipe.encoding.image_input import ListPlace, find_image_shards
from tatok_pipe.errors import EXIT_DONE, EXIT_INTERRUPTED, UserError
from tatok_pipe.images.limits import IMAGES_ONLY
from tatok_pipe.ray_runtime.cluster import check_ray_can_start, has_gpu, start_ray
from tatok_pipe.ray_runtime.training import run_training
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.lease import hold_output
from tatok_pipe.runs.progress import format_duration
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.training_cost import estimate_training_cost

logger = logging.getLogger("tatok_pipe.train_tokenizer")

_IMAGES_PER_PART = 100  # of a folder; workers share out its parts


def run(config: TrainTokenizerConfig, *, argv: list[str], summary: JobSummary) -> int:
    """Exit code. `argv` is what the command was given; `summary` gets the run's figures.

    Raises UserError for what it cannot be given.
    """
    storage.configure(config.storage)
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
    command = " ".join(["python -m tatok_pipe.train_tokenizer", *map(storage.redact_argument, argv)])
    run = TokenizerRun(to_dict(config), train_shards, held_out, output_url, command)
    if config.dry_run:
        _start(config, num_shards=len(train_shards))
        return EXIT_DONE
    stop = StopSignal()
    with hold_output(output_url, stop):
        _start(config, num_shards=len(train_shards))
        return _train(config, run, stop, summary)


def _start(config: TrainTokenizerConfig, *, num_shards: int) -> None:
    """Start Ray and say what the training will be."""
    start_ray(for_training=True)
    _show(config, num_shards=num_shards)


def _train(config: TrainTokenizerConfig, run: TokenizerRun, stop: StopSignal, summary: JobSummary) -> int:
    output_url = run.output_url
    summary.add({"output": storage.redact(config.output.url), "steps": config.training.num_steps})
    start = time.monotonic()
    with stop:
        told = run_training(
            train_tokenizer,
            {"run": run},
            num_workers=config.workers.count,
            cpus=config.workers.cpus,
            output_url=output_url,
            stop=stop,
        )
    summary.add({"step": told.get("step", 0)})
    if not told.get("is_done"):
        logger.warning(
            "interrupted at step %d of %d; the same command goes on",
            told.get("step", 0), config.training.num_steps,
        )  # fmt: skip
        return EXIT_INTERRUPTED
    tokenizer = load_tokenizer(storage.join(output_url, "tokenizer"))
    psnr = tokenizer.training["held_out"]["psnr_none"]
    summary.add({"tokenizer": tokenizer.fingerprint[:12], "held_out_psnr_db": round(psnr, 3)})
    logger.info(
        "done in %s: %s, fingerprint %s, held-out PSNR %.2f dB with all patches",
        format_duration(time.monotonic() - start),
        storage.redact(storage.join(output_url, "tokenizer")),
        tokenizer.fingerprint[:12],
        psnr,
    )
    return EXIT_DONE


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
        f"closed form from {training.start_crops} crops, then " if training.start == "closed_form" else "",
        " + ".join(f"{getattr(training, f'{stage}_steps')} {stage}" for stage in training.stages) + " steps",
        training.batch_size, num_shards, count, device.type, training.precision_on(device),
    )  # fmt: skip
