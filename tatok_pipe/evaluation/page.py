"""The report of a suite: one HTML file with its verdicts, figures, plots, tables and pictures inside."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from tatok_pipe.evaluation.findings import Cell, Exhibit, Figure, Findings, Gallery, Plot, Provenance
from tatok_pipe.evaluation.plots import render
from tatok_pipe.report.document import render_document, render_facts, render_pane
from tatok_pipe.report.gallery import to_data_uri
from tatok_pipe.report.tables import render_table

_MAX_ROWS_SHOWN = 60


def render_page(findings: Findings, provenance: Provenance, *, others: Sequence[str] = ()) -> str:
    """The whole document. `others` names the results that are overlaid."""
    settings = provenance.settings
    facts = [
        ("Tokenizer", f"fingerprint {provenance.tokenizer[:12]}, {settings.get('tokenizer', '')}"),
        ("Images", str(settings.get("data", ""))),
        ("Seed", str(provenance.seed)),
        ("Command", provenance.command),
    ]
    facts += [("Compared with", ", ".join(others))] if others else []
    return render_document(
        title=findings.title,
        head=f'<p class="eyebrow">Evaluation · {escape(findings.suite)}</p><h1>{escape(findings.title)}</h1>'
        f"{render_facts(facts)}",
        body=render_findings(findings),
        footer=f"Made by <code>python -m tatok_pipe.evaluate</code>, version {escape(provenance.version)}. Figures of "
        "this page are in results.json and the CSV files beside it.",
    )


def render_findings(findings: Findings) -> str:
    """The findings as HTML: verdicts, plots, tables, pictures, figures."""
    parts = ["".join(f'<p class="notice">{escape(verdict)}</p>' for verdict in findings.verdicts)]
    if findings.plots:
        plots = "".join(_render_plot(plot) for plot in findings.plots)
        parts.append(_section("Plots", f'<div class="grid plots">{plots}</div>'))
    parts += [
        _section(table.title, _paragraph(table.note) + _render_rows(table.columns, table.rows))
        for table in findings.tables
    ]
    parts += [_section(gallery.title, _render_gallery(gallery)) for gallery in findings.galleries]
    if findings.figures:
        parts.append(_section("All figures", _render_figures(findings.figures)))
    return "".join(parts)


def _render_plot(plot: Plot) -> str:
    source = base64.b64encode(render(plot, image_format="svg")).decode("ascii")
    return (
        f'<figure class="card"><img class="plot" alt="{escape(f"{plot.title}: {plot.y_title} by {plot.x_title}")}" '
        f'src="data:image/svg+xml;base64,{source}"><figcaption>{escape(plot.caption)}</figcaption></figure>'
    )


def _render_figures(figures: Sequence[Figure]) -> str:
    rows: list[list[Cell]] = []
    for figure in figures:
        interval = ""
        if figure.low is not None and figure.high is not None:
            interval = f"{_show(figure.low)} … {_show(figure.high)}"
        rows.append([figure.name, _show(figure.value), interval, figure.unit, figure.n or ""])
    return _render_rows(("Figure", "Value", "Interval", "Unit", "n"), rows)


def _render_rows(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    shown = [[_show(cell) for cell in row] for row in rows[:_MAX_ROWS_SHOWN]]
    numeric = [
        place
        for place in range(len(columns))
        if rows and all(isinstance(row[place], (int, float)) or row[place] is None for row in rows)
    ]
    more = f"<p>And {len(rows) - len(shown):,} more, in the CSV file.</p>" if len(rows) > len(shown) else ""
    return render_table(columns, shown, numeric=numeric) + more


def _render_gallery(gallery: Gallery) -> str:
    cards = "".join(_render_exhibit(exhibit) for exhibit in gallery.exhibits)
    style = "singles" if all(len(exhibit.panes) == 1 for exhibit in gallery.exhibits) else "gallery"
    return f'{_paragraph(gallery.note)}<div class="grid {style}">{cards}</div>'


def _render_exhibit(exhibit: Exhibit) -> str:
    panes = "".join(
        render_pane(
            pane.label, to_data_uri(pane.pixels), f"{exhibit.caption}: {pane.label}", image_size=len(pane.pixels)
        )
        for pane in exhibit.panes
    )  # fmt: skip
    columns = {1: " one", 4: " four"}.get(len(exhibit.panes), "")
    return (
        f'<figure class="card"><div class="panes{columns}">{panes}</div>'
        f"<figcaption>{escape(exhibit.caption)}</figcaption></figure>"
    )


def _show(cell: Cell) -> str:
    if cell is None:
        return "–"
    if isinstance(cell, float):
        return f"{cell:,.4g}" if abs(cell) < 1000 else f"{cell:,.0f}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _paragraph(text: str) -> str:
    return f"<p>{escape(text)}</p>" if text else ""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{content}</section>"
