"""Which process this is, so that another one can tell whether it lives."""

from __future__ import annotations

import os
from pathlib import Path


def machine_id() -> str:
    """Where process numbers mean the same: this boot of the machine and this container; empty where nothing says so."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def process_start(process: int) -> str:
    """When a process of this machine began, in ticks since boot: its number may be another's by now. Empty where it is
    gone, or has ended and is not fetched yet."""
    try:
        text = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    state, *fields = text.rpartition(")")[2].split()  # the name before may hold anything
    return "" if state in "ZX" else fields[18]
