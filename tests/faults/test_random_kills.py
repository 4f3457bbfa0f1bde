"""Some rounds of random kills, always the same ones; `python -m tests.faults.random_kills` plays more, and others.

TATOK_KILL_ROUNDS and TATOK_KILL_SEED have this test play others, too.
"""

from __future__ import annotations

import os
import random
import re
import signal
from pathlib import Path

import pytest

from tests.faults.random_kills import CLUSTER, DRIVER, EMBEDDED, Plan, Round, draw, judge, play_rounds

OF_ALL_KINDS = 219  # a seed whose first six rounds are
ROUNDS = int(os.environ.get("TATOK_KILL_ROUNDS", "6"))
SEED = int(os.environ.get("TATOK_KILL_SEED", str(OF_ALL_KINDS)))
SUMMARY_LINE = '12:00:00 INFO tatok_pipe.runs.job: summary {"entry": "tokenize_corpus", "exit_code": %d}\n'


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(300 * ROUNDS + 300)
def test_whoever_is_killed_the_same_command_does_the_rest(tmp_path: Path) -> None:
    rounds = []
    for number, played in play_rounds(ROUNDS, seed=SEED, folder=tmp_path):
        print(number, played.row, flush=True)
        rounds.append(played)
    assert len(rounds) == ROUNDS
    assert not any(played.problems for played in rounds)
    met = [played for played in rounds if played.victim]
    assert len(met) >= ROUNDS / 2, "most came too late to show anything"


def test_six_rounds_are_of_all_kinds() -> None:
    dice = random.Random(OF_ALL_KINDS)
    plans = [draw(dice) for _ in range(6)]
    assert {plan.place for plan in plans} == {EMBEDDED, CLUSTER}
    assert {plan.kind for plan in plans} == {DRIVER, "actor", "agent", "raylet", "gcs"}
    assert {plan.number for plan in plans} == {signal.SIGKILL, signal.SIGTERM}


@pytest.mark.parametrize(
    ("place", "kind", "number", "code", "stderr", "problem"),
    [
        (EMBEDDED, "raylet", signal.SIGKILL, 1, SUMMARY_LINE % 1, ""),
        (EMBEDDED, "raylet", signal.SIGKILL, 1, SUMMARY_LINE % 0, "is not what the summary tells"),
        (CLUSTER, "gcs", signal.SIGKILL, 1, "E 16149 16370: The program will terminate.\n", "no summary"),
        (CLUSTER, "actor", signal.SIGKILL, 1, SUMMARY_LINE % 1, r"exit code 1, expected one of \[0\]"),
        (EMBEDDED, "actor", signal.SIGKILL, 0, "Traceback\n" + SUMMARY_LINE % 0, "a traceback"),
        (EMBEDDED, DRIVER, signal.SIGTERM, 4, "interrupted; run the same command again to go on\n", ""),
        (EMBEDDED, DRIVER, signal.SIGTERM, -15, "", r"exit code -15, expected one of \[0, 4\]"),
        (EMBEDDED, DRIVER, signal.SIGKILL, -9, "12:00:00 INFO tatok_pipe.tokenize_corpus: starting\n", ""),
        (EMBEDDED, DRIVER, signal.SIGKILL, 0, SUMMARY_LINE % 0, "exit code 0 of a driver that was killed"),
    ],
)  # fmt: skip
def test_what_breaks_a_rule(
    place: str, kind: str, number: signal.Signals, code: int, stderr: str, problem: str
) -> None:
    played = Round(Plan(place, kind, number, 1, 0.1, 0.0), victim="somebody", code=code)
    found = "; ".join(judge(played, stderr))
    assert re.search(problem, found) if problem else not found, found
