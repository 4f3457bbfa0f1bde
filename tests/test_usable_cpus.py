"""CPUs are those that the process may use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tatok_pipe.ray_runtime.cpus import usable_cpus


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text + "\n")


@pytest.fixture
def eight_cpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)


def usable(tmp_path: Path, membership: str) -> int:
    (tmp_path / "membership").write_text(membership)
    return usable_cpus(cgroups=tmp_path / "fs", membership=tmp_path / "membership")


@pytest.mark.usefixtures("eight_cpus")
def test_without_a_limit_the_affinity_counts(tmp_path: Path) -> None:
    group(tmp_path / "fs/job", cpu__max="max 100000")
    assert usable(tmp_path, "0::/job\n") == 8


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(
    ("quota", "expected"), [("350000 100000", 3), ("50000 100000", 1), ("900000 100000", 8)]
)
def test_a_quota_of_the_group_is_kept(quota: str, expected: int, tmp_path: Path) -> None:
    group(tmp_path / "fs/slice/job", cpu__max=quota)
    assert usable(tmp_path, "0::/slice/job\n") == expected


@pytest.mark.usefixtures("eight_cpus")
def test_the_quota_of_a_group_around_it_counts_too(tmp_path: Path) -> None:
    group(tmp_path / "fs/slice", cpu__max="200000 100000")
    group(tmp_path / "fs/slice/job", cpu__max="max 100000")
    assert usable(tmp_path, "0::/slice/job\n") == 2


@pytest.mark.usefixtures("eight_cpus")
def test_in_a_container_the_root_is_its_own_group(tmp_path: Path) -> None:
    group(tmp_path / "fs", cpu__max="400000 100000")
    assert usable(tmp_path, "0::/kubepods/pod1/abc\n") == 4


@pytest.mark.usefixtures("eight_cpus")
def test_control_groups_of_the_first_version(tmp_path: Path) -> None:
    group(tmp_path / "fs/cpu/job", cpu__cfs_quota_us="500000", cpu__cfs_period_us="100000")
    group(tmp_path / "fs/cpu", cpu__cfs_quota_us="-1", cpu__cfs_period_us="100000")
    assert usable(tmp_path, "7:memory:/other\n4:cpu,cpuacct:/job\n") == 5


@pytest.mark.usefixtures("eight_cpus")
def test_what_slurm_gave_the_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "6")
    assert usable(tmp_path, "") == 6
