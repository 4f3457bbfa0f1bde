"""A process and all that it started: found, watched and ended, and nothing else on this machine."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path


class Family:
    """The leader of a session, and what it and its descendants started, also where they lost their parent since."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._births = {leader: _birth(leader)}  # by pid: a number may belong to a stranger later

    def remember(self) -> None:
        """Note every member that runs now: descendants lose their parent when it dies."""
        parents, sessions = _process_table()
        members = set(self._living())
        if self._leader in members or self._leader not in parents:  # else the number is a stranger's by now
            members |= {pid for pid, session in sessions.items() if session == self._leader}
        grown = True
        while grown:
            found = {pid for pid, parent in parents.items() if parent in members} - members
            members |= found
            grown = bool(found)
        for pid in members:
            self._births.setdefault(pid, _birth(pid))

    def alive(self) -> dict[int, str]:
        """Command lines of the members known so far that run, by pid."""
        return {pid: line for pid in self._living() if (line := _command_line(pid))}

    def send(self, pid: int, number: signal.Signals) -> bool:
        """Send a member a signal; whether it was still there."""
        if pid not in self.alive():
            return False
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            return True
        return False

    def kill(self) -> None:
        """SIGKILL to every known member."""
        for pid in self.alive():
            self.send(pid, signal.SIGKILL)

    def _living(self) -> list[int]:
        return [pid for pid, birth in self._births.items() if birth and _birth(pid) == birth]


def _process_table() -> tuple[dict[int, int], dict[int, int]]:
    """Parent and session of every process, by pid."""
    parents, sessions = {}, {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            parents[int(entry.name)], sessions[int(entry.name)] = int(fields[1]), int(fields[3])
    return parents, sessions


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat behind the name: state, parent, group, session, ...; empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


def _birth(pid: int) -> str:
    fields = _stat(pid)
    return fields[19] if fields and fields[0] != "Z" else ""


def _command_line(pid: int) -> str:
    """Empty where it is gone, and for a process that has none yet or any more."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        return words.decode(errors="replace").strip()[:200]
    except OSError:
        return ""
