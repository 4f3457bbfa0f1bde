"""The run of inspect_tokens: a table and a page, or a verification and its repair."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence

from tatok_pipe import storage
from tatok_pipe.commands.inspect_tokens.export import export_quarantined
from tatok_pipe.commands.inspect_tokens.options import NO_REPORT, REPORT_FILE, InspectTokensConfig
from tatok_pipe.commands.inspect_tokens.watch import watch
from tatok_pipe.errors import EXIT_DONE, UserError
from tatok_pipe.report.figures import count, figure_lines, format_lines
from tatok_pipe.report.gallery import make_exhibits
from tatok_pipe.report.inventory import Inventory, find_examples, take_inventory
from tatok_pipe.report.page import Report, render_page
from tatok_pipe.report.selection import Pick, pick_groups
from tatok_pipe.report.sources import Sample, read_sample
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.tokenizer.checkpoint import Tokenizer, load_tokenizer
from tatok_pipe.tokenizer.options import PACKAGED
from tatok_pipe.tokens.checking.remedies import Finding, Remedy, withhold
from tatok_pipe.tokens.checking.repair import repair_dataset
from tatok_pipe.tokens.checking.verify import verify_dataset
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.joined import read_joined
from tatok_pipe.tokens.named_urls import open_named

logger = logging.getLogger("tatok_pipe.inspect_tokens")

EXIT_DAMAGED = 1
_PROGRESS_EVERY_S = 10.0


def run(config: InspectTokensConfig, *, argv: list[str], summary: JobSummary) -> int:
    """Exit code. Raises UserError for what it cannot be given."""
    storage.configure(config.storage)
    if config.watch:
        return watch(config)
    if config.verify or config.repair:
        return _verify(config)
    if config.quarantine.export is not None:
        return export_quarantined(config, config.quarantine.export)
    return _report(config)


def _report(config: InspectTokensConfig) -> int:
    dataset = TokenDataset(config.input.url, version=config.input.version)
    inventory = take_inventory(dataset)
    with_page = config.output.report != NO_REPORT
    groups = pick_groups(
        [shard.kept_histogram for shard in inventory.shards],
        num_each=config.gallery.images if with_page else 0,
    )
    picks = [pick for group in groups.values() for pick in group]
    sample = read_sample(
        dataset,
        inventory,
        picks,
        max_image_shards=config.input.image_shards,
        other_stores=config.input.other_stores,
    )
    if sample.sizes.problems:
        logger.warning(
            "%d image shards could not be read: %s", len(sample.sizes.problems), sample.sizes.problems[0]
        )
    lines = [
        ("dataset", storage.redact(config.input.url)),
        ("version", str(dataset.version)),
        *figure_lines(dataset.spec, inventory, sample.sizes),
        *_joined_lines(config.input.url),
        *(("failed", _name_failure(url, error)) for url, error in sorted(inventory.failed.items())),
    ]
    if with_page:
        target = config.output.report or storage.join(config.input.url, REPORT_FILE)
        report = _make_report(config, dataset, inventory, groups, sample)
        _publish(render_page(report), target)
        lines.append(("report", storage.redact(target)))
    print(format_lines(lines), flush=True)
    return EXIT_DONE


def _joined_lines(url: str) -> list[tuple[str, str]]:
    """The columns that came later, where some did."""
    types = read_joined(url).types
    return (
        [("joined columns", ", ".join(f"{name} ({types[name]})" for name in sorted(types)))] if types else []
    )


def _verify(config: InspectTokensConfig) -> int:
    url = config.input.url
    progress = _Progress()
    other_stores = config.input.other_stores
    findings = verify_dataset(url, on_progress=progress, other_stores=other_stores)
    for finding in findings:
        print(f"{finding.kind}: {finding.file}: {finding.message}; {finding.advice}", flush=True)
    shown = f"{storage.redact(url)}: {count(progress.num_shards, 'shard')} verified"
    print(f"{shown}, {count(len(findings), 'finding') if findings else 'nothing is wrong'}", flush=True)
    if not config.repair or not findings:
        return EXIT_DAMAGED if findings else EXIT_DONE
    outcomes = repair_dataset(url, _keep_without_tokenizer(config, findings), other_stores=other_stores)
    for outcome in outcomes:
        print(f"{outcome.finding.file}: {outcome.message}", flush=True)
    num_left = sum(outcome.is_left_damaged for outcome in outcomes)
    num_to_make = len({outcome.missing for outcome in outcomes} - {""})
    if num_to_make:
        print(
            f"{count(num_to_make, 'token shard')} to be made again: run the tokenize_corpus command that made the "
            "dataset once more",
            flush=True,
        )
    if num_left:
        print(f"{count(num_left, 'finding')} left, with damage", flush=True)
    return EXIT_DAMAGED if num_left else EXIT_DONE


def _keep_without_tokenizer(config: InspectTokensConfig, findings: Sequence[Finding]) -> Sequence[Finding]:
    """The findings; what only a tokenizer that is not there could make again is not to be removed."""
    if not any(finding.remedy == Remedy.MAKE_AGAIN for finding in findings):
        return findings
    dataset = TokenDataset(config.input.url)
    tokenizer, _ = find_tokenizer(
        config.tokenizer.checkpoint, dataset, other_stores=config.input.other_stores
    )
    if tokenizer is not None:
        return findings
    wanted = dataset.spec.tokenizer_fingerprint[:12]
    return withhold(findings, f"its tokenizer {wanted} was not found; give tokenizer.checkpoint")


class _Progress:
    """Tells how far a verification is, every ten seconds."""

    def __init__(self) -> None:
        self.num_shards = 0
        self._start = self._told = time.monotonic()

    def __call__(self, num_done: int, num_shards: int, num_findings: int) -> None:
        self.num_shards = num_shards
        now = time.monotonic()
        if now - self._told >= _PROGRESS_EVERY_S:
            self._told = now
            rate = num_done / (now - self._start)
            logger.info(
                "%d of %d shards verified, %.1f shards/s, %s",
                num_done,
                num_shards,
                rate,
                count(num_findings, "finding"),
            )


def _make_report(
    config: InspectTokensConfig,
    dataset: TokenDataset,
    inventory: Inventory,
    groups: Mapping[str, Sequence[Pick]],
    sample: Sample,
) -> Report:
    tokenizer, problem = find_tokenizer(
        config.tokenizer.checkpoint, dataset, other_stores=config.input.other_stores
    )
    if problem:
        logger.warning("%s", problem)
    model = tokenizer.model if tokenizer else None
    return Report(
        url=storage.redact(config.input.url),
        version=str(dataset.version),
        spec=dataset.spec,
        description=dataset.description,
        inventory=inventory,
        sizes=sample.sizes,
        examples=find_examples(dataset, inventory),
        exhibits={
            group: make_exhibits(dataset, [sample.shown[pick] for pick in picks], model)
            for group, picks in groups.items()
        },
        notices=[problem] if problem else [],
    )


def find_tokenizer(
    checkpoint: str | None, dataset: TokenDataset, *, other_stores: bool = False
) -> tuple[Tokenizer | None, str]:
    """The tokenizer that made the dataset, and where none is found a line that says so. One that the dataset names in
    another store than its own is looked for only with `other_stores`.

    Raises UserError where the `checkpoint` asked for is not the one, or cannot be loaded.
    """
    wanted = dataset.spec.tokenizer_fingerprint
    if checkpoint is not None:
        tokenizer = load_tokenizer(checkpoint)
        if tokenizer.fingerprint != wanted:
            raise UserError(
                f"{storage.redact(dataset.url)}: tokens were made by tokenizer {wanted[:12]}, "
                f"tokenizer.checkpoint={storage.redact(checkpoint)} is {tokenizer.fingerprint[:12]}; give the one that "
                "made them, or leave it out"
            )
        return tokenizer, ""
    made_by = dataset.description.get("tokenizer")
    named = made_by.get("checkpoint") if isinstance(made_by, dict) else None
    tried = []
    for candidate in dict.fromkeys([PACKAGED, named or PACKAGED]):
        try:
            if candidate != PACKAGED:
                candidate = open_named(candidate, dataset.url, other_stores=other_stores)
            tokenizer = load_tokenizer(candidate)
        except UserError as error:
            tried.append(" ".join(str(error).split()))
            continue
        if tokenizer.fingerprint == wanted:
            return tokenizer, ""
        tried.append(f"{storage.redact(candidate)} is {tokenizer.fingerprint[:12]}")
    return None, (
        f"No reconstructions: the tokens were made by tokenizer {wanted[:12]}, which was not found "
        f"({'; '.join(tried)}); give tokenizer.checkpoint"
    )


def _name_failure(url: str, error: str) -> str:
    return storage.redact(error if error.startswith(url) else f"{url}: {error}")


def _publish(page: str, url: str) -> None:
    try:
        storage.publish_bytes(page.encode("utf-8"), url, exclusive=False)
    except OSError as error:
        raise UserError(
            f"output.report={storage.redact(url)}: cannot be written ({error}); give another URL, "
            f"or {NO_REPORT!r} for the table alone"
        ) from error
