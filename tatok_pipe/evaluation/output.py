"""The files of a suite: <url>/<suite>/results.json, *.csv, plots/*.svg and *.png, report.html (last)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.findings import (
    FORMAT,
    Findings,
    Provenance,
    Table,
    figures_from_json,
    plots_from_json,
    to_csv,
    to_json,
)
from tatok_pipe.evaluation.page import render_page
from tatok_pipe.evaluation.plan import EvaluationPlan
from tatok_pipe.evaluation.plots import render

RESULTS = "results.json"
REPORT = "report.html"


@dataclass(frozen=True)
class Earlier:
    """The results of another run, of one suite."""

    name: str  # how its lines are marked
    content: dict[str, Any]


def read_earlier(urls: str) -> list[Earlier]:
    """The results.json files named, with commas between. Raises UserError where one is none."""
    found = []
    for url in filter(None, (each.strip() for each in urls.split(","))):
        shown = storage.redact(url)
        try:
            content = json.loads(storage.read_bytes(url))
            if content["format"] != FORMAT:
                raise KeyError(f"format {content['format']}")
            for read in (plots_from_json, figures_from_json):
                read(content)
        except FileNotFoundError:
            raise UserError(f"compare={shown}: no such file; expected the {RESULTS} of a suite") from None
        except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
            raise UserError(
                f"compare={shown}: not the {RESULTS} of a suite ({type(error).__name__}: {error}); give one that "
                "evaluate wrote"
            ) from None
        found.append(Earlier(f"{content['tokenizer'][:8]} ({chr(ord('a') + len(found))})", content))
    return found


def write_suite(
    findings: Findings,
    plan: EvaluationPlan,
    url: str,
    earlier: Sequence[Earlier],
    *,
    command: str,
    version: str,
) -> str:
    """URL of the report. results.json holds this run alone; plots and report show `earlier` ones of the suite too."""
    folder = storage.join(url, findings.suite)
    provenance = Provenance(command, version, plan.tokenizer_fingerprint, plan.seed, plan.settings())

    def publish(name: str, content: bytes | str) -> None:
        data = content.encode() if isinstance(content, str) else content
        storage.publish_bytes(data, storage.join(folder, name), exclusive=False)

    publish(RESULTS, to_json(findings, provenance))
    others = [each for each in earlier if each.content["suite"] == findings.suite]
    shown = overlay(findings, others)
    for table in (*shown.tables, *([findings.images] if findings.images else [])):
        publish(f"{table.name}.csv", to_csv(table))
    for plot in shown.plots:
        for image_format in ("svg", "png"):
            publish(f"plots/{plot.name}.{image_format}", render(plot, image_format=image_format))
    names = [f"{each.name}: {each.content['command']}" for each in others]
    publish(REPORT, render_page(shown, provenance, others=names))
    return storage.join(folder, REPORT)


def overlay(findings: Findings, others: Sequence[Earlier]) -> Findings:
    """The findings with the lines of other runs in the plots of the same name, and a table of all their figures."""
    if not others:
        return findings
    plots = []
    for plot in findings.plots:
        series = [*plot.series]
        for other in others:
            same = [each for each in plots_from_json(other.content) if each.name == plot.name]
            series += [
                replace(each, label=f"{each.label}, {other.name}") for found in same for each in found.series
            ]
        plots.append(replace(plot, series=series))
    theirs = [{figure.name: figure.value for figure in figures_from_json(other.content)} for other in others]
    rows = [
        [each.name, each.value, *(values.get(each.name) for values in theirs)] for each in findings.figures
    ]
    table = Table("compared", "Compared", ["figure", "this run", *(other.name for other in others)], rows)
    return replace(findings, plots=plots, tables=[table, *findings.tables])
