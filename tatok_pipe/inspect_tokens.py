"""Report on a token dataset: a table in the terminal and one HTML page with charts and pictures.

    python -m tatok_pipe.inspect_tokens [CONFIG.yaml] input.url=s3://bucket/tokens

Without arguments it inspects ./tatok_out. The page is one file that needs no network; it shows originals where the
image shards are still there, and reconstructions where the tokenizer is found.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tatok_pipe import storage
from tatok_pipe.config import load_config, run_entry
from tatok_pipe.errors import EXIT_DONE, UserError
from tatok_pipe.options import option, section
from tatok_pipe.report.figures import figure_lines
from tatok_pipe.report.gallery import make_exhibits
from tatok_pipe.report.inventory import Inventory, find_examples, take_inventory
from tatok_pipe.report.page import Report, render_page
from tatok_pipe.report.selection import Pick, pick_groups
from tatok_pipe.report.sources import Sample, read_sample
from tatok_pipe.tokenizer.checkpoint import PACKAGED, Tokenizer, load_tokenizer
from tatok_pipe.tokens.dataset import TokenDataset

logger = logging.getLogger("tatok_pipe.inspect_tokens")

NO_REPORT = "none"
REPORT_FILE = "report.html"


@dataclass(frozen=True)
class InputConfig:
    url: str = option("tatok_out", help="folder of the token dataset, on any URL")
    image_shards: int = option(
        24, help="image shards opened for originals and source sizes, at most; 0: none", unit="shards"
    )

    def __post_init__(self) -> None:
        if self.image_shards < 0:
            raise ValueError(f"image_shards={self.image_shards}: expected 0 or more")


@dataclass(frozen=True)
class CheckpointConfig:
    checkpoint: str | None = option(
        None,
        help=f"folder of the tokenizer, on any URL, or {PACKAGED!r}; null: the packaged one or the one that the "
        "dataset names, whichever made the tokens",
    )


@dataclass(frozen=True)
class OutputConfig:
    report: str | None = option(
        None,
        help=f"where the page goes, on any URL; null: <input.url>/{REPORT_FILE}; {NO_REPORT!r}: only the table",
    )


@dataclass(frozen=True)
class GalleryConfig:
    images: int = option(
        4,
        help="images shown of each group: cheapest, median and dearest; 0: no gallery",
        unit="images, per group",
    )

    def __post_init__(self) -> None:
        if self.images < 0:
            raise ValueError(f"images={self.images}: expected 0 or more")


@dataclass(frozen=True)
class InspectTokensConfig:
    input: InputConfig = section(InputConfig, help="what to report on")
    output: OutputConfig = section(OutputConfig, help="where the report goes")
    tokenizer: CheckpointConfig = section(CheckpointConfig, help="what to reconstruct images with")
    gallery: GalleryConfig = section(GalleryConfig, help="pictures in the report")


def main(argv: list[str]) -> int:
    config = load_config(
        InspectTokensConfig,
        argv,
        prog="tatok_pipe.inspect_tokens",
        description=str(__doc__).partition("\n")[0],
    )
    dataset = TokenDataset(config.input.url)
    inventory = take_inventory(dataset)
    with_page = config.output.report != NO_REPORT
    groups = pick_groups(
        [shard.kept_histogram for shard in inventory.shards],
        num_each=config.gallery.images if with_page else 0,
    )
    picks = [pick for group in groups.values() for pick in group]
    sample = read_sample(dataset, inventory, picks, max_image_shards=config.input.image_shards)
    if sample.sizes.problems:
        logger.warning(
            "%d image shards could not be read: %s", len(sample.sizes.problems), sample.sizes.problems[0]
        )
    lines = [
        ("dataset", storage.redact(config.input.url)),
        *figure_lines(dataset.spec, inventory, sample.sizes),
        *(("failed", _name_failure(url, error)) for url, error in sorted(inventory.failed.items())),
    ]
    if with_page:
        target = config.output.report or storage.join(config.input.url, REPORT_FILE)
        report = _make_report(config, dataset, inventory, groups, sample)
        _publish(render_page(report), target)
        lines.append(("report", storage.redact(target)))
    print(format_lines(lines), flush=True)
    return EXIT_DONE


def _make_report(
    config: InspectTokensConfig,
    dataset: TokenDataset,
    inventory: Inventory,
    groups: Mapping[str, Sequence[Pick]],
    sample: Sample,
) -> Report:
    tokenizer, problem = find_tokenizer(config.tokenizer.checkpoint, dataset)
    if problem:
        logger.warning("%s", problem)
    model = tokenizer.model if tokenizer else None
    return Report(
        url=storage.redact(config.input.url),
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


def find_tokenizer(checkpoint: str | None, dataset: TokenDataset) -> tuple[Tokenizer | None, str]:
    """The tokenizer that made the dataset, and where none is found a line that says so.

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


def format_lines(lines: Sequence[tuple[str, str]]) -> str:
    """Labels and values in two columns."""
    width = max(len(label) for label, _ in lines)
    return "\n".join(f"{label:<{width}}  {value}" for label, value in lines)


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


if __name__ == "__main__":
    run_entry(main)
