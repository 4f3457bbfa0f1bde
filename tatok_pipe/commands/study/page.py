"""The page of a study, and the same as JSON: partial after each generator, and the same bytes whenever it is written
again. What was measured in seconds stands in one marked table, and in timings.json."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from PIL import Image

from tatok_pipe import storage
from tatok_pipe.commands.study.declaration import Declaration
from tatok_pipe.commands.study.design import Design
from tatok_pipe.commands.study.of_images import NUM_SHOWN
from tatok_pipe.commands.study.results import part_folder
from tatok_pipe.commands.study.summary import NETWORKS, Comparison, Row, Summary
from tatok_pipe.commands.study.workshop import PICTURES
from tatok_pipe.evaluation.findings import (
    Cell,
    Exhibit,
    Figure,
    Findings,
    Gallery,
    Pane,
    Plot,
    Provenance,
    Series,
    Table,
    to_csv,
    to_json,
)
from tatok_pipe.evaluation.page import render_findings
from tatok_pipe.evaluation.plots import render
from tatok_pipe.evaluation.statistics import Interval
from tatok_pipe.report.document import render_document, render_facts
from tatok_pipe.storage.json_types import to_json_types
from tatok_pipe.version import __version__

PAGE = "study.html"
RESULTS = "results.json"
TIMINGS = "timings.json"
# Around what another run of the same study may have otherwise.
SECONDS_BEGIN, SECONDS_END = "<!-- seconds -->", "<!-- end of seconds -->"
_PAPER_QUALITY, _PAPER_SPEED = 1.3, 8.7
_SHOWN_NOISES = 6
_BESIDE = 0.12  # of the place of an arm in a plot, where another budget stands


def write_page(declaration: Declaration, design: Design, url: str, *, command: str) -> None:
    """study.html (last), results.json, timings.json, tables as CSV and plots as SVG and PNG, of what is there."""
    summary = Summary(declaration, design, url)
    findings = find(summary)
    provenance = Provenance(command, __version__, "", 0, _settings(declaration))
    timings = {
        part_id: {"kind": part.kind, "label": part.label, "seconds": summary.results[part_id].seconds}
        for part_id, part in design.parts.items()
        if part_id in summary.results
    }

    def publish(name: str, text: str) -> None:
        storage.publish_bytes(text.encode(), storage.join(url, name), exclusive=False)

    publish(TIMINGS, json.dumps(to_json_types(timings), indent=1, sort_keys=True) + "\n")
    publish(RESULTS, to_json(findings, provenance))
    seconds = _seconds(summary) if summary.rows else Findings("study", "")
    for table in [*findings.tables, *seconds.tables]:
        publish(f"{table.name}.csv", to_csv(table))
    for plot in findings.plots:
        for image_format in ("svg", "png"):
            place = storage.join(url, "plots", f"{plot.name}.{image_format}")
            storage.publish_bytes(render(plot, image_format=image_format), place, exclusive=False)
    publish(PAGE, _render(findings, seconds, summary, command))


def find(summary: Summary) -> Findings:
    """All but what was measured in seconds."""
    title = f"{len(summary.done)} of {len(summary.design.cells)} generators of {len(summary.declaration.arms)} arms"
    if not summary.rows:
        return Findings("study", title, verdicts=["No generator is finished yet."])
    return Findings(
        "study",
        title,
        verdicts=_verdicts(summary),
        figures=_figures(summary),
        tables=[_arms_table(summary), _claims_table(summary), *_account_tables(summary)],
        plots=[
            *(_distance_plot(summary, name) for name in NETWORKS),
            _nats_plot(summary),
            _lengths_plot(summary),
        ],
        galleries=[_gallery(summary)],
    )


def _settings(declaration: Declaration) -> dict[str, Any]:
    config = declaration.config
    return {
        "arms": config.arms,
        "stages": config.stages,
        "generator": to_json_types(vars(config.generator)),
        "num_drawn": config.measures.num_drawn,
    }


def distance_name(summary: Summary, network: str) -> str:
    if network == "classifier":
        return "FD-classifier"
    return summary.declaration.config.measures.features.distance_name


def _verdicts(summary: Summary) -> list[str]:
    found = [
        _quality_verdict(summary, budget, network) for budget in ("steps", "seconds") for network in NETWORKS
    ]
    return [*filter(None, found), _length_verdict(summary), _reading(summary)]


def _quality_verdict(summary: Summary, budget: str, network: str) -> str:
    """Of the claim that adaptive tokens make better images; empty where nothing is compared."""
    first = summary.declaration.arms[0].name
    found = [
        each
        for each in summary.comparisons
        if (each.reference, each.budget, each.measure) == (first, budget, f"distance_{network}")
    ]
    if not found:
        return ""
    told = ", ".join(
        f"{each.arm} {each.ratio.value:.3g} ({each.ratio.low:.3g} … {each.ratio.high:.3g}, {each.verdict})"
        for each in found
    )
    return (
        f"Claim: adaptive tokens give {_PAPER_QUALITY} times the quality of a fixed grid. Times better than {first} in "
        f"g{distance_name(summary, network)}, at equal {budget}: {told}."
    )


def _length_verdict(summary: Summary) -> str:
    told = ", ".join(
        f"{row.arm} {row.mean(lambda each: each.tokens_drawn):.1f} drawn, {row.first.tokens_real:.1f} real"
        for row in summary.rows
        if row.budget == summary.rows[0].budget
    )
    return (
        f"Claim: generation is {_PAPER_SPEED} times faster, for there are fewer tokens. Tokens an image, at equal "
        f"{summary.rows[0].budget}: {told}. What that is in seconds stands in the table of seconds."
    )


def _reading(summary: Summary) -> str:
    config, first = summary.declaration.config, summary.done[0]
    num_seeds = min(len(row.seeds) for row in summary.rows)
    interval = (
        f"Intervals ({config.confidence:.0%}) are Student's, over {num_seeds} seeds or more"
        if num_seeds > 1
        else f"Where there is one seed, intervals ({config.confidence:.0%}) are of its drawn images, by leaving out "
        "groups of them, and another training may fall outside; elsewhere they are Student's, over seeds"
    )  # fmt: skip
    per_seed = config.tokenizer.per_seed
    tokenizers = "A tokenizer is trained for each seed" if per_seed else "One tokenizer serves all seeds"
    return (
        f"{interval}. None is corrected for how many there are. {tokenizers}. Distances are of "
        f"{config.measures.num_drawn:,} drawn images to {first.figure('real', 'num_images'):,} test images, and "
        "compare within this page only. The classifier was trained on data.train by the study, and is right about "
        f"{first.figure('real', 'accuracy'):.1%} of the test images."
    )


def _arms_table(summary: Summary) -> Table:
    names = [distance_name(summary, network) for network in NETWORKS]
    columns = ["arm", "equal", "seeds", "steps", "weights", "tokens, real", "tokens, drawn", "lengths, KS"]
    for name in names:
        columns += [f"g{name}", f"g{name}, interval", f"r{name}"]
    columns += ["precision", "recall", "class right", "nats an image", "nats, interval", "of them places"]
    return Table(
        "arms",
        "The arms",
        columns,
        [_arm_cells(row) for row in summary.rows],
        note="Equal steps: as many optimizer steps of as many images. Equal seconds: as many steps as take the seconds "
        "that the first arm's take, by times of a step that were measured before. g…: of drawn images, r…: of test "
        "images through the arm's tokens, the floor. class right: drawn images that the classifier takes for their "
        "class. nats: of test images as the arm's tokens, places and ends included; they code less where less is kept. "
        "Arms that keep all tokens are drawn with their places given, for a grid leaves none to choose; what the "
        "places in their nats cost is what it takes to know that. On the test images themselves halves are "
        f"{_halves(summary)} apart.",
    )


def _halves(summary: Summary) -> str:
    found = summary.done[0].figure("real", "distance_of_halves")
    return ", ".join(f"{distance_name(summary, name)} {found[name]:.3g}" for name in NETWORKS)


def _arm_cells(row: Row) -> list[Cell]:
    first = row.first
    cells: list[Cell] = [
        row.arm, row.budget, len(row.seeds), int(first.figure("generator", "steps")),
        int(first.figure("generator", "weights")), first.tokens_real, row.mean(lambda each: each.tokens_drawn),
        row.mean(lambda each: each.length_distance),
    ]  # fmt: skip
    for network in NETWORKS:
        found = row.interval("likeness", f"distance_{network}")
        cells += [
            found.value,
            _show(found),
            row.first.interval("reconstruction", f"distance_{network}").value,
        ]
    cells += [
        row.mean(lambda each, name=name: each.figure("likeness", name))
        for name in ("precision", "recall", "accuracy")
    ]
    nats = row.interval("nats", "nats")
    return [*cells, nats.value, _show(nats), row.mean(lambda each: each.figure("nats", "position_nats"))]


def _show(interval: Interval) -> str:
    return f"{interval.low:.4g} … {interval.high:.4g}"


def _claims_table(summary: Summary) -> Table:
    rows: list[list[Cell]] = [
        [each.arm, each.reference, each.budget, distance_name(summary, each.measure.removeprefix("distance_")),
         each.ratio.value, _show(each.ratio), each.verdict]
        for each in summary.comparisons
    ]  # fmt: skip
    return Table(
        "claims",
        "Times better than arms that keep all tokens",
        ["arm", "than", "at equal", "distance", "times better", "interval", "verdict"],
        rows,
        note="A distance of the other arm over the arm's own: above 1 the arm is better; undecided: the "
        "interval holds 1.",
    )


def _account_tables(summary: Summary) -> list[Table]:
    """Where the gain comes from; none where the account is not declared or not whole."""
    rows: list[list[Cell]] = []
    for budget in dict.fromkeys(row.budget for row in summary.rows):
        for network in NETWORKS:
            *steps, whole = summary.account(budget, f"distance_{network}") or [None]
            name = distance_name(summary, network)
            rows += [_account_cells("", each, name) for each in steps if each is not None]
            rows += [_account_cells("the whole", whole, name)] if whole is not None else []
    if not rows:
        return []
    columns = ["", "from", "to", "at equal", "distance", "times better", "interval"]
    note = "What each arm has more than the one before makes it better by: the factors multiply to the whole."
    return [Table("account", "Where the gain comes from", columns, rows, note=note)]


def _account_cells(told: str, each: Comparison, name: str) -> list[Cell]:
    return [told, each.reference, each.arm, each.budget, name, each.ratio.value, _show(each.ratio)]


def _figures(summary: Summary) -> list[Figure]:
    figures = []
    for row in summary.rows:
        told = f"{row.arm}, equal {row.budget}"
        for network in NETWORKS:
            found = row.interval("likeness", f"distance_{network}")
            figures.append(Figure.of(f"g{distance_name(summary, network)}, {told}", found))
        figures.append(Figure.of(f"nats, {told}", row.interval("nats", "nats"), "nats an image"))
    return figures


def _distance_plot(summary: Summary, network: str) -> Plot:
    name = distance_name(summary, network)
    floor = _by_arm(summary, summary.rows[0].budget, "reconstruction", f"distance_{network}")
    return _plot_by_arm(
        summary, f"{network}_distance", f"{name} to test images", name, "likeness", f"distance_{network}",
        more=[Series("through the tokens alone", floor.x, floor.y, floor.low, floor.high, kind="points")],
    )  # fmt: skip


def _nats_plot(summary: Summary) -> Plot:
    return _plot_by_arm(
        summary, "nats", "Nats of a test image", "nats an image, places included", "nats", "nats"
    )


def _plot_by_arm(
    summary: Summary, name: str, title: str, unit: str, kind: str, figure: str, *, more: Sequence[Series] = ()
) -> Plot:
    budgets = dict.fromkeys(row.budget for row in summary.rows)
    series = [_by_arm(summary, budget, kind, figure) for budget in budgets]
    told = f"seeds of an arm: {max(len(row.seeds) for row in summary.rows)} at most"
    return Plot(
        name, title, "arm", unit, told, [*series, *more],
        x_labels=_arm_names(summary),
    )  # fmt: skip


def _arm_names(summary: Summary) -> list[str]:
    return list(dict.fromkeys(row.arm for row in summary.rows))


def _by_arm(summary: Summary, budget: str, kind: str, figure: str) -> Series:
    names, budgets = _arm_names(summary), list(dict.fromkeys(row.budget for row in summary.rows))
    rows = [row for row in summary.rows if row.budget == budget]
    found = [row.interval(kind, figure) for row in rows]
    shift = _BESIDE * budgets.index(budget)
    return Series(
        f"equal {budget}", [names.index(row.arm) + shift for row in rows], [each.value for each in found],
        [each.low for each in found], [each.high for each in found], kind="points",
    )  # fmt: skip


def _lengths_plot(summary: Summary) -> Plot:
    names, budget = _arm_names(summary), summary.rows[0].budget
    rows = [row for row in summary.rows if row.budget == budget]
    x = [float(names.index(row.arm)) for row in rows]
    return Plot(
        "lengths", "Tokens of an image", "arm", "tokens", f"means, equal {budget}",
        [
            Series("drawn", x, [row.mean(lambda each: each.tokens_drawn) for row in rows], kind="bars"),
            Series("real", x, [row.first.tokens_real for row in rows], kind="bars"),
        ],
        x_labels=names,
    )  # fmt: skip


def _gallery(summary: Summary) -> Gallery:
    exhibits = []
    rows = [row for row in summary.rows if row.budget == summary.rows[0].budget]
    for number in range(min(_SHOWN_NOISES, NUM_SHOWN, summary.declaration.config.measures.num_drawn)):
        panes = [
            Pane(row.arm, _read_picture(summary.url, row.first.cell.parts["likeness"], number))
            for row in rows
        ]
        exhibits.append(Exhibit(f"image {number}", panes))
    note = "Every arm draws image i with the same seed and class, so the same random numbers choose among its tokens."
    return Gallery("Drawn from equal noise", note, exhibits)


def _read_picture(url: str, part_id: str, number: int) -> np.ndarray:
    data = storage.read_bytes(storage.join(part_folder(url, part_id), PICTURES, f"{number:06d}.png"))
    return np.array(Image.open(io.BytesIO(data)).convert("RGB"))


def _render(findings: Findings, seconds: Findings, summary: Summary, command: str) -> str:
    facts = [
        ("Arms", "; ".join(summary.declaration.config.arms)),
        ("Stages", "; ".join(summary.declaration.config.stages)),
        ("Command", command),
    ]
    told = f"{SECONDS_BEGIN}{render_findings(seconds)}{SECONDS_END}" if seconds.tables else ""
    return render_document(
        title="Study of adaptive tokens",
        head=f'<p class="eyebrow">Study</p><h1>{escape(findings.title)}</h1>{render_facts(facts)}',
        body=render_findings(findings) + told,
        footer=f"Made by <code>python -m tatok_pipe.study</code>, version {escape(__version__)}. Figures of this page "
        "are in results.json and the CSV files beside it, its plots in plots/, times in timings.json and seconds.csv.",
    )


def _seconds(summary: Summary) -> Findings:
    """What is measured by the clock, and so never twice the same."""
    slots, first = summary.declaration.config.measures.slots, summary.rows[0]
    reference = first.mean(lambda each: each.sampled_per_s)
    rows: list[list[Cell]] = []
    for row in summary.rows:
        step_s = row.first.results["step_time"].seconds["step"]
        speed = row.mean(lambda each: each.sampled_per_s)
        decoding = row.mean(
            lambda each: each.figure("draw", "num_images") / each.results["draw"].seconds["decoding"]
        )
        steps = int(row.first.figure("generator", "steps"))
        rows.append([row.arm, row.budget, step_s, step_s * steps, speed, speed / reference, decoding])
    columns = [
        "arm",
        "equal",
        "s a step",
        "s of training",
        "images/s",
        f"times {first.arm}",
        "decoded images/s",
    ]
    note = (
        f"images/s: tokens drawn, {slots} images at once in every arm, by one worker; pixels are decoded after that. "
        "s of training: steps by the time of one, as it was measured before."
    )
    told = ", ".join(f"{row[0]} {row[5]:.3g}" for row in rows if row[1] == first.budget)
    verdict = (
        f"Claim: generation is {_PAPER_SPEED} times faster. Images a second, times those of {first.arm}, at equal "
        f"{first.budget}: {told}."
    )
    table = Table("seconds", "Seconds", columns, rows, note=note)
    return Findings("study", "", verdicts=[verdict], tables=[table])
