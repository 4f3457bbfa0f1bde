"""Dashboards and alerts: what Grafana and Prometheus would refuse or show wrongly, without either of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from itertools import combinations
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from tests.infra.promql import ALERTS, DASHBOARDS, metrics, panels, queried_metrics, queries

CASES = Path(__file__).with_name("alert_cases.yaml")
UNITS = {"short", "s", "percentunit", "Bps", "sci", "dB"}  # Grafana's own ids
HIGHEST_SCHEMA = 42  # of the classic dashboards, as Grafana 12 and 13 read them

each_dashboard = pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
each_file = pytest.mark.parametrize("path", [*DASHBOARDS, ALERTS], ids=lambda path: path.stem)
needs_promtool = pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")


def overlap(one: dict[str, int], other: dict[str, int]) -> bool:
    return (
        one["x"] < other["x"] + other["w"]
        and other["x"] < one["x"] + one["w"]
        and one["y"] < other["y"] + other["h"]
        and other["y"] < one["y"] + one["h"]
    )


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def test_both_dashboards_are_there() -> None:
    assert [path.stem for path in DASHBOARDS] == ["tokenize", "train"]
    boards = [json.loads(path.read_text()) for path in DASHBOARDS]
    assert len({board["uid"] for board in boards}) == len({board["title"] for board in boards}) == 2


@each_dashboard
def test_a_dashboard_can_be_imported(path: Path) -> None:
    board = json.loads(path.read_text())
    assert board["schemaVersion"] <= HIGHEST_SCHEMA
    assert "id" not in board  # the server's own number; an import must not bring one
    assert re.fullmatch(r"[\w-]{8,40}", board["uid"])
    variables = {variable["name"]: variable for variable in board["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    assert variables["entry"]["includeAll"] and variables["entry"]["allValue"] == ".*"
    used = set(re.findall(r"\$\{?([a-z]\w*)", json.dumps(board["panels"])))
    assert used == set(variables)


@each_dashboard
def test_panels_are_numbered_and_do_not_overlap(path: Path) -> None:
    found = panels(path)
    assert len({panel["id"] for panel in found}) == len(found)
    for panel in found:
        place = panel["gridPos"]
        assert place["x"] >= 0 and place["x"] + place["w"] <= 24, panel["title"]
    for one, other in combinations(found, 2):
        assert not overlap(one["gridPos"], other["gridPos"]), (one["title"], other["title"])


@each_dashboard
def test_every_panel_says_what_it_shows(path: Path) -> None:
    for panel in panels(path):
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS, panel["title"]
        levels = [step["value"] for step in panel["fieldConfig"]["defaults"]["thresholds"]["steps"]]
        assert levels[0] is None and levels[1:] == sorted(levels[1:]), panel["title"]
        assert panel["targets"] and panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        names = [target["refId"] for target in panel["targets"]]
        assert len(set(names)) == len(names), panel["title"]
        for target in panel["targets"]:
            assert target["datasource"]["uid"] == "${datasource}", panel["title"]
            assert target["legendFormat"], panel["title"]


@each_dashboard
def test_every_selector_follows_the_variables(path: Path) -> None:
    for panel in panels(path):
        for target in panel["targets"]:
            selectors = re.findall(r"ray_tatok_\w+(\{[^}]*\})?", target["expr"])
            assert selectors
            for labels in selectors:
                assert 'entry=~"$entry"' in labels and 'SessionName=~"$session"' in labels, panel["title"]


@each_file
def test_queries_parse_and_ask_for_our_metrics(path: Path) -> None:
    assert len(queries(path)) >= 6
    for query in queries(path):
        try:
            names = metrics(query.expr)
        except ValueError as error:
            pytest.fail(f"{query.place}: {error}")
        assert names, query.place
        assert all(name.startswith("ray_tatok_") for name in names), (query.place, names)


@each_file
def test_counters_are_told_from_gauges(path: Path) -> None:
    """rate() of a gauge and the bare value of a counter mean nothing."""
    for query in queries(path):
        for name in re.findall(r"(?:rate|increase)\((\w+)", query.expr):
            assert name.endswith("_total"), query.place
        assert not re.search(r"(?:avg|max|min)(?: by \([^)]*\))? \(\w+_total[ {)]", query.expr), query.place


def test_the_readers_find_mistakes() -> None:
    assert metrics("sum by (a) (rate(x_total[2m])) / (y > 0) or on() vector(0)") == {"x_total", "y"}
    assert metrics("max_over_time(x[5m] offset 1h) unless abs(z) < Inf") == {"x", "z"}
    for wrong in (
        "sum(rate(x_total[2m])",
        "rate(x_total)",
        "x_total[]",
        "sum by entry (x)",
        '{entry="a"}',
        "",
    ):
        with pytest.raises(ValueError):
            metrics(wrong)
    box = {"x": 0, "y": 0, "w": 12, "h": 8}
    assert overlap(box, box | {"x": 11}) and overlap(box, box | {"y": 7})
    assert not overlap(box, box | {"x": 12}) and not overlap(box, box | {"y": 8})


def test_the_dashboards_show_what_an_operator_asks_for() -> None:
    tokenize, train = (queried_metrics(path) for path in DASHBOARDS)
    assert {
        "ray_tatok_images_total", "ray_tatok_tokens_total", "ray_tatok_quarantined_samples_total",
        "ray_tatok_failed_shards_total", "ray_tatok_read_bytes_total", "ray_tatok_written_bytes_total",
        "ray_tatok_device_busy_ratio", "ray_tatok_queue_depth", "ray_tatok_shards_left", "ray_tatok_eta_seconds",
        "ray_tatok_actors", "ray_tatok_actors_wanted",
    } <= tokenize  # fmt: skip
    assert {
        f"ray_tatok_train_{name}"
        for name in (
            "loss", "tokens_per_second", "images_per_second", "mfu_ratio", "fill_ratio", "data_wait_ratio", "step",
            "steps", "eta_seconds", "checkpoint_step", "learning_rate", "grad_norm", "psnr_db",
        )
    } <= train  # fmt: skip


def test_every_alert_says_what_to_do() -> None:
    names = [rule["alert"] for rule in rules()]
    assert len(set(names)) == len(names) >= 6
    for rule in rules():
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule["alert"]
        assert rule["labels"]["severity"] in {"warning", "critical"}
        assert "{{ $labels.entry }}" in rule["annotations"]["summary"]
        assert len(rule["annotations"]["description"]) > 100
        if "for" in rule:
            assert promql_parser.parse_duration(rule["for"]).total_seconds() > 0


def test_every_alert_has_a_case() -> None:
    tested = {
        check["alertname"]
        for case in yaml.safe_load(CASES.read_text())["tests"]
        for check in case["alert_rule_test"]
        if check["exp_alerts"]
    }
    assert tested == {rule["alert"] for rule in rules()}


@needs_promtool
def test_alerts_fire_when_they_should(tmp_path: Path) -> None:
    subprocess.run(["promtool", "check", "rules", str(ALERTS)], check=True, capture_output=True, timeout=60)
    document = yaml.safe_load(ALERTS.read_text())
    for group in document["groups"]:
        for rule in group["rules"]:
            del rule["annotations"]  # promtool would want every word of them repeated in the cases
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(document))
    cases = tmp_path / CASES.name
    shutil.copy(CASES, cases)
    done = subprocess.run(
        ["promtool", "test", "rules", str(cases)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
