"""The CPUs that this process may use, which on a shared node are not those that the node has."""

from __future__ import annotations

import os
from pathlib import Path

_CGROUPS = Path("/sys/fs/cgroup")
_MEMBERSHIP = Path("/proc/self/cgroup")


def usable_cpus(*, cgroups: Path = _CGROUPS, membership: Path = _MEMBERSHIP) -> int:
    """The least of: CPUs of its affinity mask, the quota of its control group and those around it, and what Slurm gave
    the task (SLURM_CPUS_PER_TASK); at least 1."""
    limits: list[float] = [
        len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    ]
    task = os.environ.get("SLURM_CPUS_PER_TASK", "")
    if task.isdigit():
        limits.append(int(task))
    limits += _quotas(cgroups, membership)
    return max(1, int(min(limits)))


def _quotas(cgroups: Path, membership: Path) -> list[float]:
    """CPUs that each control group with a quota allows, from the process's own to the outermost one."""
    quotas: list[float] = []
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        # In a container the path may be the host's, which is not there: its own group is then the root.
        root = cgroups if not controllers else cgroups / "cpu"
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if not folder.is_relative_to(root):
                break
            quotas += _quota(folder, is_v2=not controllers)
    return quotas


def _quota(folder: Path, *, is_v2: bool) -> list[float]:
    if is_v2:
        words = _read(folder / "cpu.max").split()
    else:
        words = [_read(folder / f"cpu.cfs_{what}_us").strip() for what in ("quota", "period")]
    if len(words) != 2 or not all(word.isdigit() for word in words) or not int(words[1]):
        return []  # "max", -1, or no such file
    return [int(words[0]) / int(words[1])]


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
