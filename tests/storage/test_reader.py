from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tatok_pipe import storage
from tatok_pipe.storage import retry

PART = 1000
SIZES = (0, 1, PART - 1, PART, PART + 1, 2 * PART, 7 * PART + 13)


def content(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def put(url: str, data: bytes) -> None:
    filesystem, path = storage.open_filesystem(url)
    filesystem.pipe_file(path, data)


def test_local(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content(5000))
    with storage.open_stream(str(tmp_path / "x")) as stream:
        assert stream.read() == content(5000)
    info = storage.file_info(str(tmp_path / "x"))
    (tmp_path / "x").write_bytes(content(5001))
    with pytest.raises(OSError, match="changed before it was read: 5000 bytes before, 5001 after"):
        storage.open_stream(str(tmp_path / "x"), info=info)
    with pytest.raises(FileNotFoundError):
        storage.open_stream(str(tmp_path / "y"))


def test_a_local_span(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(content(5000))
    with storage.open_stream(str(tmp_path / "x"), span=(10, 4321)) as stream:
        pieces = list(iter(lambda: stream.read(999), b""))
    assert b"".join(pieces) == content(5000)[10:4321]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.one_of(st.sampled_from(SIZES), st.integers(0, 5000)),
    part_bytes=st.integers(1, 3000),
    num_parallel=st.integers(1, 5),
    read_bytes=st.integers(1, 4000),
)
def test_any_parts_give_the_content(
    probe: Any, size: int, part_bytes: int, num_parallel: int, read_bytes: int
) -> None:
    put("probe://x", content(size))
    part_bytes = max(part_bytes, size // 40 + 1)
    with storage.open_stream("probe://x", part_bytes=part_bytes, num_parallel=num_parallel) as stream:
        pieces = list(iter(lambda: stream.read(read_bytes), b""))
    assert b"".join(pieces) == content(size)
    assert all(len(piece) == read_bytes for piece in pieces[:-1])


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ends=st.tuples(st.integers(0, 5000), st.integers(0, 5000)), part_bytes=st.integers(100, 3000))
def test_any_parts_of_a_span(probe: Any, ends: tuple[int, int], part_bytes: int) -> None:
    put("probe://x", content(5000))
    start, stop = sorted(ends)
    with storage.open_stream("probe://x", part_bytes=part_bytes, span=(start, stop)) as stream:
        assert stream.read() == content(5000)[start:stop]


@pytest.mark.s3
@pytest.mark.parametrize("size", SIZES)
def test_s3(s3_url: str, size: int) -> None:
    url = storage.join(s3_url, "x")
    storage.publish_bytes(content(size), url, exclusive=True)
    with storage.open_stream(url, part_bytes=PART, num_parallel=3, info=storage.file_info(url)) as stream:
        assert stream.read() == content(size)
        assert stream.read() == b""


def test_one_small_object_costs_one_get(probe: Any) -> None:
    put("probe://x", content(500))
    with storage.open_stream("probe://x", part_bytes=PART) as stream:
        stream.read()
    assert probe.calls["cat_file"] == 1
    assert probe.calls["info"] == 1


def test_every_third_request_fails(probe: Any) -> None:
    def fail_sometimes(number: int, data: bytes) -> bytes:
        if number % 3 == 0:
            raise ConnectionResetError("reset by peer")
        return data

    put("probe://x", content(20 * PART))
    probe.tamper = staticmethod(fail_sometimes)
    with storage.open_stream("probe://x", part_bytes=PART, num_parallel=4) as stream:
        assert stream.read() == content(20 * PART)
    assert probe.calls["cat_file"] > 20


def test_every_third_answer_is_cut_short(probe: Any) -> None:
    put("probe://x", content(20 * PART))
    probe.tamper = staticmethod(lambda number, data: data[:-1] if number % 3 == 0 else data)
    with storage.open_stream("probe://x", part_bytes=PART, num_parallel=4) as stream:
        assert stream.read() == content(20 * PART)


def test_a_range_that_stays_short_is_an_error_and_no_gap(probe: Any) -> None:
    data = content(10 * PART)
    put("probe://x", data)
    bad = data[3 * PART : 4 * PART]
    probe.tamper = staticmethod(lambda number, part: part[:-1] if part == bad else part)
    with storage.open_stream("probe://x", part_bytes=PART, num_parallel=4) as stream:
        assert stream.read(3 * PART) == data[: 3 * PART]
        for _ in range(2):
            with pytest.raises(OSError, match=r"probe://x.*bytes 3000-4000 of 10000: got 999 of 1000"):
                stream.read(PART)


def test_a_file_that_changes_while_it_is_read(probe: Any) -> None:
    put("probe://x", content(5 * PART))
    with storage.open_stream("probe://x", part_bytes=PART, num_parallel=2) as stream:
        stream.read(10)
        put("probe://x", content(6 * PART))
        with pytest.raises(OSError, match="probe://x: changed while it was read"):
            stream.read()


@pytest.mark.s3
def test_another_version_of_equal_size(s3_url: str) -> None:
    url = storage.join(s3_url, "x")
    storage.publish_bytes(content(500), url, exclusive=True)
    info = storage.file_info(url)
    storage.publish_bytes(content(500)[::-1], url, exclusive=False)
    with (
        storage.open_stream(url, info=info) as stream,
        pytest.raises(OSError, match="changed while it was read"),
    ):
        stream.read()


def settled(probe: Any, expected: int) -> int:
    """The number of fetches: waits until there are `expected`, and then a little for one too many."""
    deadline = time.monotonic() + 10
    while probe.calls["cat_file"] < expected and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    return probe.calls["cat_file"]


def test_no_more_is_fetched_than_may_be_held(probe: Any) -> None:
    put("probe://x", content(20 * PART))
    with storage.open_stream("probe://x", part_bytes=PART, num_parallel=3) as stream:
        unbuffered: Any = getattr(stream, "raw")  # noqa: B009 - BinaryIO does not declare it
        assert settled(probe, 3) == 3
        unbuffered.read(PART)
        assert settled(probe, 3) == 3  # one delivered, two ahead
        unbuffered.read(1)
        assert settled(probe, 4) == 4
    assert settled(probe, 4) == 4
    with pytest.raises(ValueError, match="closed"):
        stream.read(1)


def test_closing_ends_the_retries(probe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(number: int, data: bytes) -> bytes:
        raise TimeoutError("slow")

    monkeypatch.setattr(retry, "FIRST_DELAY_S", 60.0)
    put("probe://x", content(5 * PART))
    probe.tamper = staticmethod(fail)
    stream = storage.open_stream("probe://x", part_bytes=PART, num_parallel=2)
    assert settled(probe, 2) == 2
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("range-reader")]
    assert threads
    stream.close()
    for thread in threads:
        thread.join(5)
        assert not thread.is_alive()
    assert probe.calls["cat_file"] == 2


def test_missing_and_nonsense(probe: Any) -> None:
    with pytest.raises(FileNotFoundError, match="probe://nothing"):
        storage.open_stream("probe://nothing")
    with pytest.raises(ValueError, match="part_bytes=0"):
        storage.open_stream("probe://x", part_bytes=0)
    assert isinstance(fsspec.filesystem("probe"), probe)
