"""An HTTP proxy in front of an S3 server that loses, cuts, delays and refuses requests, by seed or by a test's hook.

with FaultProxy(server.endpoint_url, Faults(slow_down=0.05, seed=1)) as proxy:
    subprocess.run(command, env={**os.environ, **server.environment(), "AWS_ENDPOINT_URL": proxy.endpoint_url})
    assert proxy.injected["slow_down"]

Requests arrive at the server as the client wrote them, Host included, since the client's signature covers it.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import random
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urlsplit

_PIECE_BYTES = 4096  # small, so that a hook sees even a small body come in steps
_HEAD_BYTES = 1 << 16
_SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?>\n'
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
)

# Called with (method, path, share of the request's body that came, 0 to 1) when the head of a request is there
# and after every piece of its body, before that piece goes on to the server. "cut" ends the connections to both
# sides: the server gets no more of the body. Anything else lets the request go on.
Hook = Callable[[str, str, float], Literal["cut"] | None]


@dataclass(frozen=True)
class Faults:
    """Shares of requests, 0 to 1, and what happens to them; at most one of these to a request."""

    slow_down: float = 0.0  # 503 SlowDown, the server never sees the request
    reset_before: float = 0.0  # RST instead of an answer, the server never sees the request
    reset_within: float = 0.0  # RST in the middle of the answer's body
    truncated: float = 0.0  # the connection ends in order, in the middle of the answer's body
    lost_answer: float = 0.0  # of PUT, POST and DELETE: the server did it, the client gets RST for an answer
    latency_s: float = 0.0  # every request waits uniformly up to this long
    seed: int = 0

    def draw(self, method: str, path: str, attempt: int) -> tuple[str, float]:
        """What happens to this request ("" for nothing) and how long it waits: the same whatever runs beside."""
        dice = random.Random(f"{self.seed} {method} {path} {attempt}")
        point, wait = dice.random(), dice.random() * self.latency_s
        for kind in KINDS:
            share = getattr(self, kind)
            if point < share:
                return kind, wait
            point -= share
        return "", wait


KINDS = ("slow_down", "reset_before", "reset_within", "truncated", "lost_answer")


@dataclass
class Exchange:
    """One request as the proxy saw it. `status` is 0 where the server was not asked or did not answer."""

    method: str
    path: str  # without the query
    status: int = 0
    fault: str = ""


@dataclass
class _Head:
    start: str
    headers: list[tuple[str, str]] = field(default_factory=list)

    def get(self, name: str) -> str:
        return next((value for key, value in self.headers if key.lower() == name), "")

    def without(self, name: str) -> bytes:
        lines = [self.start, *(f"{key}: {value}" for key, value in self.headers if key.lower() != name)]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")

    @property
    def framing(self) -> int | Literal["chunked"] | None:
        """Bytes of the body, or "chunked"; None where neither is said."""
        if "chunked" in self.get("transfer-encoding").lower():
            return "chunked"
        length = self.get("content-length")
        return int(length) if length else None


class _Reset(Exception):
    """The client's connection is to be ended with RST."""


class FaultProxy:
    """A proxy on a port of its own on 127.0.0.1, served by a thread from `with` to the end of the block.

    `faults` and `on_request` may be set at any time. `injected` counts faults by kind, `exchanges` lists all
    requests; "cut" counts what the hook cut.
    """

    def __init__(
        self, upstream_url: str, faults: Faults | None = None, *, on_request: Hook | None = None
    ) -> None:
        upstream = urlsplit(upstream_url)
        self._upstream = (upstream.hostname or "127.0.0.1", upstream.port or 80)
        self.faults = faults or Faults()
        self.on_request = on_request
        self.injected: Counter[str] = Counter()
        self.exchanges: list[Exchange] = []
        self._attempts: Counter[tuple[str, str]] = Counter()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.endpoint_url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self._serve(),), daemon=True
        )

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(timeout=10)
        self._loop.close()

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._client, sock=self._listener, limit=_HEAD_BYTES)
        await self._stop.wait()
        server.close()
        mine = asyncio.current_task()
        tasks = [task for task in asyncio.all_tasks() if task is not mine]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._exchange(reader, writer):
                pass
        except _Reset:
            # No lingering: the socket then closes with RST instead of FIN.
            no_lingering = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, no_lingering)
            writer.transport.abort()
        except (OSError, EOFError):
            pass  # the client or the server went away; so do we
        finally:
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection can take another one."""
        head = await _read_head(reader)
        if head is None:
            return False
        method, target, _ = head.start.split(" ", 2)
        path = target.partition("?")[0]
        exchange = Exchange(method, path)
        self.exchanges.append(exchange)
        self._attempts[method, target] += 1
        kind, wait = self.faults.draw(method, target, self._attempts[method, target])
        self._ask_hook(exchange, 0.0)
        await asyncio.sleep(wait)
        if kind == "slow_down":
            # A client that waits for 100-continue has sent no body yet; another one is sending it already.
            if head.get("expect").lower() != "100-continue":
                async for _ in _read_body(reader, head.framing or 0):
                    pass
            self._count(exchange, kind)
            await _send(writer, _refusal(with_body=method != "HEAD"))
            return False
        if kind == "reset_before":
            self._count(exchange, kind)
            raise _Reset
        return await self._forward(head, exchange, kind, reader, writer)

    async def _forward(
        self,
        head: _Head,
        exchange: Exchange,
        kind: str,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        from_server, to_server = await asyncio.open_connection(*self._upstream, limit=_HEAD_BYTES)
        try:
            if head.get("expect").lower() == "100-continue":
                await _send(writer, b"HTTP/1.1 100 Continue\r\n\r\n")
            await _send(to_server, head.without("expect"))
            total = head.framing if isinstance(head.framing, int) else 0
            num_bytes = 0
            async for piece in _read_body(reader, head.framing or 0):
                num_bytes += len(piece)
                self._ask_hook(exchange, num_bytes / total if total else 0.5)
                await _send(to_server, piece)

            answer = await _read_head(from_server)
            if answer is None:
                return False
            exchange.status = int(answer.start.split(" ", 2)[1])
            if kind == "lost_answer" and exchange.method in ("PUT", "POST", "DELETE"):
                self._count(exchange, kind)
                raise _Reset
            framing = answer.framing
            if exchange.method == "HEAD" or exchange.status in (204, 304):
                framing = 0
            await _send(writer, answer.without("connection"))
            if kind in ("reset_within", "truncated") and isinstance(framing, int) and framing > 1:
                async for piece in _read_body(from_server, framing // 2):
                    await _send(writer, piece)
                self._count(exchange, kind)
                if kind == "reset_within":
                    raise _Reset
                return False
            # An answer that names no length ends with the connection.
            async for piece in _read_body(from_server, framing):
                await _send(writer, piece)
            return framing is not None and head.get("connection").lower() != "close"
        finally:
            to_server.close()

    def _ask_hook(self, exchange: Exchange, progress: float) -> None:
        if self.on_request is not None and self.on_request(exchange.method, exchange.path, progress) == "cut":
            self._count(exchange, "cut")
            raise _Reset

    def _count(self, exchange: Exchange, kind: str) -> None:
        exchange.fault = kind
        self.injected[kind] += 1


async def _read_head(reader: asyncio.StreamReader) -> _Head | None:
    """The start line and headers of a message; None where the connection ended before one."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    start, *lines = raw.decode("latin-1").rstrip("\r\n").split("\r\n")
    head = _Head(start)
    for line in lines:
        name, _, value = line.partition(":")
        head.headers.append((name, value.strip()))
    return head


async def _read_body(
    reader: asyncio.StreamReader, framing: int | Literal["chunked"] | None
) -> AsyncIterator[bytes]:
    """The body as it is on the wire, chunk headers included. None reads to the end of the connection."""
    if framing is None:
        while piece := await reader.read(_PIECE_BYTES):
            yield piece
    elif framing == "chunked":
        size = -1
        while size:
            line = await reader.readuntil(b"\r\n")
            yield line
            size = int(line.split(b";")[0], 16)
            async for piece in _read_body(reader, size + 2 if size else 0):
                yield piece
        while line != b"\r\n":  # trailers, and the empty line behind them
            line = await reader.readuntil(b"\r\n")
            yield line
    else:
        while framing:
            piece = await reader.read(min(framing, _PIECE_BYTES))
            if not piece:
                raise EOFError
            framing -= len(piece)
            yield piece


async def _send(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


def _refusal(*, with_body: bool) -> bytes:
    body = _SLOW_DOWN if with_body else b""
    return (
        b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\nContent-Length: "
        + str(len(body)).encode()
        + b"\r\n\r\n"
        + body
    )


def measure_latency_s(endpoint_url: str, *, num_requests: int = 20) -> float:
    """Median time of a small anonymous request, which the server answers with a refusal."""
    where = urlsplit(endpoint_url)
    times = []
    for _ in range(num_requests):
        start = time.monotonic()
        with contextlib.closing(http.client.HTTPConnection(where.netloc, timeout=10)) as connection:
            connection.request("GET", "/")
            connection.getresponse().read()
        times.append(time.monotonic() - start)
    return sorted(times)[num_requests // 2]
