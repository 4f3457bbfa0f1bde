"""Lists of numbers as users give and read them: 0-9,17."""

from __future__ import annotations

from collections.abc import Iterable


def format_numbers(numbers: Iterable[int], *, max_parts: int = 8) -> str:
    """Ascending whole numbers, runs as FROM-TO; what comes after `max_parts` of them is counted."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in runs[:max_parts]]
    left = sum(last - first + 1 for first, last in runs[max_parts:])
    return ",".join(shown) + (f" and {left} more" if left else "")
