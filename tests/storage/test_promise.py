"""What is promised of a commit, on every store that a server on loopback speaks like."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import pytest

from tatok_pipe import storage
from tatok_pipe.storage import promise

from . import servers
from .race_checks import run_alone

NUM_ROUNDS = 20
NOT_PROMISED = "not promised here: that of two jobs at once on this output one alone wins each shard"


@pytest.mark.parametrize("name", servers.ATOMIC)
def test_of_two_writers_at_once_one_wins(name: str, tmp_path: Path) -> None:
    with servers.ATOMIC[name](tmp_path) as store:
        found = run_alone(store, NUM_ROUNDS)
    assert found["broken_promise"] == "" and found["left_by_probe"] == {}
    assert [each["won"].count(True) for each in found["rounds"]] == [1] * NUM_ROUNDS
    assert [each["won"].index(True) for each in found["rounds"]] == [
        each["there"] for each in found["rounds"]
    ]


def test_a_store_that_ignores_the_condition_is_told(tmp_path: Path) -> None:
    with servers.gcp_storage_emulator(tmp_path) as store:
        found = run_alone(store, 0)
    assert found["broken_promise"].startswith("gs://images/x: this store let a second writer replace")
    assert NOT_PROMISED in found["broken_promise"] and "\n" not in found["broken_promise"]
    assert found["left_by_probe"] == {}


def test_a_store_without_a_condition_is_told(probe: Any) -> None:
    assert NOT_PROMISED in storage.find_broken_promise("probe://out")
    assert storage.list_files("probe://out") == {}


@pytest.mark.s3
def test_an_s3_server_that_ignores_the_header_is_told(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.find_broken_promise(s3_url) == ""
    filesystem, _ = storage.open_filesystem(s3_url)
    call_s3 = filesystem._call_s3

    async def call(method: str, *arguments: Any, **options: Any) -> Any:
        options.pop("IfNoneMatch", None)
        return await call_s3(method, *arguments, **options)

    monkeypatch.setattr(filesystem, "_call_s3", call)
    assert NOT_PROMISED in storage.find_broken_promise(s3_url)
    assert storage.list_files(s3_url) == {}
    # What is there for longer than an instant stays, all the same.
    url = storage.join(s3_url, "x")
    assert storage.publish_bytes(b"first", url, exclusive=True) is True
    assert storage.publish_bytes(b"second", url, exclusive=True) is False
    assert storage.read_bytes(url) == b"first"


def test_a_mount_without_hard_links_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert storage.find_broken_promise(str(tmp_path / "out")) == ""

    def refuse(source: str, target: str) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(promise.os, "link", refuse)
    told = storage.find_broken_promise(str(tmp_path / "out"))
    assert told.startswith(f"{tmp_path / 'out'}: this store has no hard links") and NOT_PROMISED in told
    assert os.listdir(tmp_path / "out") == []
