"""A server on loopback that answers every request as a test says: for what a store says that no store at hand says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .loopback import LoopbackServer, QuietHandler


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]


Answer = Callable[[Request], tuple[int, dict[str, str], bytes]]


class AnsweringServer(LoopbackServer):
    """Answers with status, headers and body that `answer` gives; no body goes with an answer to HEAD."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.requests: list[Request] = []
        super().__init__(_Handler)


class _Handler(QuietHandler):
    def do_GET(self) -> None:
        world: AnsweringServer = getattr(self.server, "world")  # noqa: B009
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, dict(self.headers))
        world.requests.append(request)
        status, headers, body = world.answer(request)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_POST = do_GET
