"""The run of tokenize_corpus: what is left to do, who does it, and what is told of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from tatok_pipe import __version__, storage
from tatok_pipe.commands.corpus_findings import Findings
from tatok_pipe.commands.tokenize_corpus.estimate import estimate, format_plan
from tatok_pipe.commands.tokenize_corpus.options import (
    DEMO,
    DEMO_FOLDER,
    NO_NAMES,
    InputConfig,
    OnMoved,
    OnSourceChange,
    TokenizeCorpusConfig,
)
from tatok_pipe.commands.tokenize_corpus.plan import CorpusPlan, discard_committed, make_plan, remember_times
from tatok_pipe.commands.tokenize_corpus.sample import look_at_shards, measure_sample
from tatok_pipe.config.load import to_dict
from tatok_pipe.encoding.image_input import (
    ListPlace,
    are_parts,
    class_names_of,
    find_image_shards,
    read_class_names,
    tell_output_inside,
)
from tatok_pipe.encoding.shard_tokenizer import TokenizeJob, token_spec
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS, EXIT_INTERRUPTED, UserError
from tatok_pipe.images.decode import decoder_version
from tatok_pipe.images.demo import write_demo_corpus
from tatok_pipe.images.image_list import LIST_FILE
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.images.source import PARQUET_SUFFIX
from tatok_pipe.ray_runtime.actor_plan import plan_actors
from tatok_pipe.ray_runtime.cluster import check_ray_can_start, has_gpu, start_ray
from tatok_pipe.ray_runtime.shard_run import run_shards
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.progress import Every, RunState, format_duration, progress_line
from tatok_pipe.runs.shard_work import ShardResult
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.storage import ShardFile
from tatok_pipe.storage.temporary import temporary_folder
from tatok_pipe.tokenizer.checkpoint import Tokenizer, load_tokenizer
from tatok_pipe.tokenizer.dtf import Filter
from tatok_pipe.tokenizer.options import PACKAGED
from tatok_pipe.tokens import dataset
from tatok_pipe.tokens.index_keeper import keep_index_fresh
from tatok_pipe.tokens.spec import TokenSpec

logger = logging.getLogger("tatok_pipe.tokenize_corpus")

_NUM_SHOWN = 3


@dataclass
class Outcome:
    """What became of the shards of this run."""

    findings: Findings = field(default_factory=Findings)
    num_done: int = 0  # shards, those that failed not among them
    num_images: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    num_actors: int = 0
    began_s: float = 0.0  # when the first shard was begun: what actors take to start says nothing of the rest
    ended_s: float = 0.0

    @property
    def failed(self) -> dict[str, str]:
        """Error by image shard."""
        return self.findings.failed

    def add(self, result: ShardResult) -> None:
        """Take in a result, and tell what it is the first to show."""
        errors, warnings = self.findings.add(result)
        for line in errors:
            logger.error("%s", line)
        for line in warnings:
            logger.warning("%s", line)
        now = time.monotonic()
        self.began_s = min(self.began_s or now, now - result.seconds)
        self.ended_s = now
        if result.error:
            return
        self.num_done += 1
        self.num_images += result.num_images
        self.bytes_in += result.bytes_in
        self.bytes_out += result.bytes_out

    @property
    def figures(self) -> dict[str, Any]:
        """Of this run alone."""
        seconds = self.ended_s - self.began_s
        rate = self.num_images / seconds if seconds else 0.0
        return {
            "seconds": round(seconds, 1),
            "shards_done": self.num_done,
            "shards_failed": len(self.failed),
            "images": self.num_images,
            "bytes_in": self.bytes_in,
            "bytes_out": self.bytes_out,
            "actors": self.num_actors,
            "images_per_s": round(rate, 2),
            "images_per_s_per_actor": round(rate / max(1, self.num_actors), 2),
            **self.findings.figures,
        }


def run(config: TokenizeCorpusConfig, *, argv: list[str], summary: JobSummary) -> int:
    """Exit code. `argv` is what the command was given; `summary` gets the run's figures.

    Raises UserError for what it cannot be given.
    """
    storage.configure(config.storage)
    check_ray_can_start()
    tokenizer = load_tokenizer(config.tokenizer.checkpoint)
    with ExitStack() as folders:
        return _do(config, tokenizer, _expand_input(config, folders), summary)


def _do(
    config: TokenizeCorpusConfig, tokenizer: Tokenizer, shards: list[ShardFile], summary: JobSummary
) -> int:
    spec = make_spec(config, tokenizer, shards)
    if config.dry_run:
        return _show_plan(config, spec, tokenizer, shards)
    dataset.create_or_check(config.output.url, spec, _describe(config, tokenizer))
    plan = _make_plan(config, spec, shards)
    if not len(plan.index):  # nothing yet came of what an earlier run wrote there
        dataset.describe(config.output.url, spec, _describe(config, tokenizer))
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
    _settle_changes(config, plan)
    outcome = Outcome()
    stop = StopSignal()
    if plan.todo:
        if broken := storage.find_broken_promise(config.output.url):
            logger.warning("%s", broken)
        try:
            with stop:
                _tokenize(config, make_job(config, spec), plan.todo, stop, outcome)
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
        return EXIT_INTERRUPTED
    return _finish(config, spec, plan, outcome, summary)


def make_spec(
    config: TokenizeCorpusConfig, tokenizer: Tokenizer, shards: Sequence[ShardFile] = ()
) -> TokenSpec:
    """What the rows of a run over these shards will be. Raises UserError where the settings do not fit the
    checkpoint."""
    model = tokenizer.model.config
    if not model.num_globals:
        raise UserError(
            f"tokenizer.checkpoint={storage.redact(config.tokenizer.checkpoint)}: has no global tokens; "
            "token datasets hold at least one an image"
        )
    try:
        config.input.crops.check_size(model.image_size)
    except ValueError as error:
        raise UserError(f"input.crops.{error}") from None
    filter = tokenizer.filter(config.dtf)
    precision, batch_size = config.encode.precision, config.encode.batch_size
    before: TokenSpec | None = None
    if storage.exists(storage.join(config.output.url, dataset.DATASET_FILE)):
        before = dataset.TokenDataset(config.output.url).spec
    if precision == "auto" or batch_size is None:
        if before is not None:
            begun: dict[str, Any] = before.encoding
        else:
            start_ray()
            begun = (
                {"precision": "bf16", "batch_size": 128}
                if has_gpu()
                else {"precision": "fp32", "batch_size": 16}
            )
        precision = begun["precision"] if precision == "auto" else precision
        batch_size = begun["batch_size"] if batch_size is None else batch_size
    return token_spec(
        tokenizer,
        filter,
        encoding={
            "precision": precision,
            "batch_size": batch_size,
            "decoder": decoder_version(),
            "max_pixels": config.input.max_pixels,
            "max_member_bytes": config.input.limits.max_member_bytes,
            **({"ignore": sorted(config.input.limits.ignore)} if config.input.limits.ignore else {}),
            **config.input.crops.to_encoding(),
            **to_dict(config.record),
        },
        class_names=_class_names(config.input, shards, before),
    )


def _class_names(
    config: InputConfig, shards: Sequence[ShardFile], before: TokenSpec | None
) -> tuple[str, ...]:
    """What the classes are called, given what an earlier run began with. Raises UserError where a folder or
    manifest has classes that cannot be told by their names."""
    found = class_names_of(shards[0], config.limits) if shards else ()
    classes = found if are_parts(shards) and config.limits.wants("label") else ()
    if config.class_names is None:
        names = found if before is None else before.class_names
        new = [name for name in classes if name not in names]
        if new and names:  # they get the next numbers
            names = (*names, *new)
    else:
        given = config.class_names
        names = () if given == NO_NAMES else read_class_names(given, option="input.class_names")
    missing = [name for name in classes if name not in names]
    if missing:
        told = f"has {len(names)} names" if names else "classes have no names there"
        where = (
            f"input.class_names={storage.redact(config.class_names)}" if config.class_names else "output.url"
        )
        more = f" nor {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"{where}: {told}, and the classes of input.shards are told by theirs: not {missing[0]!r}{more}; give "
            "names that have them all, or input.limits.ignore=[label] for rows without labels"
        )
    return names


def make_job(config: TokenizeCorpusConfig, spec: TokenSpec) -> TokenizeJob:
    """What the actors are told."""
    checkpoint = config.tokenizer.checkpoint
    return TokenizeJob(
        checkpoint=checkpoint if checkpoint == PACKAGED else storage.openable_url(checkpoint),
        output_url=storage.openable_url(config.output.url),
        spec=spec,
        filter=Filter(**asdict(spec.dtf)),
        preprocess=PreprocessConfig(image_size=spec.image_size, max_pixels=config.input.max_pixels),
        limits=config.input.limits,
        precision=spec.encoding["precision"],
        batch_size=spec.encoding["batch_size"],
        mutual_information=config.record.mutual_information,
        patch_entropy=config.record.patch_entropy,
        crops=config.input.crops,
    )


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
        on_progress=show,
        save_index=not config.dry_run,
    )


def _show_plan(
    config: TokenizeCorpusConfig, spec: TokenSpec, tokenizer: Tokenizer, shards: list[ShardFile]
) -> int:
    """The dry run: the plan, with what it will probably take."""
    url = config.output.url
    summary = None
    if storage.exists(storage.join(url, dataset.DATASET_FILE)):
        dataset.check_spec(url, spec)
        summary = dataset.TokenDataset(url).summary
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


def _settle_changes(config: TokenizeCorpusConfig, plan: CorpusPlan) -> None:
    """Say what happens to image shards that changed since they were tokenized, and make room for their tokens; and
    what is in the way, or was moved."""
    if plan.moved:
        new, old = next(iter(plan.moved.items()))
        logger.warning(
            "%d image shards were tokenized under another path (%s as %s); %s", len(plan.moved), storage.redact(new),
            storage.redact(old), "their tokens stand for them" if config.input.on_moved == "map" else "done again",
        )  # fmt: skip
    for name, reason in plan.broken.items():
        logger.error("%s: passed over, its token shard is broken: %s", name, reason)
    if not plan.changed:
        return
    is_redone = config.input.on_source_change == "retokenize"
    logger.warning(
        "%d image shards changed since they were tokenized; their tokens are %s: %s",
        len(plan.changed), "made anew" if is_redone else "left as they are", _show_changes(plan),
    )  # fmt: skip
    if is_redone:
        discard_committed(config.output.url, [change.name for change in plan.changed])


def _show_changes(plan: CorpusPlan) -> str:
    more = f"; and {len(plan.changed) - _NUM_SHOWN} more" if len(plan.changed) > _NUM_SHOWN else ""
    return "; ".join(map(str, plan.changed[:_NUM_SHOWN])) + more


def _tokenize(
    config: TokenizeCorpusConfig, job: TokenizeJob, todo: list[ShardFile], stop: StopSignal, outcome: Outcome
) -> None:
    """Tokenize the shards; what becomes of them goes to `outcome` as it comes."""
    start_ray()

    def show(state: RunState) -> None:
        outcome.num_actors = max(outcome.num_actors, state.num_actors)
        if not state.num_images + state.num_quarantined + state.num_done:
            logger.info("%d of %d actors are ready", state.num_actors, state.num_actors_wanted)
            return
        logger.info("%s", progress_line(state, row_name=job.spec.row_name))

    urls = [shard.url for shard in todo]
    with keep_index_fresh(job.output_url, job.spec):
        for result in run_shards(
            urls, job, config.actors, config.failures, stop=stop, on_progress=show, every_s=config.progress.every_s
        ):  # fmt: skip
            outcome.add(result)


def _finish(
    config: TokenizeCorpusConfig,
    spec: TokenSpec,
    plan: CorpusPlan,
    outcome: Outcome,
    job: JobSummary,
) -> int:
    url, findings, failed = config.output.url, outcome.findings, outcome.failed
    summary = None if plan.todo or plan.changed or plan.broken else dataset.TokenDataset(url).summary
    if summary is None:
        summary = dataset.write_summary(url, planned=plan.names, failed=failed, run=outcome.figures)
        remember_times(url, spec, plan)
    figures, counts = summary["figures"], summary["statistics"]
    job.add({"dataset_images": counts["num_images"], "dataset_quarantined": counts["num_quarantined"]})
    num_missing = len(plan.todo) - outcome.num_done + len(plan.broken)
    took = f", in {format_duration(summary['run']['seconds'])}" if outcome.num_done else ""
    lines = [
        f"{storage.redact(url)}: {plan.num_planned - num_missing} of {plan.num_planned} shards, "
        f"{_show_rows(spec, counts['num_images'])}, {counts['num_quarantined']} quarantined{took}"
    ]
    if counts["num_images"]:
        job.add({"tokens_per_image": round(figures["mean_tokens"], 2)})
        name = spec.row_name
        lines.append(
            f"tokens/{name} {figures['mean_tokens']:.1f} ± {figures['std_tokens']:.1f}, entropy "
            f"{figures['mean_entropy_nats']:.1f} nats/{name}, dropped {figures['mean_entropy_dropped_nats']:.1f}"
        )
    lines += [
        f"quarantined {count}: {reason}{findings.explain(reason)}"
        for reason, count in counts["quarantine_reasons"].items()
    ]
    budget = config.failures.max_failed_shards
    is_within_budget = len(failed) <= (budget or 0)
    warnings, errors = findings.notice_lines(), findings.failure_lines()
    if failed:
        num_left = len(plan.todo) - outcome.num_done - len(failed)
        left = f", {num_left} were not begun" if num_left else ""
        tolerated = f" (failures.max_failed_shards={budget})" if budget is not None else ""
        errors.append(f"{len(failed)} shards failed{tolerated}{left}; the same command tries them again")
    if plan.broken:
        errors.append(
            f"{len(plan.broken)} token shards are broken; inspect_tokens --repair removes what the same command can "
            "make again"
        )
    is_changed = bool(plan.changed) and plan.on_source_change == "report"
    if is_changed:
        errors.append(
            f"{len(plan.changed)} image shards changed since they were tokenized, and kept their tokens: "
            f"{_show_changes(plan)}; give input.on_source_change=retokenize or ignore once"
        )
    for level, told in ((logging.INFO, lines), (logging.WARNING, warnings), (logging.ERROR, errors)):
        for line in told:
            logger.log(level, "%s", line)
    is_done = is_within_budget and not plan.broken and not is_changed
    return EXIT_DONE if is_done else EXIT_FAILED_SHARDS


def _expand_input(config: TokenizeCorpusConfig, folders: ExitStack) -> list[ShardFile]:
    """The image shards. What has to be written down of them, and is of no use later, goes into `folders`."""
    spec, output = config.input.shards, storage.canonical_url(config.output.url)
    if spec == DEMO:
        spec = str(Path(write_demo_corpus(DEMO_FOLDER).shards[0]).parent)
    saved = None
    if config.dry_run:
        saved = storage.join(folders.enter_context(temporary_folder()), LIST_FILE)
    where = f"output.url={storage.redact(config.output.url)}: inside input.shards={storage.redact(spec)}"
    advice = "give an output.url outside"
    inside = tell_output_inside(spec, [], output)
    place = ListPlace(
        storage.join(config.output.url, LIST_FILE),
        config.input.images_per_part,
        saved,
        f"{where}, {inside}; {advice}" if inside else "",
        config.input.limits,
        config.input.other_stores,
    )
    shards = find_image_shards(spec, option="input.shards", place=place)
    if told := tell_output_inside(spec, shards, output):
        if any(shard.url.endswith(PARQUET_SUFFIX) for shard in shards):
            raise UserError(f"{where}, {told}; {advice}")
        logger.warning("%s; token shards there are passed over as long as there are .tar files", where)
    return shards


def _describe(config: TokenizeCorpusConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """What a reader of the dataset wants to know of its making; not compared on resume."""
    return {
        "tatok_pipe": __version__,
        "tokenizer": {
            "checkpoint": storage.redact(config.tokenizer.checkpoint),
            "model": to_dict(tokenizer.model.config),
        },
        "source": storage.redact(config.input.shards),
    }


def _show_rows(spec: TokenSpec, num_rows: int) -> str:
    per_image = spec.crops_per_image
    return f"{num_rows} images" if per_image == 1 else f"{num_rows} crops of {num_rows // per_image} images"
