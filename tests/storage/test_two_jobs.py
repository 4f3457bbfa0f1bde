"""Whole jobs at once on one output, on stores of every kind that jobs can share."""

from __future__ import annotations

from pathlib import Path

import pytest

from . import servers
from .job_checks import Jobs

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(1200)]

NUM_ROUNDS = 2


@pytest.mark.parametrize("name", ["local", "SeaweedFS", "fake-gcs-server", "azurite", "hub"])
def test_two_jobs_on_one_output(name: str, tmp_path: Path) -> None:
    with servers.ATOMIC[name](tmp_path) as store:
        jobs = Jobs(store, tmp_path)
        for number in range(NUM_ROUNDS):
            jobs.two_at_once(f"equal-{number}", equal_settings=True)
            jobs.two_at_once(f"other-{number}", equal_settings=False)
            assert not jobs.warnings(f"equal-{number}-0.log")


@pytest.mark.parametrize("name", ["SeaweedFS", "fake-gcs-server", "azurite", "hub"])
def test_a_killed_job_is_completed_by_the_same_command(name: str, tmp_path: Path) -> None:
    with servers.ATOMIC[name](tmp_path) as store:
        Jobs(store, tmp_path).kill_and_resume("killed")


def test_a_job_says_what_is_not_promised(tmp_path: Path) -> None:
    with servers.gcp_storage_emulator(tmp_path) as store:
        jobs = Jobs(store, tmp_path)
        jobs.kill_and_resume("killed")
        (told,) = jobs.warnings("killed-1.log")
    assert f"{store.url}/killed: this store let a second writer replace the file of the first" in told
