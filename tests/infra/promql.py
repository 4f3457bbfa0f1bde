"""Reading the PromQL in dashboards and in rules files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import promql_parser
import yaml

INFRA = Path(__file__).parents[2] / "infra"
DASHBOARDS = sorted((INFRA / "dashboards").glob("*.json"))
ALERTS = INFRA / "alerts.yaml"

# What Grafana puts in; any other variable stands inside a string, where any word will do.
_GRAFANA = {"$__rate_interval": "2m", "$__range": "3h", "$__interval": "30s"}
_LABEL_VALUES = re.compile(r"label_values\((.+),\s*\w+\)")


class Query(NamedTuple):
    """An expression, and where it stands."""

    place: str
    expr: str


def queries(path: Path) -> list[Query]:
    """Of a dashboard its panels' and variables', of a rules file its rules'; Grafana's variables are replaced."""
    document = yaml.safe_load(path.read_text())  # JSON is YAML
    found = _of_dashboard(document) if path.suffix == ".json" else _of_rules(document)
    return [Query(place, _without_variables(expr)) for place, expr in found]


def queried_metrics(path: Path) -> set[str]:
    """Names of the metrics that a dashboard or a rules file asks for.

    Raises ValueError where an expression does not parse, or has a selector without a name.
    """
    return {name for query in queries(path) for name in metrics(query.expr)}


def metrics(expr: str) -> set[str]:
    """Names of the metrics in an expression; errors as above."""
    names: set[str] = set()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql_parser.VectorSelector):
            if not node.name:
                raise ValueError(f"{expr}: a selector without a metric's name")
            names.add(node.name)
        return True

    promql_parser.walk(promql_parser.parse(expr), visit)
    return names


def panels(path: Path) -> list[dict[str, Any]]:
    """A dashboard's panels, those inside rows too."""
    found = []
    for panel in json.loads(path.read_text())["panels"]:
        found += [panel, *panel.get("panels", [])]
    return found


def _of_dashboard(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for panel in document["panels"]:
        for one in (panel, *panel.get("panels", [])):
            for target in one.get("targets", []):
                yield f"{one['title']}, {target['refId']}", target["expr"]
    for variable in document["templating"]["list"]:
        if variable["type"] == "query":
            text = variable["query"]["query"]
            found = _LABEL_VALUES.fullmatch(text)
            if not found:
                raise ValueError(
                    f"variable {variable['name']}: {text!r}: expected label_values(metric, label)"
                )
            yield f"variable {variable['name']}", found[1]


def _of_rules(document: dict[str, Any]) -> Iterator[tuple[str, str]]:
    for group in document["groups"]:
        for rule in group["rules"]:
            yield rule.get("alert") or rule["record"], rule["expr"]


def _without_variables(expr: str) -> str:
    for name, value in _GRAFANA.items():
        expr = re.sub(re.escape(name) + r"\b", value, expr)
    return re.sub(r"\$(\w+|\{\w+(:\w+)?\})", "any", expr)
