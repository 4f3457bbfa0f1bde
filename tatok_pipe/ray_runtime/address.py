"""Whether a Ray cluster answers at an address: Ray itself tries for minutes, and tells nothing meanwhile."""

from __future__ import annotations

import os
import re
import socket
import time

from tatok_pipe.errors import UserError

_CONNECT_S = 10.0
_TRY_FOR_S = 20.0  # a head that is just being started
_PAUSE_S = 1.0
# How an HTTP/2 client begins, as gRPC does; a server's first frame is of the type SETTINGS as well (RFC 9113, 3.4).
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
_SETTINGS = 4
_FRAME_HEAD = 9  # bytes: length, type, flags, stream


def check_answers(address: str) -> None:
    """Raise UserError where nothing, or nothing that speaks gRPC, answers at `HOST:PORT` within half a minute. Other
    forms of an address (`auto`, `local`, `ray://…`) pass: Ray itself is quick with those."""
    if (parts := _split(address)) is None:
        return
    host, port = parts
    until = time.monotonic() + _TRY_FOR_S
    while True:
        try:
            told = _greet(host, port)
        except (OSError, OverflowError) as error:
            told = f"nothing answers there ({getattr(error, 'strerror', None) or error})"
        if not told:
            return
        if time.monotonic() > until:
            raise UserError(
                f"RAY_ADDRESS={address}: {told}; expected HOST:PORT of a Ray cluster's head (its port is 6379 where "
                "nothing else was asked for), or no RAY_ADDRESS, for a Ray of this command's own"
            )
        time.sleep(_PAUSE_S)


def is_known_on_all_nodes(address: str) -> bool:
    """Whether `address` is `HOST:PORT` and means the same on every machine, unlike `auto` or the loopback."""
    parts = _split(address)
    return parts is not None and parts[0] != "localhost" and not re.fullmatch(r"127\..*|::1", parts[0])


def _split(address: str) -> tuple[str, int] | None:
    """Host and port of `HOST:PORT`; None for other forms."""
    host, _, port = address.rpartition(":")
    if not host or "/" in address or not port.isdigit():
        return None
    return host.strip("[]"), int(port)


def _greet(host: str, port: int) -> str:
    """What is wrong there; empty where a gRPC server answers."""
    with socket.create_connection((host, port), timeout=_CONNECT_S) as connection:
        if os.environ.get("RAY_USE_TLS", "0") not in ("", "0"):
            return ""
        connection.sendall(_HELLO)
        head = b""
        while len(head) < _FRAME_HEAD and (got := connection.recv(_FRAME_HEAD - len(head))):
            head += got
    return "" if len(head) == _FRAME_HEAD and head[3] == _SETTINGS else "what answers there is no Ray cluster"
