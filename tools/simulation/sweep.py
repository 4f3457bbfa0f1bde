"""Many simulations: numbers of workers by seeds, and the table of what they say."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from tools.simulation.costs import make_bill
from tools.simulation.ledger import Part
from tools.simulation.options import SimulateCorpusConfig
from tools.simulation.run import Outcome, simulate


@dataclass(frozen=True)
class Spread:
    """A figure over seeds. The median is one of them: of an even number the lower of the two in the middle."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median_low(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """What all seeds say of one number of workers. Shares are of paid time; `parts` are those of the simulation with
    the median goodput, so that they add up to 1."""

    num_workers: int
    wall_h: Spread
    images_per_s: Spread
    node_hours: Spread
    goodput: Spread
    parts: dict[Part, float]
    tail_s: Spread
    tail_idle_share: Spread
    num_preemptions: Spread
    num_failed: Spread
    read_gb_per_s: float  # from the object store while all of them work, 10^9 bytes
    usd: dict[str, Spread]  # by what it is paid for, and in "total"


def sweep(config: SimulateCorpusConfig) -> Iterator[Row]:
    """A row for each of `config.num_workers`, as they are done."""
    for num_workers in config.num_workers:
        seeds = range(config.seed, config.seed + config.num_seeds)
        yield make_row(config, [simulate(config, num_workers=num_workers, seed=seed) for seed in seeds])


def make_row(config: SimulateCorpusConfig, outcomes: Sequence[Outcome]) -> Row:
    """The spread over outcomes of one number of workers."""

    def spread(figure: Callable[[Outcome], float]) -> Spread:
        return Spread.of([figure(outcome) for outcome in outcomes])

    typical = sorted(outcomes, key=lambda outcome: outcome.goodput)[(len(outcomes) - 1) // 2]
    bills = [make_bill(outcome, config) for outcome in outcomes]
    names = [*asdict(bills[0]), "total"]
    num_workers = outcomes[0].num_workers
    bytes_per_s = num_workers * config.actor.images_per_s * config.corpus.input_bytes_per_image
    return Row(
        num_workers=num_workers,
        wall_h=spread(lambda outcome: outcome.wall_s / 3600),
        images_per_s=spread(lambda outcome: outcome.images_per_s),
        node_hours=spread(lambda outcome: outcome.node_s / 3600),
        goodput=spread(lambda outcome: outcome.goodput),
        parts={part: typical.share(part) for part in Part},
        tail_s=spread(lambda outcome: outcome.tail_s),
        tail_idle_share=spread(lambda outcome: outcome.tail_idle_share),
        num_preemptions=spread(lambda outcome: outcome.num_preemptions),
        num_failed=spread(lambda outcome: outcome.num_failed),
        read_gb_per_s=bytes_per_s / 1e9,
        usd={name: Spread.of([getattr(bill, name) for bill in bills]) for name in names},
    )


def format_tables(rows: Sequence[Row]) -> list[str]:
    """Two Markdown tables, a line for each number of workers: time and money, and the shares of paid time. Medians
    over seeds; of wall time and cost also the range."""
    figures = [
        (
            "workers", "wall time, h", "images/s", "node-hours", "tail, s", "idle in tail", "nodes taken",
            "shards failed", "read, GB/s", "USD",
        )
    ]  # fmt: skip
    figures += [
        (
            f"{row.num_workers:,}",
            _show_range(row.wall_h, ".3g"),
            f"{row.images_per_s.median:,.0f}",
            f"{row.node_hours.median:,.1f}",
            f"{row.tail_s.median:,.1f}",
            f"{row.tail_idle_share.median:.0%}",
            f"{row.num_preemptions.median:,.0f}",
            f"{row.num_failed.median:,.0f}",
            f"{row.read_gb_per_s:,.1f}",
            _show_range(row.usd["total"], ",.0f"),
        )
        for row in rows
    ]
    shares = [("workers", *(f"{part}" for part in Part))]
    shares += [(f"{row.num_workers:,}", *(f"{row.parts[part]:.2%}" for part in Part)) for row in rows]
    return [*_align(figures), "", *_align(shares)]


def _align(table: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, the first of them its head, in columns that are also right aligned as text."""
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    rule = ["-" * (width - 1) + ":" for width in widths]
    return [
        "| " + " | ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in (table[0], rule, *table[1:])
    ]


def to_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The rows as JSON types."""
    return [asdict(row) for row in rows]


def _show_range(spread: Spread, style: str) -> str:
    if spread.low == spread.high:
        return format(spread.median, style)
    return f"{spread.median:{style}} ({spread.low:{style}}–{spread.high:{style}})"
