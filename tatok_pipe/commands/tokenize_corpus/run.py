"""The run of tokenize_corpus: what is left to do, who does it, and what is told of it."""

from __future__ import annotations

import logging
from contextlib import ExitStack, nullcontext
from typing import cast

from tatok_pipe import storage
from tatok_pipe.commands.tokenize_corpus.estimate import estimate, format_plan
from tatok_pipe.commands.tokenize_corpus.options import (
    Only,
    OnMoved,
    OnSourceChange,
    TokenizeCorpusConfig,
)
from tatok_pipe.commands.tokenize_corpus.outcome import Outcome, finish, show_changes
from tatok_pipe.commands.tokenize_corpus.plan import CorpusPlan, discard_committed, make_plan, remember_times
from tatok_pipe.commands.tokenize_corpus.sample import look_at_shards, measure_sample
from tatok_pipe.commands.tokenize_corpus.setup import describe, expand_input, make_job, make_spec
from tatok_pipe.encoding.shard_tokenizer import TokenizeJob
from tatok_pipe.errors import EXIT_DONE, EXIT_INTERRUPTED
from tatok_pipe.ray_runtime.actor_plan import plan_actors
from tatok_pipe.ray_runtime.cluster import check_ray_can_start, start_ray
from tatok_pipe.ray_runtime.shard_run import run_shards
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.progress import Every, RunState, progress_line
from tatok_pipe.runs.progress_file import ProgressFile, was_cut_short
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.storage import ShardFile
from tatok_pipe.tokenizer.checkpoint import Tokenizer, load_tokenizer
from tatok_pipe.tokens import dataset_file
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import check_spec, create_or_check
from tatok_pipe.tokens.index import forget_shards
from tatok_pipe.tokens.index_keeper import keep_index_fresh
from tatok_pipe.tokens.layout import DATASET_FILE
from tatok_pipe.tokens.removed import read_removed
from tatok_pipe.tokens.spec import TokenSpec

logger = logging.getLogger("tatok_pipe.tokenize_corpus")

COMMAND = "tokenize_corpus"


def run(config: TokenizeCorpusConfig, *, argv: list[str], summary: JobSummary) -> int:
    """Exit code. `argv` is what the command was given; `summary` gets the run's figures.

    Raises UserError for what it cannot be given.
    """
    storage.configure(config.storage)
    check_ray_can_start()
    tokenizer = load_tokenizer(config.tokenizer.checkpoint)
    with ExitStack() as folders:
        return _do(config, tokenizer, expand_input(config, folders), summary)


def _do(
    config: TokenizeCorpusConfig, tokenizer: Tokenizer, shards: list[ShardFile], summary: JobSummary
) -> int:
    spec = make_spec(config, tokenizer, shards)
    if config.dry_run:
        return _show_plan(config, spec, tokenizer, shards)
    create_or_check(config.output.url, spec, describe(config, tokenizer))
    read_removed(config.output.url)  # where it cannot be read, rows would come back
    plan = _make_plan(config, spec, shards)
    if not len(plan.index):  # nothing yet came of what an earlier run wrote there
        dataset_file.describe(config.output.url, spec, describe(config, tokenizer))
    logger.info(
        "%d image shards, %d done before, %d to do; %s, fingerprint %s; %s",
        plan.num_planned, plan.num_done, len(plan.todo), storage.redact(config.tokenizer.checkpoint),
        tokenizer.fingerprint[:12], f"dtf {spec.dtf.rule} on {spec.dtf.score}, value {spec.dtf.value:.4g}",
    )  # fmt: skip
    summary.add(
        {
            "output": storage.redact(config.output.url),
            "tokenizer": tokenizer.fingerprint[:12],
            "shards_planned": plan.num_planned,
            "shards_done_before": plan.num_done,
        }
    )
    _settle_changes(config, spec, plan)
    outcome = Outcome()
    stop = StopSignal()
    if plan.todo or was_cut_short(config.output.url):
        summary.keep_progress(ProgressFile(
            config.output.url, entry=COMMAND, every_s=config.progress.every_s, num_todo=len(plan.todo),
            num_done_before=plan.num_done, row_name=spec.row_name,
        ))  # fmt: skip
    if plan.todo:
        if broken := storage.find_broken_promise(config.output.url):
            logger.warning("%s", broken)
        try:
            with stop:
                _tokenize(config, make_job(config, spec), plan.todo, stop, outcome, summary)
        except KeyboardInterrupt:
            stop.request()
        finally:
            summary.add(outcome.figures)
    else:
        summary.add(outcome.figures)
    if stop.is_requested and outcome.num_done + len(outcome.failed) < len(plan.todo):
        logger.warning(
            "interrupted: %d of %d shards are done; the same command does the rest",
            plan.num_done + outcome.num_done, plan.num_planned,
        )  # fmt: skip
        remember_times(config.output.url, spec, plan)
        return EXIT_INTERRUPTED
    return finish(config, spec, plan, outcome, summary)


def _make_plan(config: TokenizeCorpusConfig, spec: TokenSpec, shards: list[ShardFile]) -> CorpusPlan:
    due = Every(config.progress.every_s)

    def show(num_read: int, num_all: int) -> None:
        if due():
            logger.info(
                "reading footers of token shards that are not in the index: %d of %d", num_read, num_all
            )

    return make_plan(
        config.output.url,
        spec,
        shards,
        on_source_change=cast(OnSourceChange, config.input.on_source_change),
        on_moved=cast(OnMoved, config.input.on_moved),
        only=cast(Only, config.input.only),
        on_progress=show,
        save_index=not config.dry_run,
    )


def _show_plan(
    config: TokenizeCorpusConfig, spec: TokenSpec, tokenizer: Tokenizer, shards: list[ShardFile]
) -> int:
    """The dry run: the plan, with what it will probably take."""
    url = config.output.url
    summary = None
    if storage.exists(storage.join(url, DATASET_FILE)):
        check_spec(url, spec)
        summary = TokenDataset(url).summary
    plan = _make_plan(config, spec, shards)
    sample, num_actors, look = None, None, None
    if plan.todo:
        job = make_job(config, spec)
        look = look_at_shards(job, plan.todo)
        start_ray()
        actors = plan_actors(config.actors, num_shards=len(plan.todo))
        num_actors = actors.max
        if look.good and (not plan.index.total("num_rows") or summary is None):
            sample = measure_sample(
                job,
                look.good[0],
                device=actors.device,
                num_threads=max(1, int(actors.cpus)),
            )
    expected = estimate(
        plan,
        num_actors=num_actors,
        run=summary["run"] if summary else None,
        sample=sample,
        row_name=spec.row_name,
    )
    for line in [*format_plan(plan, expected, row_name=spec.row_name), *(look.lines if look else [])]:
        print(line)
    return EXIT_DONE


def _settle_changes(config: TokenizeCorpusConfig, spec: TokenSpec, plan: CorpusPlan) -> None:
    """Say what happens to image shards that changed since they were tokenized, and make room for their tokens; and
    what is in the way, was moved, or is tried again."""
    if plan.moved:
        new, old = next(iter(plan.moved.items()))
        logger.warning(
            "%d image shards were tokenized under another path (%s as %s); %s", len(plan.moved), storage.redact(new),
            storage.redact(old), "their tokens stand for them" if config.input.on_moved == "map" else "done again",
        )  # fmt: skip
    for name, reason in plan.broken.items():
        logger.error("%s: passed over, its token shard is broken: %s", name, reason)
    if plan.redone:
        logger.info("%d token shards are made anew, since samples of them were quarantined", len(plan.redone))
        forget_shards(config.output.url, spec, plan.redone)
    if not plan.changed:
        return
    is_redone = config.input.on_source_change == "retokenize"
    logger.warning(
        "%d image shards changed since they were tokenized; their tokens are %s: %s",
        len(plan.changed), "made anew" if is_redone else "left as they are", show_changes(plan),
    )  # fmt: skip
    if is_redone:
        discard_committed(config.output.url, [change.name for change in plan.changed])


def _tokenize(
    config: TokenizeCorpusConfig,
    job: TokenizeJob,
    todo: list[ShardFile],
    stop: StopSignal,
    outcome: Outcome,
    summary: JobSummary,
) -> None:
    """Tokenize the shards; what becomes of them goes to `outcome` as it comes."""
    start_ray()

    def show(state: RunState) -> None:
        outcome.num_actors = max(outcome.num_actors, state.num_actors)
        summary.show(state)
        if not state.num_images + state.num_quarantined + state.num_done:
            logger.info("%d of %d actors are ready", state.num_actors, state.num_actors_wanted)
            return
        logger.info("%s", progress_line(state, row_name=job.spec.row_name))

    urls = [shard.url for shard in todo]
    # What it counted and is replaced by other rows of the same image shard would be missed.
    fresh = nullcontext() if job.replaces else keep_index_fresh(job.output_url, job.spec)
    with fresh:
        for result in run_shards(
            urls, job, config.actors, config.failures, stop=stop, on_progress=show, every_s=config.progress.every_s
        ):  # fmt: skip
            outcome.add(result)
