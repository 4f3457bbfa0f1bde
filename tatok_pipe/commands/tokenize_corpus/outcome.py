"""What became of the shards of a run of tokenize_corpus, and how it is told."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from typing import Any

from tatok_pipe import storage
from tatok_pipe.commands.corpus_findings import Findings
from tatok_pipe.commands.tokenize_corpus.options import TokenizeCorpusConfig
from tatok_pipe.commands.tokenize_corpus.plan import CorpusPlan, remember_times
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.progress import format_duration
from tatok_pipe.runs.shard_work import ShardResult
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.spec import TokenSpec
from tatok_pipe.tokens.summary import write_summary
from tatok_pipe.tokens.versions import record_version

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


def finish(
    config: TokenizeCorpusConfig,
    spec: TokenSpec,
    plan: CorpusPlan,
    outcome: Outcome,
    job: JobSummary,
) -> int:
    """Write the summary of the dataset and record its version, tell what became of everything; exit code."""
    url, findings, failed = config.output.url, outcome.findings, outcome.failed
    summary = None if plan.todo or plan.changed or plan.broken else TokenDataset(url).summary
    if summary is None:
        summary = write_summary(url, planned=plan.names, failed=failed, run=outcome.figures)
        remember_times(url, spec, plan)
    version = record_version(
        url, refresh_index(url, spec, save=False, with_broken=True), by="tokenize_corpus"
    )
    figures, counts = summary["figures"], summary["statistics"]
    job.add(
        {
            "dataset_images": counts["num_images"],
            "dataset_quarantined": counts["num_quarantined"],
            "dataset_version": version.number,
        }
    )
    num_missing = len(plan.todo) - outcome.num_done + len(plan.broken) + plan.num_left
    took = f", in {format_duration(summary['run']['seconds'])}" if outcome.num_done else ""
    lines = [
        f"{storage.redact(url)}: {plan.num_planned - num_missing} of {plan.num_planned} shards, "
        f"{_show_rows(spec, counts['num_images'])}, {counts['num_quarantined']} quarantined{took}; {version}"
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
            f"{show_changes(plan)}; give input.on_source_change=retokenize or ignore once"
        )
    for level, told in ((logging.INFO, lines), (logging.WARNING, warnings), (logging.ERROR, errors)):
        for line in told:
            logger.log(level, "%s", line)
    is_done = is_within_budget and not plan.broken and not is_changed
    return EXIT_DONE if is_done else EXIT_FAILED_SHARDS


def show_changes(plan: CorpusPlan) -> str:
    """The first of the image shards that changed."""
    more = f"; and {len(plan.changed) - _NUM_SHOWN} more" if len(plan.changed) > _NUM_SHOWN else ""
    return "; ".join(map(str, plan.changed[:_NUM_SHOWN])) + more


def _show_rows(spec: TokenSpec, num_rows: int) -> str:
    per_image = spec.crops_per_image
    return f"{num_rows} images" if per_image == 1 else f"{num_rows} crops of {num_rows // per_image} images"
