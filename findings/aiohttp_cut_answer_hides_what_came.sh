#!/usr/bin/env bash
# One would guess: where a web server breaks off in the middle of a file, a client reads what has come, and then meets the
# error.
# What is so (aiohttp 3.14.5): the error comes first. As soon as the loop has seen the connection end before
# Content-Length, content.read() raises ClientPayloadError, however many bytes wait in its buffer; only who reads before
# that has them. So a reader that is slower than the network loses all that it has not taken yet.
# Why it matters here: a shard from a server without ranges is one download, begun anew after an error with what was taken
# before passed over. How far the first one got depends on who was faster, the network or the decoding, and not on what the
# server sent; so nothing may count on where a broken download stops, and the version of the file is looked at in every
# new one.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q aiohttp==3.14.5 2>/dev/null
"$folder/venv/bin/python" - <<'PYTHON'
import asyncio

import aiohttp

SENT, DECLARED = 50_000, 1_000_000


async def serve(reader, writer):
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % DECLARED + bytes(SENT))
    await writer.drain()
    writer.close()


async def read(url, wait_s):
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        await asyncio.sleep(wait_s)
        buffered = answer.content.total_bytes
        taken = 0
        try:
            while piece := await answer.content.read(1000):
                taken += len(piece)
        except aiohttp.ClientPayloadError as error:
            return buffered, taken, type(error).__name__
    return buffered, taken, "no error"


async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = "http://127.0.0.1:%d/0.tar" % server.sockets[0].getsockname()[1]
    buffered, taken, error = await read(url, 1.0)
    print("aiohttp", aiohttp.__version__)
    print(f"a reader that waits: {buffered} bytes have come, {taken} were given, {error}")
    server.close()
    assert (buffered, taken, error) == (SENT, 0, "ClientPayloadError"), "not so any more"


asyncio.run(main())
PYTHON
