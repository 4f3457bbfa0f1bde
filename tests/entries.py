"""An entry called in this process: what a user is told, without the seconds that a process takes to start."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence

import pytest

from tatok_pipe.errors import UserError


def assert_told(
    main: Callable[[list[str]], int | None], argv: Sequence[str], message: str, *, code: int = 2
) -> None:
    """`main` ends with an error for the user: one line that `message` (regular expression) is found in."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with pytest.raises(UserError, match=message) as caught:
            main(list(argv))
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert caught.value.exit_code == code
    assert "\n" not in str(caught.value)


def error_lines(stderr: str) -> list[str]:
    """What a command told on stderr, but for the line that it has begun, which comes where the machine is slow."""
    return [line for line in stderr.splitlines() if not line.endswith(": starting")]
