"""Settings that are changed where a training is resumed: taken and written down, or refused; never passed over.

What a training was asked for is a flat dict here, `{"training.steps": 100, …}`, JSON types, of what makes its weights
and nothing else (not of how fast, or how often it tells).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tatok_pipe.errors import RefusedError


def flatten(config: dict[str, Any], *, without: Iterable[str] = (), prefix: str = "") -> dict[str, Any]:
    """The values of nested dicts by their whole names, but for those that `without` names, or begins of them."""
    left_out = tuple(without)
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix + key
        if any(name == each or name.startswith(f"{each}.") for each in left_out):
            continue
        flat |= (
            flatten(value, without=left_out, prefix=f"{name}.") if isinstance(value, dict) else {name: value}
        )
    return flat


def find_changes(before: dict[str, Any], now: dict[str, Any]) -> dict[str, list[Any]]:
    """[before, now] of every setting that differs, by name."""
    names = sorted({*before, *now})
    return {name: [before.get(name), now.get(name)] for name in names if before.get(name) != now.get(name)}


def show_changes(changes: dict[str, list[Any]]) -> str:
    """`training.loss.l1=1.0 (0.5 before), …`"""
    return ", ".join(f"{name}={now} ({before} before)" for name, (before, now) in changes.items())


def check_changes(
    before: dict[str, Any], now: dict[str, Any], *, num_steps_done: int, num_steps: int, output: str
) -> None:
    """Raise RefusedError where settings were changed and no step is left that would be done with them: what would be
    written down of the weights would be untrue. `output` is what the user calls the folder."""
    changes = find_changes(before, now)
    if changes and num_steps_done >= num_steps:
        raise RefusedError(
            f"output.url={output}: holds a training of which {num_steps_done} steps are done, and none is left to do "
            f"with {show_changes(changes)}; give another output.url, the same settings, or more steps"
        )
