"""One training an output: a mark in its folder that its holder keeps changing, so that the mark of a dead one blocks
nobody. No clock of another machine is believed.
"""

from __future__ import annotations

import json
import logging
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tatok_pipe import storage
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.runs.this_process import machine_id, process_start

logger = logging.getLogger(__name__)

LEASE = "_in_use.json"
_BEAT_S = 10.0
_DEAD_AFTER_S = 45.0  # some beats, and the time that a busy store takes for them
_LOOK_S = 1.0


@contextmanager
def hold_output(
    url: str,
    stop: StopSignal,
    *,
    option: str = "output.url",
    beat_s: float = _BEAT_S,
    dead_after_s: float = _DEAD_AFTER_S,
) -> Iterator[None]:
    """Keep other runs of this kind from the output `url` while the block runs; `stop` is requested where one takes it
    all the same, because this process stood still for `dead_after_s`. `option` is what the user calls it.

    A mark of a process of this machine is believed as long as that process lives, any other as long as it changes: it
    is watched for up to `dead_after_s`. Raises RefusedError where the holder lives, UserError where the output cannot
    be written.
    """
    place, mine = storage.join(url, LEASE), _describe_self()
    _take(place, mine, option=option, output=storage.redact(url), dead_after_s=dead_after_s)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(beat_s):
            try:
                found = _read(place)
                if found and found.get("token") != mine["token"]:
                    logger.error("%s: another run has taken it; stopping", storage.redact(url))
                    stop.request()
                    return
                mine["beat"] += 1
                _write(place, mine, exclusive=False)
            except OSError as error:
                logger.warning("%s: not kept: %s", storage.redact(place), storage.redact(str(error)))

    thread = threading.Thread(target=beat, name="lease", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(beat_s)
        _release(place, mine["token"])


def _take(place: str, mine: dict[str, Any], *, option: str, output: str, dead_after_s: float) -> None:
    """Write the mark. Of several that find a dead one's at the same time one keeps it."""
    try:
        while not _write(place, mine, exclusive=True):
            found = _read(place)
            if found is None:
                continue  # it has just been given up
            if _is_alive(place, found, output=output, dead_after_s=dead_after_s):
                raise RefusedError(
                    f"{option}={output}: a run that lives writes there, process {found.get('process')} on "
                    f"{found.get('host')} since {found.get('since')}; wait for its end, or give another {option}"
                )
            _release(place, found.get("token"))
    except OSError as error:
        told = error.strerror or storage.redact(str(error))
        raise UserError(f"{option}={output}: cannot be written: {told}") from None


def _is_alive(place: str, found: dict[str, Any], *, output: str, dead_after_s: float) -> bool:
    if found.get("machine") and found.get("machine") == machine_id():
        return found.get("started") == process_start(int(found["process"]))
    logger.warning(
        "%s: marked as in use by process %s on %s; waiting up to %.0f s for a sign of life",
        output, found.get("process"), found.get("host"), dead_after_s,
    )  # fmt: skip
    deadline_s = time.monotonic() + dead_after_s
    while time.monotonic() < deadline_s:
        time.sleep(min(_LOOK_S, dead_after_s))
        now = _read(place)
        if now != found:
            return now is not None
    return False


def _release(place: str, token: object) -> None:
    """Remove the mark of this token; where it is another one's already, leave it."""
    try:
        found = _read(place)
        if found is not None and found.get("token") == token:
            storage.remove(place)
    except OSError as error:
        logger.warning("%s: not removed: %s", storage.redact(place), storage.redact(str(error)))


def _read(place: str) -> dict[str, Any] | None:
    """The mark; empty where it is none of ours, None where there is none."""
    try:
        found = json.loads(storage.read_bytes(place))
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _write(place: str, mark: dict[str, Any], *, exclusive: bool) -> bool:
    return storage.publish_bytes(json.dumps(mark).encode(), place, exclusive=exclusive)


def _describe_self() -> dict[str, Any]:
    return {
        "token": secrets.token_hex(8),
        "beat": 0,
        "host": socket.gethostname(),
        "process": os.getpid(),
        "machine": machine_id(),
        "started": process_start(os.getpid()),
        "since": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    }
