"""The report as one HTML page that asks for nothing: styles, charts and pictures are inside. The same report
gives the same bytes.

Keys, URLs and messages come from other people's files, so every text goes through `html.escape`, and the page
forbids itself scripts and requests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from tatok_pipe.records import Quarantined
from tatok_pipe.report import figures
from tatok_pipe.report.document import draw_grid, render_document, render_facts, render_pane, render_tiles
from tatok_pipe.report.figure_charts import draw_charts
from tatok_pipe.report.figures import SourceSizes, count, percent
from tatok_pipe.report.gallery import Exhibit, draw_kept, to_data_uri
from tatok_pipe.report.inventory import Inventory
from tatok_pipe.report.tables import render_figures, render_quarantine, render_shards
from tatok_pipe.tokens.spec import TokenSpec


@dataclass(frozen=True)
class Report:
    """Everything that the page shows."""

    url: str  # of the dataset, without secrets
    version: str  # of the dataset, for people
    spec: TokenSpec
    description: dict[str, Any]
    inventory: Inventory
    sizes: SourceSizes
    examples: dict[str, Quarantined]  # by reason
    exhibits: dict[str, list[Exhibit]]  # by group of the gallery
    notices: list[str]  # what is missing from the report, and why


def render_page(report: Report) -> str:
    """The whole document."""
    name = report.url.rstrip("/").rpartition("/")[2] or report.url
    parts = [
        *(f'<p class="notice">{escape(notice)}</p>' for notice in report.notices),
        _render_tiles(report),
    ]
    if report.inventory.statistics.num_images:
        parts.append(_section("Distributions", f'<div class="grid">{_render_charts(report)}</div>'))
        if any(report.exhibits.values()):
            parts.append(_section("Gallery", _render_gallery(report)))
    parts += [
        _section("Quarantine", render_quarantine(report.inventory.statistics, report.examples)),
        _section("Shards", render_shards(report.inventory)),
        _section(
            "All figures", render_figures(figures.figure_lines(report.spec, report.inventory, report.sizes))
        ),
    ]
    return render_document(
        title=f"Token dataset {name}",
        head=_render_head(report, name),
        body="".join(parts),
        footer="Made by <code>python -m tatok_pipe.inspect_tokens</code>. K global tokens, M kept of N patches, "
        "V<sub>g</sub> and V<sub>p</sub> codebook sizes; entropies in nats, by the tokenizer's entropy model.",
    )


def _render_head(report: Report, name: str) -> str:
    spec = report.spec
    tokenizer = report.description.get("tokenizer", {})
    checkpoint = tokenizer.get("checkpoint") if isinstance(tokenizer, dict) else None
    facts = [
        (
            "Tokenizer",
            f"fingerprint {spec.tokenizer_fingerprint[:12]}" + (f", {checkpoint}" if checkpoint else ""),
        ),
        ("Filter (DTF)", figures.describe_filter(spec.dtf)),
        (
            "Images",
            f"{spec.image_size} × {spec.image_size} px in {spec.num_patches:,} patches of {spec.patch_size} px"
            + ("" if spec.crops_per_image == 1 else f", {spec.crops_per_image} crops of every image"),
        ),
        (
            "Tokens",
            f"K = {spec.num_globals:,} global, at most N = {spec.num_patches:,} patch tokens; "
            f"codebooks of {spec.global_vocab:,} and {spec.patch_vocab:,} codes",
        ),
    ]
    facts.append(("Version", report.version))
    if report.description.get("source"):
        facts.append(("Source", str(report.description["source"])))
    return (
        f'<p class="eyebrow">Token dataset</p><h1>{escape(name)}</h1><p class="muted">{escape(report.url)}</p>'
        f"{render_facts(facts)}"
    )


def _render_tiles(report: Report) -> str:
    statistics = report.inventory.statistics
    rate = figures.token_rate(statistics)
    shards = count(len(report.inventory.shards), "shard")
    fixed = statistics.num_globals + statistics.num_patches
    tiles = [
        (f"{statistics.num_images:,}", "", f"{report.spec.row_name}s in {shards}"),
        (
            _round(statistics.mean_tokens, 1),
            f"± {_round(statistics.std_tokens, 1)}",
            "tokens per image, mean and std",
        ),
        (
            _round(figures.factor_saved(statistics), 2),
            "×",
            f"fewer tokens than the fixed {fixed:,} per image",
        ),
        (_round(rate.bits / report.spec.image_size**2, 3), "bit/px", "of codes and kept positions, mean"),
        (
            percent(figures.dropped_share(statistics)) if statistics.num_images else "–",
            "",
            f"of {_round(statistics.mean_entropy_nats, 0)} nats per image dropped",
        ),
        (f"{statistics.num_quarantined:,}", "", "samples quarantined"),
    ]
    empty = "" if statistics.num_images else '<p class="notice">The dataset has no images yet.</p>'
    return empty + render_tiles(tiles)


def _render_charts(report: Report) -> str:
    return "".join(
        f'<figure class="card"><h3>{escape(chart.title)}</h3>{chart.svg}<figcaption>{escape(chart.caption)}'
        "</figcaption></figure>"
        for chart in draw_charts(report.spec, report.inventory.statistics, report.sizes)
    )


def _render_gallery(report: Report) -> str:
    exhibits = [exhibit for group in report.exhibits.values() for exhibit in group]
    problems = [exhibit.problem for exhibit in exhibits if exhibit.problem]
    legend = "Dropped patches are grey and dark, kept ones outlined."
    has_reconstructions = any(exhibit.reconstruction is not None for exhibit in exhibits)
    if has_reconstructions:
        legend += (
            " Reconstructions are decoded from the global and the kept patch tokens alone; PSNR is taken over the "
            "whole crop, in sRGB."
        )
    parts = [f"<p>{legend}</p>"]
    if problems:
        stand_in = "the reconstruction" if has_reconstructions else "grey"
        lost = f"{len(problems)} of {count(len(exhibits), 'original')} missing"
        notice = f"{lost}, their kept patches are shown on {stand_in}: {problems[0]}"
        parts.append(f'<p class="notice">{escape(notice)}</p>')
    for group, members in report.exhibits.items():
        if members:
            cards = "".join(_render_exhibit(exhibit, report.spec) for exhibit in members)
            title = (
                f"{group.capitalize()} images: {_range([exhibit.record.num_tokens for exhibit in members])}"
            )
            parts.append(f'<h3 class="group">{escape(title)}</h3><div class="grid gallery">{cards}</div>')
    return "".join(parts)


def _render_exhibit(exhibit: Exhibit, spec: TokenSpec) -> str:
    record = exhibit.record
    name = record.key if spec.crops_per_image == 1 else f"{record.key}, crop {record.crop}"
    kept = f"{len(record.patch_positions):,} of {spec.num_patches:,} kept"
    panes = [
        _pane("original", exhibit.original, f"Original crop of {name}", spec),
        _pane(
            kept,
            draw_kept(exhibit, spec),
            f"Kept patches of {name}: {kept}",
            spec,
            over=draw_grid(record.patch_positions, side=spec.image_size // spec.patch_size),
        ),
        _pane("reconstruction", exhibit.reconstruction, f"Reconstruction of {name}", spec),
    ]
    facts = [] if record.label is None else [spec.show_class(record.label)]
    facts += [
        count(record.num_tokens, "token"),
        f"{record.entropy_total:,.1f} nats, {record.entropy_dropped:,.1f} dropped",
    ]
    if exhibit.psnr_db is not None:
        facts.append(f"PSNR {exhibit.psnr_db:.1f} dB")
    caption = " · ".join(fact.replace(" ", "\N{NO-BREAK SPACE}") for fact in facts)
    return (
        f'<figure class="card"><div class="panes">{"".join(panes)}</div>'
        f'<figcaption><span class="name">{escape(name)}</span><br>{escape(caption)}</figcaption></figure>'
    )


def _pane(label: str, pixels: np.ndarray | None, description: str, spec: TokenSpec, *, over: str = "") -> str:
    """A picture (S, S, 3); nothing where there is none."""
    if pixels is None:
        return ""
    return render_pane(label, to_data_uri(pixels), description, image_size=spec.image_size, over=over)


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"


def _range(tokens: Sequence[int]) -> str:
    low, high = min(tokens), max(tokens)
    return count(low, "token") if low == high else f"{low:,} to {count(high, 'token')}"


def _round(value: float, digits: int) -> str:
    return "–" if math.isnan(value) else f"{value:,.{digits}f}"
