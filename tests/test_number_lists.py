from __future__ import annotations

import pytest

from tatok_pipe.config.number_lists import format_numbers


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([7], "7"),
        ([3, 1, 2, 2, 9], "1-3,9"),
        (range(1000), "0-999"),
        (range(0, 30, 2), "0,2,4,6,8,10,12,14 and 7 more"),
    ],
)
def test_runs_are_ranges(numbers: list[int], text: str) -> None:
    assert format_numbers(numbers) == text
