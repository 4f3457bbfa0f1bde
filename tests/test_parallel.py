from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tatok_pipe.parallel import map_ahead


def test_map_ahead_keeps_order_and_bounds() -> None:
    running, most, lock = 0, 0, threading.Lock()

    def work(item: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.001 * (item % 3))
        with lock:
            running -= 1
        return item * item

    started: list[int] = []

    def items() -> Iterator[int]:
        for item in range(60):
            started.append(item)
            yield item

    with ThreadPoolExecutor(8) as pool:
        results = map_ahead(pool, work, items(), max_items=5)
        first = next(results)
        assert first == 0 and len(started) <= 6
        assert [first, *results] == [item * item for item in range(60)]
    assert most <= 5
    with ThreadPoolExecutor(8) as pool:
        heavy = map_ahead(pool, work, range(10), max_items=100, weigh=lambda item: 10, max_weight=25)
        most = 0
        assert list(heavy) == [item * item for item in range(10)]
    assert most <= 2


def test_an_error_comes_in_its_turn_and_ends_the_map() -> None:
    def work(item: int) -> int:
        if item == 3:
            raise ValueError("three")
        return item

    seen = []
    with ThreadPoolExecutor(2) as pool, pytest.raises(ValueError, match="three"):
        for result in map_ahead(pool, work, range(100), max_items=4):
            seen.append(result)
    assert seen == [0, 1, 2]
