"""What a user can be told in one line. Entries print the message and leave with `exit_code`; no traceback."""

from __future__ import annotations

EXIT_DONE = 0
EXIT_FAILED_SHARDS = 1
EXIT_USAGE = 2
EXIT_REFUSED = 3
EXIT_INTERRUPTED = 4
EXIT_INTERNAL = 70  # a bug, shown with its traceback (EX_SOFTWARE of sysexits.h)


class UserError(Exception):
    """A mistake in what was given. The message says what was given, what was expected and what to do."""

    exit_code = EXIT_USAGE


class RefusedError(UserError):
    """The output belongs to another tokenizer, other settings or another job that lives; going on would mix them."""

    exit_code = EXIT_REFUSED


def mark_outside_cause(error: OSError) -> OSError:
    """Mark an error as one of the world and not of this program, whose message is all that there is to know: a store
    that does not answer, a full disk. Entries show it as they show a UserError."""
    error.has_outside_cause = True  # type: ignore[attr-defined]
    return error


def has_outside_cause(error: BaseException) -> bool:
    return getattr(error, "has_outside_cause", False)
