"""A web server on loopback that serves bytes as good servers do, and as others do.

with WebServer({"/a.tar": data}, ranges=False) as server:
    storage.read_bytes(f"{server.url}/a.tar")
assert server.bytes_sent["GET"] < …
"""

from __future__ import annotations

import gzip
import re
import socket
import struct
from collections import Counter

from .loopback import LoopbackServer, QuietHandler

_PIECE_BYTES = 1 << 16


class WebServer(LoopbackServer):
    """`files` by path. The other arguments say what is unusual of it, and may be set at any time."""

    def __init__(
        self,
        files: dict[str, bytes],
        *,
        ranges: bool = True,
        says_ranges: bool | None = None,  # Accept-Ranges, whatever is true; None: as it is
        head: int = 200,  # the status of HEAD where the file is there
        length: bool = True,  # Content-Length
        coding: str = "",  # Content-Encoding that every file comes in, wanted or not
        redirect: str = "",  # a prefix that every path is sent on to first
        etag: bool = True,
        shift: int = 0,  # a range begins so much later than was asked for
    ) -> None:
        self.files = files
        self.ranges, self.says_ranges, self.head, self.length = ranges, says_ranges, head, length
        self.coding, self.redirect, self.etag, self.shift = coding, redirect, etag, shift
        self.statuses: list[int] = []  # to answer the next requests with, 0 for a reset connection
        self.cut_after: list[int] = []  # body bytes after which the next answers to GET end
        self.after_cuts: dict[str, bytes] | None = None  # the files from the last of `cut_after` on
        self.requests: list[tuple[str, str, str]] = []  # method, path, Range
        self.bytes_sent: Counter[str] = Counter()
        super().__init__(_Handler)


class _Handler(QuietHandler):
    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (BrokenPipeError, ConnectionResetError):  # a client that has seen enough
            self.close_connection = True

    def _answer(self) -> None:
        world: WebServer = getattr(self.server, "world")  # noqa: B009
        asked = self.headers.get("Range", "")
        world.requests.append((self.command, self.path, asked))
        if world.statuses and (status := world.statuses.pop(0)) != 200:
            return self._reset() if status == 0 else self._send(status, {}, b"")
        path = self.path.partition("?")[0]
        if world.redirect and not path.startswith(world.redirect):
            return self._send(302, {"Location": world.redirect + self.path}, b"")
        data = world.files.get(path.removeprefix(world.redirect))
        if data is None:
            return self._send(404, {}, b"no such page")
        if self.command == "HEAD" and world.head != 200:
            return self._send(world.head, {}, b"")
        headers = {"ETag": f'"{len(data)}-{hash(data) & 0xFFFF}"'} if world.etag else {}
        says_ranges = world.ranges if world.says_ranges is None else world.says_ranges
        headers["Accept-Ranges"] = "bytes" if says_ranges else "none"
        if world.coding:
            return self._send(200, headers | {"Content-Encoding": world.coding}, gzip.compress(data))
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", asked)
        if not (world.ranges and found and self.command == "GET"):
            return self._send(200, headers, data)
        start, stop = int(found[1]) + world.shift, int(found[2]) + 1 + world.shift
        if start >= len(data):
            return self._send(416, {"Content-Range": f"bytes */{len(data)}"}, b"")
        part = data[start:stop]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(data)}"
        return self._send(206, headers, part)

    def _send(self, status: int, headers: dict[str, str], body: bytes) -> None:
        world: WebServer = getattr(self.server, "world")  # noqa: B009
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if world.length or status not in (200, 206):
            self.send_header("Content-Length", str(len(body)))
        else:
            self.close_connection = True
        self.end_headers()
        if self.command == "HEAD":
            return
        if status in (200, 206) and world.cut_after and len(body) > world.cut_after[0]:
            body, self.close_connection = body[: world.cut_after.pop(0)], True
            if not world.cut_after and world.after_cuts is not None:
                world.files = world.after_cuts
        for start in range(0, len(body), _PIECE_BYTES):
            self.wfile.write(body[start : start + _PIECE_BYTES])
            world.bytes_sent[self.command] += len(body[start : start + _PIECE_BYTES])

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        raise ConnectionResetError
