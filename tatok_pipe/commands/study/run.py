"""The run of a study: which of its parts are missing, one after the other, and the page after every generator."""

from __future__ import annotations

import logging
import shlex

from tatok_pipe import storage
from tatok_pipe.commands.study.declaration import Declaration, declare
from tatok_pipe.commands.study.design import Design, design_study
from tatok_pipe.commands.study.estimate import show_estimate
from tatok_pipe.commands.study.making import make_batch, next_batch
from tatok_pipe.commands.study.options import StudyConfig
from tatok_pipe.commands.study.page import PAGE, write_page
from tatok_pipe.commands.study.results import read_result
from tatok_pipe.errors import EXIT_DONE, EXIT_INTERRUPTED
from tatok_pipe.ray_runtime.cluster import check_ray_can_start, start_ray
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.lease import hold_output
from tatok_pipe.runs.stop_signal import StopSignal

logger = logging.getLogger("tatok_pipe.study")


def run(config: StudyConfig, *, argv: list[str], summary: JobSummary) -> int:
    """Exit code. `argv` is what the command was given; `summary` gets the run's figures.

    Raises UserError for what it cannot be given.
    """
    storage.configure(config.storage)
    check_ray_can_start()
    url = storage.canonical_url(config.output.url)
    declaration = declare(config)
    design = design_study(declaration)
    done = {part_id for part_id in design.parts if read_result(url, part_id) is not None}
    if config.dry_run:
        show_estimate(declaration, design, done, url)
        return EXIT_DONE
    logger.info(
        "%d generators of %d arms in %d parts, %d of them done before; results in %s",
        len(design.cells), len(declaration.arms), len(design.parts), len(done), storage.redact(url),
    )  # fmt: skip
    summary.add(
        {"output": storage.redact(url), "parts_planned": len(design.parts), "parts_done_before": len(done)}
    )
    command = shlex.join(["python", "-m", "tatok_pipe.study", *map(storage.redact_argument, argv)])
    stop = StopSignal()
    with stop, hold_output(url, stop):
        write_page(declaration, design, url, command=command)
        code = _make_missing(declaration, design, url, done, stop, command)
    summary.add({"parts_done": len(done), "page": storage.redact(storage.join(url, PAGE))})
    return code


def _make_missing(
    declaration: Declaration, design: Design, url: str, done: set[str], stop: StopSignal, command: str
) -> int:
    """Exit code. Parts that are made go into `done`."""
    todo = [part for part in design.parts.values() if part.id not in done]
    if todo:
        start_ray(for_training=True)
    while todo:
        if stop.is_requested:
            return EXIT_INTERRUPTED
        batch = next_batch(todo, done)
        logger.info(
            "part %d of %d: %s", len(done) + 1, len(design.parts),
            ", ".join(f"{part.kind} of {part.label}" for part in batch),
        )  # fmt: skip
        code = make_batch(batch, declaration, url, stop)
        if code != EXIT_DONE:
            return code
        made = {part.id for part in batch}
        done |= made
        todo = [part for part in todo if part.id not in made]
        if any(made & set(cell.parts.values()) and set(cell.parts.values()) <= done for cell in design.cells):
            write_page(declaration, design, url, command=command)
    return EXIT_DONE
