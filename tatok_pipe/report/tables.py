"""The tables of the report's page: quarantine, shards, figures. Every cell is escaped."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

from tatok_pipe import storage
from tatok_pipe.records import Quarantined
from tatok_pipe.report import figures
from tatok_pipe.report.figures import percent
from tatok_pipe.report.inventory import Inventory
from tatok_pipe.tokens.statistics import ShardStatistics

MAX_SHARDS_LISTED = 50


def render_quarantine(statistics: ShardStatistics, examples: Mapping[str, Quarantined]) -> str:
    """Samples by reason, with one example of each."""
    if not statistics.num_quarantined:
        return "<p>No sample was quarantined: every source sample has its rows.</p>"
    rows = []
    for error, number in figures.by_frequency(statistics.quarantine_reasons):
        example = examples.get(error)
        first = (example.stage, example.key, example.message) if example else ("", "", "")
        rows.append((error, f"{number:,}", percent(number / statistics.num_quarantined), *first))
    return render_table(
        ("Reason", "Samples", "Share", "Stage", "First sample", "Its message"),
        rows,
        numeric=(1, 2),
        wide=(4, 5),
    )


def render_shards(inventory: Inventory) -> str:
    """Every shard, or of many the spread; and each that is not there, with the reason."""
    parts = [f"<p>{escape(figures.describe_shards(inventory))}.</p>"]
    lost = [(url, error) for url, error in sorted(inventory.failed.items())]
    failed_names = set(inventory.failed_names)
    lost += [
        (name, "missing: no run has committed it") for name in inventory.missing if name not in failed_names
    ]
    if lost:
        rows = [(storage.redact(name), storage.redact(reason)) for name, reason in lost[:MAX_SHARDS_LISTED]]
        parts.append(render_table(("Not there", "Why"), rows, wide=(0, 1)))
        if len(lost) > len(rows):
            parts.append(f"<p>And {len(lost) - len(rows):,} more.</p>")
    if 0 < len(inventory.shards) <= MAX_SHARDS_LISTED:
        rows = [
            (
                shard.name,
                f"{shard.num_images:,}",
                f"{shard.num_quarantined:,}",
                f"{shard.num_tokens / shard.num_images:.1f}" if shard.num_images else "–",
                figures.format_bytes(shard.size_bytes),
                figures.format_bytes(shard.source.size_bytes),
            )
            for shard in inventory.shards
        ]
        head = ("Shard", "Images", "Quarantined", "Tokens/image", "Tokens on disk", "Image shard")
        parts.append(render_table(head, rows, numeric=(1, 2, 3, 4, 5)))
    elif inventory.shards:
        parts.append(
            render_table(("Of a shard", "Least", "Median", "Most"), _summarize(inventory), numeric=(1, 2, 3))
        )
    return "".join(parts)


def _summarize(inventory: Inventory) -> list[tuple[str, ...]]:
    shards = inventory.shards
    return [
        (
            label,
            *(show(value) for value in (min(values), sorted(values)[(len(values) - 1) // 2], max(values))),
        )
        for label, values, show in (
            ("Images", [shard.num_images for shard in shards], "{:,}".format),
            ("Quarantined", [shard.num_quarantined for shard in shards], "{:,}".format),
            (
                "Tokens/image",
                [shard.num_tokens / shard.num_images for shard in shards if shard.num_images] or [math.nan],
                "{:.1f}".format,
            ),
            ("Tokens on disk", [shard.size_bytes for shard in shards], figures.format_bytes),
            ("Image shard", [shard.source.size_bytes for shard in shards], figures.format_bytes),
        )
    ]


def render_figures(lines: Iterable[tuple[str, str]]) -> str:
    """Labels and values."""
    body = "".join(
        f'<tr><th scope="row">{escape(label)}</th><td>{escape(value)}</td></tr>' for label, value in lines
    )
    return f'<div class="card scroll"><table class="wrapping"><tbody>{body}</tbody></table></div>'


def render_table(
    head: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    numeric: Sequence[int] = (),
    wide: Sequence[int] = (),
) -> str:
    """A table that scrolls inside its own box where it is too wide."""

    def style(column: int) -> str:
        return f' class="{"number" if column in numeric else "text" if column in wide else "short"}"'

    titles = "".join(
        f'<th scope="col"{style(place)}>{escape(title)}</th>' for place, title in enumerate(head)
    )
    body = "".join(
        "<tr>" + "".join(f"<td{style(place)}>{escape(cell)}</td>" for place, cell in enumerate(row)) + "</tr>"
        for row in rows
    )
    return (
        f'<div class="card scroll" tabindex="0" role="region" aria-label="{escape(head[0])}: table"><table><thead>'
        f"<tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )
