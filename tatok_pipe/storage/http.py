"""Files of a web server: what it tells of them, byte ranges where it gives them, else the whole file as one stream.

fsspec's HTTP driver reads whatever comes: from a server that ignores `Range` the whole file for every range asked for.
Here the answer's head is looked at first, and no more is read than was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fsspec.asyn import sync

from tatok_pipe.storage.faults import LastingError

if TYPE_CHECKING:
    import aiohttp  # a fifth of a second, which only a file of a web server is worth

Result = TypeVar("Result")

_NO_RANGES = "the server gave the whole file where a part of it was asked for (it ignores Range)"
_PIECE_BYTES = 1 << 20
_CONNECT_S, _SILENCE_S = 30, 60  # a stream may take hours; only a server that is silent is given up


class RangesIgnored(LastingError):
    """The server answered a request for a part of the file with the file."""


def file_entry(filesystem: Any, url: str) -> dict[str, Any]:
    """What the server tells of the file at `url`, as fsspec's `info`; the size is None where it tells none.

    Raises FileNotFoundError, aiohttp's ClientError, and LastingError where the file would come compressed.
    """

    async def ask() -> dict[str, Any]:
        async with await _request(filesystem, "HEAD", url, {}) as answer:
            if answer.ok and _length(answer.headers) is not None:
                return _entry(url, answer, _length(answer.headers))
        # Signed links and small servers know GET alone, and their answers to HEAD are no reasons.
        async with await _request(filesystem, "GET", url, {"Range": "bytes=0-0"}) as answer:
            size = _size_in_range(answer.headers)
            if answer.status == 416 and size == 0:
                return _entry(url, answer, 0)
            _check(answer, url)
            return _entry(url, answer, size if answer.status == 206 else _length(answer.headers))

    return _run(filesystem, ask)


def gives_ranges(filesystem: Any, url: str) -> bool:
    """Whether the server answers a request for a part of the file at `url` with that part."""

    async def ask() -> bool:
        async with await _request(filesystem, "GET", url, {"Range": "bytes=0-0"}) as answer:
            _check(answer, url)
            return answer.status == 206

    return _run(filesystem, ask)


def read_range(filesystem: Any, url: str, start: int, stop: int) -> bytes:
    """The bytes [start, stop) of the file; fewer where the answer ends early. Raises RangesIgnored."""

    async def read() -> bytes:
        async with await _request(filesystem, "GET", url, {"Range": f"bytes={start}-{stop - 1}"}) as answer:
            _check(answer, url)
            if answer.status != 206:
                if start or (_length(answer.headers) or stop + 1) > stop:
                    raise RangesIgnored(_NO_RANGES)
            elif (told := answer.headers.get("Content-Range", "")) and not told.startswith(f"bytes {start}-"):
                raise OSError(f"asked for bytes {start}-{stop - 1}, and the server gave {told}")
            return await _read(answer, stop - start)

    return _run(filesystem, read)


def read_tail(filesystem: Any, url: str, start: int, size_bytes: int) -> bytes:
    """The bytes from `start` on of a file of `size_bytes`. A server without ranges sends all of it; its end is kept."""
    if start == size_bytes:
        return b""
    try:
        return read_range(filesystem, url, start, size_bytes)
    except RangesIgnored:
        with Download(filesystem, url) as download:
            download.skip(start)
            return download.read(size_bytes - start)


class Download:
    """The whole file in one answer, read from its beginning to its end. For one thread, but for `close`. A server that
    is silent for `silence_s` is given up."""

    def __init__(self, filesystem: Any, url: str, *, silence_s: float | None = None) -> None:
        self._filesystem = filesystem
        self.position = 0

        async def start() -> aiohttp.ClientResponse:
            answer = await _request(filesystem, "GET", url, {}, silence_s)
            try:
                _check(answer, url)
            except BaseException:
                answer.close()
                raise
            return answer

        self._answer = _run(filesystem, start)
        told = (self._answer.headers.get(name, "") for name in ("ETag", "Last-Modified", "Content-Length"))
        self.version = tuple(told)  # another one after the file was changed, as far as the server tells

    def __enter__(self) -> Download:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, num_bytes: int) -> bytes:
        """The next `num_bytes`; fewer at the end."""
        data = _run(self._filesystem, lambda: _read(self._answer, num_bytes))
        self.position += len(data)
        return data

    def skip(self, num_bytes: int) -> None:
        stop = self.position + num_bytes
        while self.position < stop and self.read(min(_PIECE_BYTES, stop - self.position)):
            pass

    def close(self) -> None:
        # A response belongs to the thread of its loop, and a read of it may be under way there.
        self._filesystem.loop.call_soon_threadsafe(self._answer.close)


async def _request(
    filesystem: Any,
    method: str,
    url: str,
    headers: Mapping[str, str],
    silence_s: float | None = None,
) -> aiohttp.ClientResponse:
    from aiohttp import ClientTimeout

    session = await filesystem.set_session()
    options = dict(filesystem.kwargs)
    options["headers"] = {"Accept-Encoding": "identity", **options.get("headers", {}), **headers}
    connect_s, read_s = (_CONNECT_S, _SILENCE_S) if silence_s is None else (silence_s, silence_s)
    options.setdefault("timeout", ClientTimeout(total=None, sock_connect=connect_s, sock_read=read_s))
    return await session.request(method, filesystem.encode_url(url), allow_redirects=True, **options)


def _check(answer: aiohttp.ClientResponse, url: str) -> None:
    if answer.status in (404, 410):
        raise FileNotFoundError(f"the server has no such file ({answer.status})")
    answer.raise_for_status()
    coding = answer.headers.get("Content-Encoding", "identity")
    if coding not in ("", "identity"):
        raise LastingError(
            f"the server sends the file compressed (Content-Encoding: {coding}), although asked not to, so that its "
            "bytes and their number are not the file's; have it served as it is, or download it first"
        )


def _length(headers: Mapping[str, str]) -> int | None:
    if headers.get("Content-Encoding", "identity") not in ("", "identity"):
        return None
    text = headers.get("Content-Length", "")
    return int(text) if text.isdigit() else None


def _size_in_range(headers: Mapping[str, str]) -> int | None:
    text = headers.get("Content-Range", "").rpartition("/")[2]
    return int(text) if text.isdigit() else None


def _entry(url: str, answer: aiohttp.ClientResponse, size: int | None) -> dict[str, Any]:
    told = {name: value for name in ("ETag", "Last-Modified") if (value := answer.headers.get(name))}
    return {"name": url, "type": "file", "size": size, **told}


async def _read(answer: aiohttp.ClientResponse, num_bytes: int) -> bytes:
    pieces, missing = [], num_bytes
    while missing and (piece := await answer.content.read(min(missing, _PIECE_BYTES))):
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def _run(filesystem: Any, action: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    return cast(Result, sync(filesystem.loop, action))
