"""Asking a store again while its error may pass, and telling in one line what it said where it does not."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from typing import TypeVar

from tatok_pipe.errors import UserError, mark_outside_cause
from tatok_pipe.storage.advice import explain
from tatok_pipe.storage.faults import Fault, LastingError, find_fault, lacks_credentials
from tatok_pipe.storage.settings import protocol_of
from tatok_pipe.storage.urls import is_s3, open_filesystem, redact, user_info

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

NUM_ATTEMPTS = 5
# Of drivers that have tried for half a minute and more by themselves before they say no; the hub's does so where it
# gets no answer, in some of its calls.
NUM_PATIENT_ATTEMPTS = 2
_PATIENT = ("az", "gs")
_PATIENT_WHERE_SILENT = ("hf",)
_LONG_SILENCE_S = 60.0
FIRST_DELAY_S = 0.25
MAX_DELAY_S = 10.0
# The longest time that a store may ask one to wait for. Where it wants more, its word is told at once, and the same
# command goes on later.
MAX_ASKED_DELAY_S = 120.0


def call(
    action: Callable[[], Result],
    *,
    url: str,
    num_attempts: int = NUM_ATTEMPTS,
    pause: Callable[[float], object] = time.sleep,
) -> Result:
    """`action()`, tried again with exponential backoff while its error may pass, and not before the time that the store
    asks for (`Retry-After`), up to two minutes of it.

    Raises the last error with the URL in its message and what to do about it: an OSError of the same kind
    (FileNotFoundError, PermissionError, ...) and number, LastingError where none says more and it would be the same
    again, which entries show as one line; or UserError where credentials are missing. Errors that are not about storage
    pass through unchanged.
    """
    for attempt in range(1, num_attempts + 1):
        began = time.monotonic()
        try:
            return action()
        except Exception as error:
            fault = find_fault(error)
            if fault is None:
                raise
            if fault.is_mute and (told := _ask_why(url, fault)) is not None:
                error, fault = told
            was_long = time.monotonic() - began > _LONG_SILENCE_S
            patient = (*_PATIENT, *_PATIENT_WHERE_SILENT) if was_long else _PATIENT
            is_patient = not fault.is_local and protocol_of(url) in patient
            most = min(num_attempts, NUM_PATIENT_ATTEMPTS) if is_patient else num_attempts
            if attempt >= most or not fault.passes or fault.wait_s > MAX_ASKED_DELAY_S:
                raise _named(error, fault, url) from error
            # Jitter keeps the actors that met one outage from returning all at once.
            delay_s = min(FIRST_DELAY_S * 2 ** (attempt - 1), MAX_DELAY_S) * random.uniform(0.5, 1.0)
            delay_s += fault.wait_s
            logger.warning("%s: %s; attempt %d of %d", redact(url), redact(fault.text), attempt, most)
            pause(delay_s)
    raise ValueError(f"num_attempts={num_attempts}: expected at least 1")


def _ask_why(url: str, fault: Fault) -> tuple[Exception, Fault] | None:
    """The error of a GET of `url`, where it fails as the HEAD before it did."""
    filesystem, path = open_filesystem(url)
    if not is_s3(filesystem) or "/" not in path:
        return None
    try:
        filesystem.cat_file(path, start=0, end=1)
    except Exception as error:
        told = find_fault(error)
        if told is not None and told.status == fault.status and told.code:
            return error, told
    return None


def _named(error: Exception, fault: Fault, url: str) -> Exception:
    secret = user_info(url)
    text = explain(error, fault, url)
    text = f"{redact(url)}: {redact(text.replace(secret, '***') if secret else text)}"
    if lacks_credentials(fault):
        return UserError(text)
    named = (LastingError if fault.kind is OSError and not fault.passes else fault.kind)(text)
    named.errno = getattr(error, "errno", None)
    return mark_outside_cause(named)
