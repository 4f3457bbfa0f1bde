"""The run of an evaluation: which suites, which of their parts are missing, and what is written at the end."""

from __future__ import annotations

import logging
import shlex
import time
from dataclasses import dataclass, field
from pathlib import Path

from tatok_pipe import storage
from tatok_pipe.ar.checkpoint import LoadedGenerator, load_generator
from tatok_pipe.ar.generation.conditions import check_pair, check_trained, trained_classes
from tatok_pipe.commands.evaluate.options import ALL, EvaluateConfig
from tatok_pipe.config.shared_options import DEMO, DEMO_FOLDER
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS, EXIT_INTERRUPTED, UserError
from tatok_pipe.evaluation.output import Earlier, read_earlier, write_suite
from tatok_pipe.evaluation.pictures import plan_sources
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.suites import SUITES
from tatok_pipe.evaluation.work import EvaluateJob, committed_parts, part_name, read_part
from tatok_pipe.images.demo import write_demo_corpus
from tatok_pipe.images.loose.image_list import LIST_FILE
from tatok_pipe.ray_runtime.actor_plan import prefer_many
from tatok_pipe.ray_runtime.cluster import check_ray_can_start, start_ray
from tatok_pipe.ray_runtime.shard_run import run_shards
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.progress import RunState, format_duration
from tatok_pipe.runs.progress_file import ProgressFile, was_cut_short
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.tokenizer.checkpoint import Tokenizer, load_tokenizer
from tatok_pipe.tokenizer.options import PACKAGED
from tatok_pipe.version import __version__

logger = logging.getLogger("tatok_pipe.evaluate")


@dataclass
class Outcome:
    """What became of the parts of this run."""

    failed: dict[str, str] = field(default_factory=dict)  # error by part
    num_done: int = 0
    num_images: int = 0


def run(config: EvaluateConfig, *, argv: list[str], summary: JobSummary) -> int:
    """Exit code. `argv` is what the command was given; `summary` gets the run's figures.

    Raises UserError for what it cannot be given.
    """
    started_s = time.monotonic()
    check_ray_can_start()
    url = storage.canonical_url(config.output.url)
    plan = make_plan(config)
    suites = _choose(config, plan)
    earlier = read_earlier(config.compare)
    wanted = {suite: SUITES[suite].parts(plan) for suite in suites}
    todo: list[str] = []
    for suite, parts in wanted.items():
        done = committed_parts(url, suite, plan)
        todo += [part_name(suite, part) for part in parts if part not in done]
    num_parts = sum(len(parts) for parts in wanted.values())
    logger.info(
        "%s: %d parts, %d done before; tokenizer %s, images of %s, results in %s",
        ", ".join(suites), num_parts, num_parts - len(todo), plan.tokenizer_fingerprint[:12],
        storage.redact(plan.data), storage.redact(url),
    )  # fmt: skip
    outcome, stop = Outcome(), StopSignal()
    if todo or was_cut_short(url):
        summary.keep_progress(ProgressFile(
            url, entry="evaluate", every_s=config.progress.every_s, num_todo=len(todo),
            num_done_before=num_parts - len(todo),
        ))  # fmt: skip
    if todo:
        if broken := storage.find_broken_promise(
            url
        ):  # raises where nothing can be written, before Ray starts
            logger.warning("%s", broken)
        try:
            with stop:
                _measure(config, EvaluateJob(plan, url), todo, stop, outcome, summary)
        except KeyboardInterrupt:
            stop.request()
    summary.add(
        {
            "output": storage.redact(url),
            "tokenizer": plan.tokenizer_fingerprint[:12],
            "suites": suites,
            "parts_planned": num_parts,
            "parts_done_before": num_parts - len(todo),
            "parts_done": outcome.num_done,
            "parts_failed": len(outcome.failed),
            "images": outcome.num_images,
        }
    )
    if stop.is_requested and outcome.num_done + len(outcome.failed) < len(todo):
        logger.warning(
            "interrupted: %d of %d parts are done; the same command does the rest",
            num_parts - len(todo) + outcome.num_done, num_parts,
        )  # fmt: skip
        return EXIT_INTERRUPTED
    for part, error in sorted(outcome.failed.items()):
        logger.info("failed part %s: %s", part, error)
    num_written = 0
    for suite, parts in wanted.items():
        if set(parts) <= committed_parts(url, suite, plan):
            try:
                _write(suite, parts, plan, url, argv, earlier)
            except UserError as error:  # what one suite cannot be made of is no reason to lose the others
                logger.error("failed: suite %s: %s", suite, error)
            else:
                num_written += 1
    seconds = time.monotonic() - started_s
    logger.info("%d of %d suites in %s", num_written, len(suites), format_duration(seconds))
    return EXIT_DONE if num_written == len(suites) else EXIT_FAILED_SHARDS


def make_plan(config: EvaluateConfig) -> EvaluationPlan:
    """Raises UserError where a model cannot be loaded, or an image shard is not there."""
    tokenizer = load_tokenizer(config.tokenizer, option="tokenizer")
    baseline = load_tokenizer(config.baseline, option="baseline") if config.baseline else None
    model = tokenizer.model.config
    if baseline is not None and baseline.model.config.image_size != model.image_size:
        raise UserError(
            f"baseline={storage.redact(str(config.baseline))}: for images of {baseline.model.config.image_size} px; "
            f"expected {model.image_size} px, as the tokenizer"
        )
    generator = _load_generator(config, "generator", tokenizer)
    baseline_generator = _load_generator(config, "baseline_generator", baseline)
    if baseline_generator is not None and generator is None:
        raise UserError(
            f"baseline_generator={storage.redact(str(config.baseline_generator))}: expected generator too, which it is "
            "compared with"
        )
    data = config.data
    if data == DEMO:
        data = str(Path(write_demo_corpus(DEMO_FOLDER).shards[0]).parent)
    return EvaluationPlan(
        tokenizer=_canonical(config.tokenizer) or PACKAGED,
        tokenizer_fingerprint=tokenizer.fingerprint,
        image_size=model.image_size,
        filter=tokenizer.filter(config.dtf),
        sources=tuple(
            plan_sources(
                data,
                max_images=config.max_images,
                list_url=storage.join(config.output.url, LIST_FILE),
                other_stores=config.other_stores,
            )
        )
        if data
        else (),
        data=config.data or "",
        features=config.features,
        seed=config.seed,
        confidence=config.confidence,
        baseline=_canonical(config.baseline),
        baseline_fingerprint=baseline.fingerprint if baseline else None,
        generator=_canonical(config.generator),
        generator_fingerprint=generator.fingerprint if generator else None,
        baseline_generator=_canonical(config.baseline_generator),
        baseline_generator_fingerprint=baseline_generator.fingerprint if baseline_generator else None,
        num_generated=config.generation.num_images if generator else 0,
        guidance=config.generation.guidance if generator else 1.0,
        tokens=_canonical(config.tokens),
        other_tokens=_canonical(config.other_tokens),
    )


def _load_generator(
    config: EvaluateConfig, option: str, tokenizer: Tokenizer | None
) -> LoadedGenerator | None:
    """The generator that this option names, where it can be drawn from with this tokenizer."""
    url: str | None = getattr(config, option)
    if not url:
        return None
    is_baseline = option == "baseline_generator"
    if tokenizer is None:
        raise UserError(f"{option}={storage.redact(url)}: expected baseline too, the tokenizer of its tokens")
    generator = load_generator(url, option=option)
    told, tokenizer_url = (
        ("baseline", str(config.baseline)) if is_baseline else ("tokenizer", config.tokenizer)
    )
    check_pair(generator, tokenizer, checkpoint=url, tokenizer_url=tokenizer_url, options=(option, told))
    condition, guidance = generator.model.config.condition, config.generation.guidance
    if guidance != 1 and condition != "class":
        raise UserError(
            f"generation.guidance={guidance:g}: expected 1, {option}={storage.redact(url)} is told no class "
            f"(condition {condition})"
        )
    try:
        check_trained(
            generator,
            is_guided=guidance != 1,
            has_condition=bool(trained_classes(generator)),
            target_tokens=None,
        )
    except UserError as error:
        raise UserError(f"{option}={storage.redact(url)}: {error}") from None
    return generator


def _canonical(url: str | None) -> str | None:
    return url if url is None or url == PACKAGED else storage.canonical_url(url)


def _choose(config: EvaluateConfig, plan: EvaluationPlan) -> list[str]:
    """Names of the suites to run, as they are asked for."""
    asked = [name.strip() for name in config.suite.split(",") if name.strip()]
    if asked == [ALL]:
        left_out = {name: suite.missing(plan) for name, suite in SUITES.items() if suite.missing(plan)}
        for name, missing in left_out.items():
            logger.info("suite %s is left out: give %s", name, missing)
        return [name for name in SUITES if name not in left_out]
    if not asked or (unknown := [name for name in asked if name not in SUITES]):
        told = ", ".join(unknown) if asked else "empty"
        raise UserError(f"suite={config.suite}: {told}; expected {', '.join(SUITES)}, or {ALL!r}")
    for name in asked:
        if missing := SUITES[name].missing(plan):
            raise UserError(f"suite={name}: give {missing}")
    return list(dict.fromkeys(asked))


def _measure(
    config: EvaluateConfig,
    job: EvaluateJob,
    todo: list[str],
    stop: StopSignal,
    outcome: Outcome,
    summary: JobSummary,
) -> None:
    """What becomes of the parts goes to `outcome` as it comes."""
    start_ray()
    actors = prefer_many(config.actors, num_shards=len(todo))

    def show(state: RunState) -> None:
        summary.show(state)
        logger.info(
            "%d of %d parts, %d images measured, %s left",
            state.num_done, len(todo), state.num_images, format_duration(state.left_s),
        )  # fmt: skip

    for result in run_shards(
        todo, job, actors, config.failures, stop=stop, on_progress=show, every_s=config.progress.every_s
    ):
        if result.error:
            outcome.failed[result.url] = result.error
            logger.error("failed: part %s: %s", result.url, result.error)
        else:
            outcome.num_done += 1
            outcome.num_images += result.num_images


def _write(
    suite: str, parts: list[str], plan: EvaluationPlan, url: str, argv: list[str], earlier: list[Earlier]
) -> None:
    rows = [row for part in parts for row in read_part(url, suite, part, plan)]
    if not rows:
        raise UserError(
            f"data={storage.redact(plan.data)}: none of its images can be decoded; give image shards with images"
        )
    findings = SUITES[suite].summarise(rows, plan)
    words = [storage.redact(word) for word in argv]
    report = write_suite(
        findings, plan, url, earlier,
        command=shlex.join(["python", "-m", "tatok_pipe.evaluate", *words]), version=__version__,
    )  # fmt: skip
    for verdict in findings.verdicts:
        print(f"{suite}: {verdict}", flush=True)
    print(f"{suite}: {storage.redact(report)}", flush=True)
