"""Which storage errors may pass, and trying again while they may."""

from __future__ import annotations

import errno
import logging
import random
import time
from collections.abc import Callable
from typing import Any, TypeVar

from tatok_pipe.errors import UserError, mark_outside_cause
from tatok_pipe.storage.urls import redact

Result = TypeVar("Result")

logger = logging.getLogger(__name__)

NUM_ATTEMPTS = 5
FIRST_DELAY_S = 0.25
MAX_DELAY_S = 10.0

_PERMANENT = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)
_PERMANENT_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.ENOSYS}
_TRANSIENT_STATUS = {408, 409, 425, 429}  # 409: another conditional write to the same key is under way
_TRANSIENT_CODES = {"RequestTimeout", "IncompleteBody", "BadDigest"}  # S3 answers these with 400
# Connection failures of botocore and aiohttp are no OSError. They are known by class name, so that reading a
# local file never imports an S3 client.
_TRANSIENT_NAMES = {
    "HTTPClientError",
    "ConnectionError",
    "ClientError",
    "ResponseStreamingError",
    "IncompleteReadError",
}
_CREDENTIAL_NAMES = {
    "NoCredentialsError",
    "PartialCredentialsError",
    "ProfileNotFound",
    "CredentialRetrievalError",
}


def call(
    action: Callable[[], Result],
    *,
    url: str,
    num_attempts: int = NUM_ATTEMPTS,
    pause: Callable[[float], object] = time.sleep,
) -> Result:
    """`action()`, tried again with exponential backoff while its error may pass.

    Raises the last error with the URL in its message: an OSError of the same kind (FileNotFoundError,
    PermissionError, ...) and number, which entries show as one line; or UserError where credentials are missing.
    Errors that are not about storage pass through unchanged.
    """
    for attempt in range(1, num_attempts + 1):
        try:
            return action()
        except Exception as error:
            if attempt == num_attempts or not is_transient(error):
                named = _named(error, url)
                if named is error:
                    raise
                raise named from error
            # Jitter keeps the actors that met one outage from returning all at once.
            delay_s = min(FIRST_DELAY_S * 2 ** (attempt - 1), MAX_DELAY_S) * random.uniform(0.5, 1.0)
            logger.warning("%s: %s; attempt %d of %d", redact(url), redact(str(error)), attempt, num_attempts)
            pause(delay_s)
    raise ValueError(f"num_attempts={num_attempts}: expected at least 1")


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: timeouts, broken connections, 408/409/429, every 5xx."""
    if isinstance(error, TimeoutError):
        return True
    if isinstance(error, _PERMANENT):
        return False
    status = http_status(error)
    if status is not None:
        return status >= 500 or status in _TRANSIENT_STATUS or _error_code(error) in _TRANSIENT_CODES
    if isinstance(error, OSError):
        return error.errno not in _PERMANENT_ERRNO
    return bool(_class_names(error) & _TRANSIENT_NAMES)


def http_status(error: BaseException) -> int | None:
    """The HTTP status behind an error of s3fs, aiohttp or gcsfs; None where there is none."""
    for cause in (error, error.__cause__):
        response = _response(cause)
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        for value in (status, getattr(cause, "status", None), getattr(cause, "code", None)):
            if isinstance(value, int) and 100 <= value < 600:
                return value
    return None


def _error_code(error: BaseException) -> str:
    responses = (_response(error), _response(error.__cause__))
    return next((response["Error"].get("Code", "") for response in responses if "Error" in response), "")


def _response(error: BaseException | None) -> dict[str, Any]:
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}


def _class_names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}


def _named(error: Exception, url: str) -> Exception:
    text = redact(str(error))
    if _class_names(error) & _CREDENTIAL_NAMES:
        return UserError(
            f"{redact(url)}: {text}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL "
            "for a store other than AWS), or give the machine a role"
        )
    if not isinstance(error, OSError) and not is_transient(error) and http_status(error) is None:
        return error
    kind = next((kind for kind in (*_PERMANENT, TimeoutError) if isinstance(error, kind)), OSError)
    named = kind(f"{redact(url)}: {text or type(error).__name__}")
    named.errno = getattr(error, "errno", None)
    return mark_outside_cause(named)
