"""A RAY_ADDRESS where no Ray answers is told in a line, soon."""

from __future__ import annotations

import socket
import threading

import pytest

from tatok_pipe.errors import UserError
from tatok_pipe.ray_runtime import address


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_TRY_FOR_S", 0.0)


def test_a_port_that_nobody_listens_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        where = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(UserError, match=f"RAY_ADDRESS={where}: nothing answers there .Connection refused."):
        address.check_answers(where)


@pytest.mark.parametrize(
    ("answer", "is_ray"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", False),
        # An empty SETTINGS frame, and one with a setting, as RFC 9113, 6.5 has them.
        (bytes.fromhex("000000040000000000"), True),
        (bytes.fromhex("000006040000000000000300000064"), True),
    ],
)
def test_what_answers_has_to_speak_grpc(answer: bytes, is_ray: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(100)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        where = f"127.0.0.1:{server.getsockname()[1]}"
        if is_ray:
            address.check_answers(where)
        else:
            with pytest.raises(UserError, match="what answers there is no Ray cluster"):
                address.check_answers(where)
        thread.join()


@pytest.mark.parametrize("other", ["auto", "local", "ray://127.0.0.1:1"])
def test_other_forms_are_left_to_ray(other: str) -> None:
    address.check_answers(other)


@pytest.mark.parametrize(
    ("where", "is_known"),
    [
        ("10.0.0.7:6379", True),
        ("head.cluster:6379", True),
        ("[fd00::7]:6379", True),
        ("127.0.0.1:6379", False),
        ("localhost:6379", False),
        ("[::1]:6379", False),
        ("auto", False),
        ("ray://10.0.0.7:10001", False),
    ],
)
def test_which_addresses_mean_the_same_on_every_node(where: str, is_known: bool) -> None:
    assert address.is_known_on_all_nodes(where) == is_known
