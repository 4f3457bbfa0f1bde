"""Manifests of images on web servers: what is asked for when, and what becomes of those that are not served."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tatok_pipe import storage
from tatok_pipe.images.limits import ShardLimits
from tatok_pipe.images.loose import part_reader, web_hosts
from tatok_pipe.images.loose.web_hosts import HostUnreachable, WebHosts
from tatok_pipe.images.source import shard_info
from tatok_pipe.records import ImageSample, Quarantined
from tests.images.manifests import contents, plan, read, refusal, write_lines
from tests.storage.web import WebServer


@pytest.fixture(autouse=True)
def hosts(monkeypatch: pytest.MonkeyPatch) -> WebHosts:
    """A process that has seen no server yet."""
    monkeypatch.setattr(part_reader, "_hosts", fresh := WebHosts())
    return fresh


class Mute:
    """A server that takes connections and says nothing; `connections` counts them."""

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        self.connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def _accept(self) -> None:
        while True:
            try:
                self.connections.append(self._socket.accept()[0])
            except OSError:
                return

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()
        for each in self.connections:
            each.close()


@contextmanager
def mute() -> Iterator[Mute]:
    server = Mute()
    try:
        yield server
    finally:
        server.close()


def refusing() -> str:
    """The URL of a port where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def test_a_web_server(tmp_path: Path) -> None:
    files = {"/photos/a.jpg": b"an image", "/b": b"AN IMAGE", "/big.jpg": bytes(1000)}
    with WebServer(files) as server:
        rows = ["photos/a.jpg", "b?x=1", "gone.jpg", "big.jpg"]
        manifest = write_lines(tmp_path / "m.jsonl", [{"url": f"{server.url}/{row}"} for row in rows])
        told = refusal(manifest, tmp_path)
        assert told == (
            f"4 of 4 images are in another store than the manifest, first row 1: {server.url}/photos/a.jpg; "
            "input.other_stores=true opens them"
        )
        (shard,) = plan(manifest, tmp_path, size=9, other_stores=True)
        assert server.requests == []
        assert len(shard.etag) == 32 and shard_info(shard.url) == storage.SourceInfo(0, shard.etag)
        host = server.url.removeprefix("http://")
        limits = ShardLimits(max_member_bytes=999)
        found = {each.key.removeprefix(host): each for each in read(shard, limits=limits)}
        images = {key: each.image for key, each in found.items() if isinstance(each, ImageSample)}
        assert images == {"/photos/a": b"an image", "/b?x=1": b"AN IMAGE"}
        errors = {key: each.error for key, each in found.items() if isinstance(each, Quarantined)}
        assert errors == {"/gone": "NotFound", "/big": "TooManyBytes"}
        gone = found["/gone"]
        assert (
            isinstance(gone, Quarantined)
            and f"{server.url}/gone.jpg" in gone.message
            and "404" in gone.message
        )

        # What passes is tried again; what does not is true of that image.
        for statuses, expected in (
            ([503, 0], None),
            ([403], "NotServed"),
            ([410], "NotFound"),
            ([451], "NotServed"),
        ):
            server.statuses = list(statuses)
            one = write_lines(tmp_path / "one.jsonl", [{"url": f"{server.url}/b"}])
            (shard,) = plan(one, tmp_path / str(statuses), other_stores=True)
            (sample,) = read(shard)
            assert (sample.error if isinstance(sample, Quarantined) else None) == expected
        server.coding = "gzip"
        (sample,) = read(shard)
        assert isinstance(sample, Quarantined) and "sends the file compressed" in sample.message


def test_a_manifest_on_a_web_server(tmp_path: Path) -> None:
    lines = b'{"url": "a b.jpg"}\n{"url": "/etc/hosts"}\n'
    with WebServer({"/p/m.jsonl": lines, "/p/n.jsonl": lines[:19], "/p/a%20b.jpg": b"an image"}) as server:
        told = refusal(f"{server.url}/p/m.jsonl", tmp_path)
        assert told.startswith(
            "1 of 2 images are in another store than the manifest, first row 2: /etc/hosts; "
        )
        (shard,) = plan(f"{server.url}/p/n.jsonl", tmp_path)
        assert contents([shard]) == {"a b": (None, None)}


def test_a_link_that_is_signed_anew_is_the_same(tmp_path: Path) -> None:
    shards = []
    for signature in ("one", "two"):
        row = {"url": f"https://host/a.jpg?Signature={signature}&x=1"}
        shards += plan(write_lines(tmp_path / "m.jsonl", [row]), tmp_path / "out", other_stores=True)
    assert shards[0].etag == shards[1].etag
    other = write_lines(tmp_path / "m.jsonl", [row | {"caption": "new"}])
    assert plan(other, tmp_path / "out", other_stores=True)[0].etag != shards[0].etag


SHORT = ShardLimits(max_silence_s=0.3)


def test_servers_that_are_gone(tmp_path: Path) -> None:
    """A few requests tell of all of their images, and the others are read."""
    with WebServer({f"/{number}": b"image" for number in range(40)}) as server, mute() as silent:
        dead = refusing()
        gone = (dead, silent.url, "http://no-such-host.invalid")
        urls = [f"{server.url}/{number}" for number in range(40)]
        urls += [f"{host}/{number}.jpg" for number in range(100) for host in gone]
        rows = [{"url": url, "key": f"{number:03d}"} for number, url in enumerate(urls)]
        (shard,) = plan(write_lines(tmp_path / "m.jsonl", rows), tmp_path, size=999, other_stores=True)
        begin = time.monotonic()
        found = read(shard, limits=SHORT)
        assert time.monotonic() - begin < 20
        assert len(silent.connections) <= 16  # those under way at once, twice each
        assert sum(isinstance(each, ImageSample) for each in found) == 40
        told = {each.message: each.error for each in found[40:] if isinstance(each, Quarantined)}
        assert len(found) == 340 and told == {
            f"{dead}: it refuses connections": "HostUnreachable",
            f"{silent.url}: it does not answer in time": "HostUnreachable",
            "http://no-such-host.invalid: no address is found for its name": "HostUnreachable",
        }
        # The next part knows it.
        before = len(silent.connections)
        again = read(shard, limits=SHORT)
        assert [each.key for each in again] == [each.key for each in found] and again[40:] == found[40:]
        assert len(silent.connections) == before


def test_a_part_of_which_no_server_answers_fails(tmp_path: Path) -> None:
    dead = refusing()
    rows = [{"url": f"{dead}/{number}.jpg"} for number in range(3)]
    (shard,) = plan(write_lines(tmp_path / "m.jsonl", rows), tmp_path, size=9, other_stores=True)
    with pytest.raises(OSError, match=f"m.jsonl#000000: none of its web servers answers, {dead}: it refuses"):
        read(shard, limits=SHORT)


def test_a_network_that_is_gone_is_no_word_of_its_servers(tmp_path: Path) -> None:
    hosts, files = WebHosts(), {"/a": b"image"}
    with WebServer(files, length=False) as server:  # each connection is for one answer
        assert hosts.read(f"{server.url}/a", 9, silence_s=1) == b"image"
    with pytest.raises(OSError, match="Cannot connect to host"):  # the other one is gone as well
        hosts.read(f"{refusing()}/a", 9, silence_s=1)
    with pytest.raises(OSError, match="Cannot connect to host"):  # nobody else is known
        hosts.read(f"{server.url}/a", 9, silence_s=1)
    with WebServer(files) as other:
        assert hosts.read(f"{other.url}/a", 9, silence_s=1) == b"image"
        with pytest.raises(HostUnreachable, match="it refuses connections"):
            hosts.read(f"{server.url}/a", 9, silence_s=1)


def test_a_server_that_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    hosts = WebHosts(clock=lambda: now[0], forget_after_s=10)
    with WebServer({"/a": b"image"}) as other, WebServer({"/a": b"image"}) as server:
        assert hosts.read(f"{other.url}/a", 9, silence_s=1) == b"image"
        server.statuses = [522] * web_hosts.NUM_FIRST_ATTEMPTS
        for _ in range(2):
            with pytest.raises(HostUnreachable, match="the proxy in front of it answers 522"):
                hosts.read(f"{server.url}/a", 9, silence_s=1)
        assert len(server.requests) == web_hosts.NUM_FIRST_ATTEMPTS
        now[0] = 11.0
        assert hosts.read(f"{server.url}/a", 9, silence_s=1) == b"image"
        # One that answers, whatever it says, is there, and is asked as often as any store.
        server.statuses = [503, 503, 503]
        assert hosts.read(f"{server.url}/a", 9, silence_s=1) == b"image"
        with pytest.raises(FileNotFoundError):
            hosts.read(f"{server.url}/b", 9, silence_s=1)


def test_an_address_names_its_server() -> None:
    for url in ("http://Host:80/a/b?c", "http://user:secret@host:80/a", "http://host:80?x", "http://host:80"):
        assert web_hosts.host_of(url) == "http://host:80"
