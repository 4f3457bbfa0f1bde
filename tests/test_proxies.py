"""Behind a proxy: this machine is reached directly, and what fails names the proxy."""

from __future__ import annotations

import os
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tatok_pipe import storage
from tatok_pipe.commands.demo import server as demo_server
from tatok_pipe.storage.proxies import proxy_of, spare_loopback

NAMES = [f"{kind}_proxy" for kind in ("http", "https", "all", "no")]


@pytest.fixture(autouse=True)
def no_proxy_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in NAMES:
        for spelled in (name, name.upper()):
            monkeypatch.setenv(spelled, "")  # so that what the test writes is undone
            monkeypatch.delenv(spelled)
    yield


@pytest.fixture
def proxy() -> Iterator[tuple[str, list[bytes]]]:
    """A proxy that refuses everything, and what it was asked."""
    asked: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        is_over = threading.Event()

        def serve() -> None:
            while not is_over.is_set():
                try:
                    connection, _ = server.accept()
                except TimeoutError:
                    continue
                with connection:
                    asked.append(connection.recv(4096).split(b"\r\n")[0])
                    connection.sendall(
                        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
                    )

        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}", asked
        is_over.set()
        thread.join()


def test_loopback_is_added_to_what_is_spared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "internal.example,127.0.0.1")
    spare_loopback()
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "internal.example,127.0.0.1,localhost,::1"
    # What Python's own client makes of it.
    spared = {
        host: bool(urllib.request.proxy_bypass(host)) for host in ("127.0.0.1:80", "localhost", "example.org")
    }
    assert spared == {"127.0.0.1:80": True, "localhost": True, "example.org": False}


@pytest.mark.parametrize("name", ["http_proxy", "HTTPS_PROXY"])
def test_where_all_hosts_are_spared_or_no_proxy_is_set_nothing_changes(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    spare_loopback()
    assert "NO_PROXY" not in os.environ and "no_proxy" not in os.environ
    monkeypatch.setenv(name, "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "*")
    spare_loopback()
    assert os.environ["NO_PROXY"] == "*" and "no_proxy" not in os.environ


def test_the_proxy_of_a_url_without_its_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://me:secret@proxy:3128")
    monkeypatch.setenv("no_proxy", "internal.example")
    assert proxy_of("https://s3.amazonaws.com") == "http://proxy:3128"
    assert proxy_of("http://s3.amazonaws.com") == proxy_of("https://internal.example/a") == proxy_of("") == ""


@pytest.mark.s3
def test_the_demo_server_starts_behind_a_proxy(
    proxy: tuple[str, list[bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = proxy
    monkeypatch.setenv("HTTP_PROXY", url)
    monkeypatch.setenv("http_proxy", url)
    with demo_server.s3_server(tmp_path):
        assert not asked


def test_a_failed_request_names_the_proxy_that_it_went_through(
    proxy: tuple[str, list[bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, asked = proxy
    monkeypatch.setenv("http_proxy", url)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.example")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(Exception, match=f"through the proxy {url} ") as caught:
        storage.read_bytes("s3://proxied/x")
    assert "\n" not in str(caught.value)
    assert any(b"store.example" in line for line in asked)
