"""Reading at any place: the bytes of the file whatever the blocks, few requests, few blocks held, no stale version."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tatok_pipe import storage
from tatok_pipe.storage import retry

BLOCK = 1000


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def put(url: str, data: bytes) -> storage.SourceInfo:
    filesystem, path = storage.open_filesystem(url)
    filesystem.pipe_file(path, data)
    return storage.file_info(url)


def open_probe(size: int, num_ahead: int = 2) -> Any:
    info = put("probe://x", content(size))
    return storage.open_random_access("probe://x", info=info, block_bytes=BLOCK, num_ahead=num_ahead)


def settled(probe: Any, expected: int) -> int:
    """The number of fetches: waits until there are `expected`, and then a little for one too many."""
    deadline = time.monotonic() + 10
    while probe.calls["cat_file"] < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    return probe.calls["cat_file"]


READS = st.lists(st.tuples(st.integers(0, 6000), st.integers(-1, 3000)), max_size=12)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.sampled_from([0, 1, BLOCK, 5 * BLOCK, 5 * BLOCK + 1]),
    reads=READS,
    plan=READS,
    num_ahead=st.integers(1, 4),
)
def test_reads_are_those_of_the_content(probe: Any, size: int, reads: Any, plan: Any, num_ahead: int) -> None:
    data = content(size)
    with open_probe(size, num_ahead) as file:
        file.read_ahead((start, start + max(1, length)) for start, length in plan if start < size)
        for start, length in reads:
            file.seek(start)
            assert file.read(length) == (data[start:] if length < 0 else data[start : start + length])
            assert (
                file.tell() == max(start, min(start + length, size) if length >= 0 else size) or start > size
            )
        assert file.seek(-size, 2) == 0 and file.seek(0, 1) == 0


def test_local(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(content(5000))
    info = storage.file_info(str(path))
    file: Any = storage.open_random_access(str(path), info=info)
    with file:
        file.read_ahead([(0, 10)])
        file.seek(4990)
        assert file.read(100) == content(5000)[4990:]
        file.check_unchanged()
        path.write_bytes(content(5001))
        with pytest.raises(OSError, match="5000 bytes before, 5001 after"):
            file.check_unchanged()
    with pytest.raises(OSError, match="5000 bytes before, 5001 after"):
        storage.open_random_access(str(path), info=info)


@pytest.mark.s3
def test_s3(s3_url: str) -> None:
    url = storage.join(s3_url, "x")
    storage.publish_bytes(content(7 * BLOCK + 13), url, exclusive=True)
    info = storage.file_info(url)
    file: Any = storage.open_random_access(url, info=info, block_bytes=BLOCK, num_ahead=3)
    with file:
        assert file.read() == content(7 * BLOCK + 13)
        file.check_unchanged()
        storage.publish_bytes(content(7 * BLOCK + 13)[::-1], url, exclusive=False)
        with pytest.raises(OSError, match="changed while it was read"):
            file.check_unchanged()


def test_both_ends_are_fetched_at_once_and_nothing_else(probe: Any) -> None:
    with open_probe(20 * BLOCK) as file:
        assert settled(probe, 2) == 2
        file.seek(19 * BLOCK)
        file.read(BLOCK)
        file.seek(0)
        file.read(BLOCK)
        assert settled(probe, 2) == 2
        file.seek(10 * BLOCK)
        file.read(1)  # no plan: nothing is known to come
        assert settled(probe, 3) == 3


def test_the_plan_is_fetched_ahead_once_and_within_the_window(probe: Any) -> None:
    with open_probe(30 * BLOCK, num_ahead=3) as file:
        assert settled(probe, 2) == 2
        file.read_ahead([(5 * BLOCK, 9 * BLOCK), (20 * BLOCK, 22 * BLOCK)])
        assert settled(probe, 5) == 5  # 5, 6, 7
        file.seek(5 * BLOCK)
        file.read(BLOCK)
        assert settled(probe, 6) == 6  # and 8
        file.read(3 * BLOCK)
        assert settled(probe, 8) == 8  # and 20, 21: what is between them is not planned
        for block in (6, 20, 7, 21, 8):
            file.seek(block * BLOCK)
            assert file.read(10) == content(30 * BLOCK)[block * BLOCK :][:10]
        assert settled(probe, 8) == 8  # two columns side by side: no block twice


def test_few_blocks_are_held(probe: Any) -> None:
    with open_probe(30 * BLOCK, num_ahead=2) as file:
        file.read_ahead([(0, 30 * BLOCK)])
        assert file.read() == content(30 * BLOCK)
        assert len(file._blocks) <= 6
    assert settled(probe, 30) <= 31  # the last block was fetched first, and again when its turn came


def test_errors_that_pass_and_errors_that_stay(probe: Any) -> None:
    probe.tamper = staticmethod(lambda number, data: data[:-1] if number % 3 == 0 else data)
    with open_probe(20 * BLOCK) as file:
        assert file.read() == content(20 * BLOCK)
    probe.tamper = staticmethod(lambda number, data: data[:-1])
    with open_probe(5 * BLOCK) as file:
        for _ in range(2):
            with pytest.raises(OSError, match=r"probe://x.*bytes 0-1000 of 5000: got 999 of 1000"):
                file.read(10)
        probe.tamper = None
        assert file.read(10) == content(5 * BLOCK)[:10]


def test_closing_ends_the_retries(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int, data: bytes) -> bytes:
        raise TimeoutError("slow")

    monkeypatch.setattr(retry, "FIRST_DELAY_S", 60.0)
    probe.tamper = staticmethod(fail)
    file = open_probe(5 * BLOCK)
    assert settled(probe, 2) == 2
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("block-reader")]
    assert threads
    file.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


def test_nonsense(probe: Any) -> None:
    with pytest.raises(ValueError, match="num_ahead=0"):
        open_probe(10, num_ahead=0)
    with open_probe(10) as file, pytest.raises(OSError, match="seek to byte -1"):
        file.seek(-1)
