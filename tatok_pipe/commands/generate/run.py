"""The run of generate: which shards of images are left to draw, who draws them, and what is made of all."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import numpy as np

from tatok_pipe import storage
from tatok_pipe.ar.checkpoint import load_generator
from tatok_pipe.ar.generation import layout
from tatok_pipe.ar.generation.conditions import check_pair
from tatok_pipe.ar.generation.exports import contact_sheet, write_npz
from tatok_pipe.ar.generation.job import describe
from tatok_pipe.ar.generation.layout import GeneratedImage, shard_name
from tatok_pipe.ar.generation.worker import GenerateJob
from tatok_pipe.ar.sampler import DEFAULT_SLOTS
from tatok_pipe.ar.steps import suiting_steps
from tatok_pipe.commands.generate.options import GenerateConfig
from tatok_pipe.commands.generate.plan import create_or_check, describe_sources, make_plan, read_plan, to_json
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS, EXIT_INTERRUPTED
from tatok_pipe.ray_runtime.actor_plan import prefer_many
from tatok_pipe.ray_runtime.cluster import check_ray_can_start, has_gpu, start_ray
from tatok_pipe.ray_runtime.shard_run import run_shards
from tatok_pipe.report.samples import render_samples
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.progress import RunState, format_duration, progress_line
from tatok_pipe.runs.progress_file import ProgressFile, was_cut_short
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.storage.temporary import temporary_folder
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.options import PACKAGED
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.version import __version__

logger = logging.getLogger("tatok_pipe.generate")


@dataclass
class Outcome:
    """What became of the shards of this run."""

    failed: dict[str, str] = field(default_factory=dict)  # error by shard
    num_done: int = 0
    num_images: int = 0
    began_s: float = 0.0  # when the first shard was begun: what actors take to start says nothing of the rest
    ended_s: float = 0.0


def run(config: GenerateConfig, *, argv: list[str], summary: JobSummary) -> int:
    """Exit code. `argv` is what the command was given; `summary` gets the run's figures.

    Raises UserError for what it cannot be given.
    """
    storage.configure(config.storage)
    check_ray_can_start()
    url = storage.canonical_url(config.output.url)
    generator = load_generator(config.checkpoint)
    tokenizer = load_tokenizer(config.tokenizer, option="tokenizer")
    check_pair(generator, tokenizer, checkpoint=config.checkpoint, tokenizer_url=config.tokenizer)
    plan = make_plan(config, generator)
    broken = storage.find_broken_promise(url)  # raises where nothing can be written, before Ray starts
    device = _settle_device(config, url)
    job = GenerateJob(
        generator=storage.canonical_url(config.checkpoint),
        tokenizer=config.tokenizer
        if config.tokenizer == PACKAGED
        else storage.canonical_url(config.tokenizer),
        generator_fingerprint=generator.fingerprint,
        tokenizer_fingerprint=tokenizer.fingerprint,
        output_url=url,
        plan=plan,
        layout=config.output.layout,
        image_format=config.output.image_format,
        num_slots=device.slots,
        precision=device.precision,
        steps=device.steps,
    )
    tokens, condition = generator.tokens, generator.model.config.condition
    del generator, tokenizer  # the actors have their own
    create_or_check(
        url, _describe(job), {"tatok_pipe": __version__, "checkpoint": storage.redact(config.checkpoint)}
    )
    names = [shard_name(index) for index in range(plan.num_shards)]
    todo = sorted(set(names) - layout.committed_shards(url))
    logger.info(
        "%d images in %d shards, %d done before; generator %s, condition %s, %d slots, %s",
        plan.num_images, plan.num_shards, plan.num_shards - len(todo), job.generator_fingerprint[:12], condition,
        device.slots, device.precision,
    )  # fmt: skip
    outcome, stop = Outcome(), StopSignal()
    if todo or was_cut_short(url):
        summary.keep_progress(ProgressFile(
            url, entry="generate", every_s=config.progress.every_s, num_todo=len(todo),
            num_done_before=len(names) - len(todo),
        ))  # fmt: skip
    if todo:
        if broken:
            logger.warning("%s", broken)
        try:
            with stop:
                _generate(config, job, todo, stop, outcome, summary)
        except KeyboardInterrupt:
            stop.request()
    num_missing = len(todo) - outcome.num_done
    seconds = outcome.ended_s - outcome.began_s
    summary.add(
        {
            "output": storage.redact(url),
            "generator": job.generator_fingerprint[:12],
            "shards_planned": len(names),
            "shards_done_before": len(names) - len(todo),
            "shards_done": outcome.num_done,
            "shards_failed": len(outcome.failed),
            "images": outcome.num_images,
            "images_per_s": round(outcome.num_images / seconds, 2) if seconds else 0.0,
        }
    )
    if stop.is_requested and num_missing > len(outcome.failed):
        logger.warning(
            "interrupted: %d of %d shards are done; the same command does the rest",
            len(names) - num_missing, len(names),
        )  # fmt: skip
        return EXIT_INTERRUPTED
    for shard, error in sorted(outcome.failed.items()):
        logger.info("failed shard %s: %s", shard, error)
    if num_missing:
        logger.info("%d of %d shards are missing; the same command tries them again", num_missing, len(names))
    is_tolerated = num_missing <= (config.failures.max_failed_shards or 0) and num_missing < len(names)
    if not is_tolerated:
        return EXIT_FAILED_SHARDS
    _finish(config, job, tokens, sorted(set(names) - set(outcome.failed)), outcome)
    return EXIT_DONE


@dataclass(frozen=True)
class _Device:
    """What images depend on, beside their requests, on some devices."""

    slots: int
    precision: str
    steps: str


def _settle_device(config: GenerateConfig, url: str) -> _Device:
    """As given, or as the output was begun, or what suits the machines."""
    given = config.device
    if given.slots is not None and "auto" not in (given.precision, given.steps):
        return _Device(given.slots, given.precision, given.steps)
    if storage.exists(storage.join(url, layout.PLAN_FILE)):
        begun = read_plan(url)
    else:
        start_ray()
        device = "cuda" if has_gpu() else "cpu"
        suits = "bf16" if device == "cuda" else "fp32"
        precision = suits if given.precision == "auto" else given.precision
        begun = {
            "slots": DEFAULT_SLOTS[device],
            "precision": suits,
            "steps": suiting_steps(device, precision),
        }
    return _Device(
        begun["slots"] if given.slots is None else given.slots,
        begun["precision"] if given.precision == "auto" else given.precision,
        begun["steps"] if given.steps == "auto" else given.steps,
    )


def _describe(job: GenerateJob) -> dict[str, Any]:
    """What makes the images what they are, and how they lie."""
    return {
        "generator_fingerprint": job.generator_fingerprint,
        "tokenizer_fingerprint": job.tokenizer_fingerprint,
        "plan": to_json(job.plan),
        "sources": describe_sources(job.plan),
        "layout": job.layout,
        "image_format": job.image_format,
        "slots": job.num_slots,
        "precision": job.precision,
        "steps": job.steps,
    }


def _generate(
    config: GenerateConfig,
    job: GenerateJob,
    todo: list[str],
    stop: StopSignal,
    outcome: Outcome,
    summary: JobSummary,
) -> None:
    """Make the shards; what becomes of them goes to `outcome` as it comes."""
    start_ray()
    actors = prefer_many(config.actors, num_shards=len(todo))

    def show(state: RunState) -> None:
        summary.show(state)
        if not state.num_images + state.num_done:
            logger.info("%d of %d actors are ready", state.num_actors, state.num_actors_wanted)
            return
        logger.info("%s", progress_line(state, has_quarantine=False))

    for result in run_shards(
        todo, job, actors, config.failures, stop=stop, on_progress=show, every_s=config.progress.every_s
    ):  # fmt: skip
        now = time.monotonic()
        outcome.began_s = min(outcome.began_s or now, now - result.seconds)
        outcome.ended_s = now
        if result.error:
            outcome.failed[result.url] = result.error
            logger.error("failed: shard %s: %s", result.url, result.error)
        else:
            outcome.num_done += 1
            outcome.num_images += result.num_images


def _finish(
    config: GenerateConfig, job: GenerateJob, tokens: TokenSpec, names: list[str], outcome: Outcome
) -> None:
    """Sheet, gallery, array and summary, of all images."""
    url, output = job.output_url, config.output
    lengths = np.array([row["num_tokens"] for name in names for row in layout.read_rows(url, name)])
    std_tokens = float(lengths.std()) if len(lengths) > 1 else None  # one image has no spread
    if num_shown := max(output.contact_sheet, output.gallery):
        shown = list(islice(_images(job, names), num_shown))
        if output.contact_sheet:
            some = shown[: output.contact_sheet]
            sheet = contact_sheet([image.image for image in some], [image.label for image in some])
            storage.publish_bytes(sheet, storage.join(url, layout.CONTACT_SHEET), exclusive=False)
        if output.gallery:
            page = render_samples(
                shown[: output.gallery], url=storage.redact(url), spec=tokens, image_format=job.image_format,
                num_images=len(lengths), mean_tokens=float(lengths.mean()), std_tokens=std_tokens,
                generator_fingerprint=job.generator_fingerprint, settings=describe(job.plan),
            )  # fmt: skip
            storage.publish_bytes(page.encode(), storage.join(url, layout.GALLERY), exclusive=False)
    if output.npz:
        with temporary_folder() as folder:
            path = os.path.join(folder, layout.NPZ)
            images = (image.image for image in _images(job, names))
            write_npz(path, images, num_images=len(lengths), image_size=tokens.image_size)
            storage.publish_file(path, storage.join(url, layout.NPZ), exclusive=False)
    seconds = outcome.ended_s - outcome.began_s
    summary = {
        "format": 1,
        "num_images": len(lengths),
        "mean_tokens": round(float(lengths.mean()), 3),
        "std_tokens": None if std_tokens is None else round(std_tokens, 3),
        "min_tokens": int(lengths.min()),
        "max_tokens": int(lengths.max()),
        "run": {
            "images": outcome.num_images,
            "seconds": round(seconds, 1),
            "images_per_s": round(outcome.num_images / seconds, 2) if seconds else None,
        },
    }
    text = json.dumps(summary, indent=1, sort_keys=True) + "\n"
    storage.publish_bytes(text.encode(), storage.join(url, layout.SUMMARY_FILE), exclusive=False)
    took = f", {outcome.num_images} of them in {format_duration(seconds)}" if outcome.num_images else ""
    logger.info(
        "%s: %d images%s, %.1f%s tokens an image of %d + %d",
        storage.redact(url), len(lengths), took, lengths.mean(),
        "" if std_tokens is None else f" ± {std_tokens:.1f}", tokens.num_globals, tokens.num_patches,
    )  # fmt: skip


def _images(job: GenerateJob, names: list[str]) -> Iterator[GeneratedImage]:
    for name in names:
        yield from layout.read_shard(job.output_url, name, layout=job.layout, image_format=job.image_format)
