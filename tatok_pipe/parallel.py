"""A bounded, ordered map over threads: the one queue between the stages of this pipeline."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

In = TypeVar("In")
Out = TypeVar("Out")


def map_ahead(
    pool: ThreadPoolExecutor,
    function: Callable[[In], Out],
    items: Iterable[In],
    *,
    max_items: int,
    weigh: Callable[[In], int] = lambda item: 0,
    max_weight: int = 1,
) -> Iterator[Out]:
    """`function` of every item, in order, with at most `max_items` of them and about `max_weight` under way."""
    pending: deque[tuple[Future[Out], int]] = deque()
    weight = 0
    try:
        for item in items:
            cost = weigh(item)
            while pending and (len(pending) >= max_items or weight + cost > max_weight):
                future, done = pending.popleft()
                weight -= done
                yield future.result()
            pending.append((pool.submit(function, item), cost))
            weight += cost
        while pending:
            yield pending.popleft()[0].result()
    finally:
        for future, _ in pending:
            future.cancel()
