"""The run of pack_images: which shards are left to pack, who packs them, and what is told of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from tatok_pipe import storage
from tatok_pipe.commands.corpus_findings import Findings
from tatok_pipe.commands.pack_images.options import PackImagesConfig
from tatok_pipe.commands.pack_images.shard_packer import (
    LAYOUTS,
    NAMES_FILE,
    PACKED_FILE,
    PackJob,
    read_sources,
)
from tatok_pipe.encoding.image_input import ListPlace, class_names_of, find_image_shards, tell_output_inside
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS, EXIT_INTERRUPTED, RefusedError, UserError
from tatok_pipe.images.loose.image_list import LIST_FILE
from tatok_pipe.ray_runtime.actor_plan import prefer_many
from tatok_pipe.ray_runtime.cluster import check_ray_can_start, start_ray
from tatok_pipe.ray_runtime.shard_run import run_shards
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.progress import RunState, format_duration
from tatok_pipe.runs.progress_file import ProgressFile, was_cut_short
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.storage import ShardFile
from tatok_pipe.tokens.commit import show_source, source_differs
from tatok_pipe.tokens.format import ShardSource, token_shard_name

logger = logging.getLogger("tatok_pipe.pack_images")

_FORMAT = 1
_NUM_SHOWN = 3


@dataclass
class _Outcome:
    findings: Findings = field(default_factory=Findings)
    num_done: int = 0
    num_images: int = 0
    num_quarantined: int = 0
    bytes_out: int = 0


def run(config: PackImagesConfig, *, argv: list[str], summary: JobSummary) -> int:
    """Exit code. `argv` is what the command was given; `summary` gets the run's figures.

    Raises UserError for what it cannot be given.
    """
    storage.configure(config.storage)
    check_ray_can_start()
    if not config.input.shards:
        raise UserError("input.shards: not given; expected a URL or path")
    shards = _expand_input(config)
    class_names = class_names_of(shards[0], config.input.limits)
    output_url = config.output.url
    class_names = _begin(output_url, config.output.layout, class_names)
    todo = _plan(config, shards)
    logger.info(
        "%d image shards, %d done before, %d to do, into %s", len(shards), len(shards) - len(todo), len(todo),
        storage.redact(output_url),
    )  # fmt: skip
    job = PackJob(storage.openable_url(output_url), config.output.layout, config.input.limits, class_names)
    outcome, stop = _Outcome(), StopSignal()
    if todo or was_cut_short(output_url):
        summary.keep_progress(ProgressFile(
            output_url, entry="pack_images", every_s=config.progress.every_s, num_todo=len(todo),
            num_done_before=len(shards) - len(todo),
        ))  # fmt: skip
    if todo:
        if broken := storage.find_broken_promise(output_url):
            logger.warning("%s", broken)
        try:
            with stop:
                _pack(config, job, todo, stop, outcome, summary)
        except KeyboardInterrupt:
            stop.request()
    return _finish(config, shards, todo, stop, outcome, summary)


def _expand_input(config: PackImagesConfig) -> list[ShardFile]:
    spec, output = config.input.shards, config.output.url
    where = f"output.url={storage.redact(output)}: inside input.shards={storage.redact(spec)}"
    inside = tell_output_inside(spec, [], storage.canonical_url(output))
    refusal = f"{where}, where a later run would find its own shards; give an output.url outside"
    place = ListPlace(
        storage.join(output, LIST_FILE),
        config.input.images_per_part,
        refusal=refusal if inside else "",
        limits=config.input.limits,
        other_stores=config.input.other_stores,
    )
    shards = find_image_shards(spec, option="input.shards", place=place)
    if inside:
        raise UserError(refusal)
    return shards


def _begin(output_url: str, layout: str, class_names: Sequence[str]) -> tuple[str, ...]:
    """Write down what the output is, or make sure that it is that; the names of its classes, to which new ones are
    added at the end. Raises RefusedError."""
    url = storage.join(output_url, PACKED_FILE)

    def content(names: Sequence[str]) -> bytes:
        return json.dumps(
            {"format": _FORMAT, "layout": layout, "class_names": list(names)}, indent=1
        ).encode()

    names = tuple(class_names)
    if not storage.publish_bytes(content(names), url, exclusive=True):
        try:
            found = json.loads(storage.read_bytes(url))
            before, was = tuple(found["class_names"]), (found["format"], found["layout"])
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{storage.redact(url)}: cannot be read ({error}); give another output.url"
            ) from error
        if was != (_FORMAT, layout):
            raise RefusedError(
                f"{storage.redact(output_url)}: holds shards of format {was[0]} in layout {was[1]}, this run makes "
                f"format {_FORMAT} in layout {layout}; give another output.url"
            )
        names = (*before, *(name for name in names if name not in before))
        if names != before:
            storage.publish_bytes(content(names), url, exclusive=False)
    if names:
        text = "".join(f"{name}\n" for name in names)
        storage.publish_bytes(text.encode(), storage.join(output_url, NAMES_FILE), exclusive=False)
    return names


def _plan(config: PackImagesConfig, shards: Sequence[ShardFile]) -> list[ShardFile]:
    """The shards that are not packed yet. Raises UserError where one changed since it was."""
    output_url, suffix = config.output.url, LAYOUTS[config.output.layout]
    done = {name.removesuffix(suffix) for name in storage.list_files(output_url) if name.endswith(suffix)}
    packed = [shard for shard in shards if token_shard_name(shard.url) in done]
    sources = read_sources(output_url, [token_shard_name(shard.url) for shard in packed])
    changed = []
    for shard, source in zip(packed, sources, strict=True):
        now = ShardSource("", shard.size_bytes or 0, shard.etag)
        if source is not None and shard.size_bytes is not None and source_differs(source, now):
            changed.append(
                f"{storage.redact(shard.url)} (was {show_source(source)}, is {show_source(now)}) packed as "
                f"{token_shard_name(shard.url)}{suffix}"
            )
    if changed:
        more = f"; and {len(changed) - _NUM_SHOWN} more" if len(changed) > _NUM_SHOWN else ""
        raise UserError(
            f"{len(changed)} of {len(packed)} image shards changed since they were packed: "
            f"{'; '.join(changed[:_NUM_SHOWN])}{more}. Remove what they were packed as to have it made anew, or give "
            "another output.url"
        )
    return [shard for shard in shards if token_shard_name(shard.url) not in done]


def _pack(
    config: PackImagesConfig,
    job: PackJob,
    todo: list[ShardFile],
    stop: StopSignal,
    outcome: _Outcome,
    summary: JobSummary,
) -> None:
    start_ray()
    # Nothing of it is for a GPU.
    actors = prefer_many(replace(config.actors, gpus=config.actors.gpus or 0.0), num_shards=len(todo))

    def show(state: RunState) -> None:
        summary.show(state)
        logger.info(
            "%d/%d shards, %d images, %.1f images/s, %d quarantined, %s left",
            state.num_done, state.num_shards, state.num_images, state.images_per_s, state.num_quarantined,
            format_duration(state.left_s),
        )  # fmt: skip

    urls = [shard.url for shard in todo]
    for result in run_shards(
        urls, job, actors, config.failures, stop=stop, on_progress=show, every_s=config.progress.every_s
    ):
        errors, warnings = outcome.findings.add(result)
        for line in errors:
            logger.error("%s", line)
        for line in warnings:
            logger.warning("%s", line)
        if not result.error:
            outcome.num_done += 1
            outcome.num_images += result.num_images
            outcome.num_quarantined += result.num_quarantined
            outcome.bytes_out += result.bytes_out


def _finish(
    config: PackImagesConfig,
    shards: Sequence[ShardFile],
    todo: Sequence[ShardFile],
    stop: StopSignal,
    outcome: _Outcome,
    summary: JobSummary,
) -> int:
    failed = outcome.findings.failed
    num_done = len(shards) - len(todo) + outcome.num_done
    summary.add(
        {
            "output": storage.redact(config.output.url),
            "shards_planned": len(shards),
            "shards_done_before": len(shards) - len(todo),
            "shards_done": outcome.num_done,
            "shards_failed": len(failed),
            "images": outcome.num_images,
            "quarantined": outcome.num_quarantined,
            "bytes_out": outcome.bytes_out,
        }
    )
    for line in outcome.findings.notice_lines():
        logger.warning("%s", line)
    for line in outcome.findings.failure_lines():
        logger.error("%s", line)
    logger.info(
        "%s: %d of %d shards; %d images and %d quarantined in this run",
        storage.redact(config.output.url), num_done, len(shards), outcome.num_images, outcome.num_quarantined,
    )  # fmt: skip
    if stop.is_requested and outcome.num_done + len(failed) < len(todo):
        logger.warning("interrupted: the same command does the rest")
        return EXIT_INTERRUPTED
    return EXIT_DONE if len(failed) <= (config.failures.max_failed_shards or 0) else EXIT_FAILED_SHARDS
