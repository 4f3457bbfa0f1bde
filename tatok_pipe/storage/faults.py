"""What the clients of stores raise, told apart from bugs of this program: what was said, and whether it may pass."""

from __future__ import annotations

import errno
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# A class of exceptions that one of these packages defines is a word of a store, of the network or of a client about
# what it was given; known by name, so that reading a local file never imports an S3 client.
_CLIENTS = frozenset(
    (
        "adlfs",
        "aiobotocore",
        "aiohttp",
        "azure",
        "botocore",
        "ftplib",
        "gcsfs",
        "google",
        "httpcore",
        "httpcore2",
    )
    + ("httpx", "httpx2", "huggingface_hub", "paramiko", "requests", "s3fs", "urllib3")
)
_PERMANENT = (
    FileNotFoundError,
    FileExistsError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
)
_PERMANENT_ERRNO = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.ENAMETOOLONG, errno.ENOSYS, errno.ELOOP}
_TRANSIENT_STATUS = {408, 409, 425, 429}  # 409: another conditional write to the same key is under way
_TRANSIENT_OF_CLIENT = {"huggingface_hub": {412}}  # another commit came first
_TRANSIENT_CODES = {"RequestTimeout", "IncompleteBody", "BadDigest"}  # S3 answers these with 400
_TRANSIENT_NAMES = {
    "botocore": {
        "HTTPClientError", "ConnectionError", "ResponseStreamingError", "IncompleteReadError", "ResponseParserError",
    },
    "aiohttp": {"ClientError"},
    "httpx": {"TransportError"},
    "httpcore": {"NetworkError", "TimeoutException", "ProtocolError"},
    "azure": {"ServiceRequestError", "ServiceResponseError", "IncompleteReadError"},
    "google": {"TransportError", "RetryError"},
    "gcsfs": {"ChecksumError"},
    "ftplib": {"error_temp"},
    "paramiko": {"SSHException"},
    "urllib3": {"HTTPError"},
}  # fmt: skip
# What asking again does not change, although the client counts it among the failures of connections.
_LASTING_NAMES = {
    "InvalidURL", "ClientConnectorCertificateError", "ClientSSLError", "UnsupportedProtocol", "OfflineModeIsEnabled",
    "SSLError", "SSLCertVerificationError", "MissingSchema", "InvalidSchema", "TooManyRedirects",
    "AuthenticationException",
}  # fmt: skip
_CREDENTIAL_NAMES = {
    "NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "CredentialRetrievalError",
    "TokenRetrievalError", "UnauthorizedSSOTokenError", "SSOTokenLoadError", "DefaultCredentialsError", "RefreshError",
    "CredentialUnavailableError",
}  # fmt: skip
# What a proxy in front of a web server says where it cannot reach that: Cloudflare's own statuses.
_UNREACHED_STATUS = {521, 522, 523, 525, 526, 530}
_MAX_CAUSES = 8


class LastingError(OSError):
    """An error of a store that stays however often one asks."""


@dataclass(frozen=True)
class Fault:
    """What is behind an exception of a storage client."""

    text: str  # what the store or the client said, in one line
    kind: type[OSError]  # as which it may be caught
    passes: bool  # whether the same request may succeed later
    status: int | None = None  # of HTTP, where the store answered
    code: str = ""  # the store's own word for it (NoSuchBucket, ExpiredToken, …), where it gave one
    names: frozenset[str] = frozenset()  # of the classes of the exception and its causes
    is_local: bool = False  # whether no client was in it, but this program and its system alone
    is_mute: bool = False  # whether it is S3's answer to a HEAD: a status without the reason
    wait_s: float = 0.0  # for which the store wants not to be asked again


def find_fault(error: BaseException) -> Fault | None:
    """What `error` says of a store; None where it is about nothing of the kind."""
    causes = _causes(error)
    names = frozenset().union(*(_class_names(each) for each in causes))
    if not isinstance(error, OSError) and not any(_client(each) or _is_refusal(each) for each in causes):
        return None
    status = http_status(error)
    return Fault(
        text=_text(causes),
        kind=_kind(error, status),
        passes=is_transient(error),
        status=status,
        code=_error_code(causes),
        names=names,
        is_mute=_error_code(causes).isdigit() and status in (301, 307, 400, 403),
        is_local=not any(map(_client, causes)),
        wait_s=_wait_s(causes),
    )


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later: timeouts, broken connections, 408/409/429, every 5xx."""
    if isinstance(error, TimeoutError):
        return True
    told = _unmasked(error)
    status = http_status(told)
    if isinstance(told, (*_PERMANENT, LastingError)) and status is None or isinstance(told, _PERMANENT):
        return False
    causes = _causes(told)
    if any(_class_names(each) & (_LASTING_NAMES | _CREDENTIAL_NAMES) for each in causes):
        return False
    if status is not None:
        of_client = set().union(*(_TRANSIENT_OF_CLIENT.get(_client(each), ()) for each in causes))
        if status >= 500 or status in _TRANSIENT_STATUS or status in of_client:
            return True
        return _error_code(causes) in _TRANSIENT_CODES
    if any(_class_names(each) & _TRANSIENT_NAMES.get(_client(each).rstrip("2"), set()) for each in causes):
        return True
    return isinstance(told, OSError) and told.errno not in _PERMANENT_ERRNO


def why_unreachable(error: BaseException) -> str:
    """Why a web server did not answer, the same words for every file of it; empty where it did, or where it is another
    error than one of reaching it."""
    causes = _causes(error)
    names = set().union(*map(_class_names, causes))
    status = http_status(error)
    if status in _UNREACHED_STATUS:
        return f"the proxy in front of it answers {status}, which says that it does not reach it"
    if status is not None or not any(_client(each) == "aiohttp" for each in causes) or names & _LASTING_NAMES:
        return ""
    if names & {"gaierror", "ClientConnectorDNSError"}:
        return "no address is found for its name"
    if "TimeoutError" in names:
        return "it does not answer in time"
    if "ConnectionRefusedError" in names:
        return "it refuses connections"
    return (
        "it takes no connections, or drops them"
        if names & {"ClientOSError", "ServerDisconnectedError"}
        else ""
    )


def lacks_credentials(fault: Fault) -> bool:
    return bool(fault.names & _CREDENTIAL_NAMES)


def http_status(error: BaseException) -> int | None:
    """The HTTP status behind an error of any of the clients; None where there is none."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            candidates = [response.get("ResponseMetadata", {}).get("HTTPStatusCode")]
        elif _client(cause) == "aiohttp":
            candidates = [getattr(cause, "status", None)]
        elif _client(cause):
            candidates = [getattr(response, "status_code", None)]
            candidates += [getattr(cause, name, None) for name in ("status_code", "code")]
        else:
            candidates = []
        for value in candidates:
            if isinstance(value, int) and 100 <= value < 600:
                return int(value)
    return None


def client_response(error: BaseException) -> dict[str, Any]:
    """botocore's parsed answer behind an error of s3fs; empty where there is none."""
    for cause in _causes(error):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            return response
    return {}


def _causes(error: BaseException) -> list[BaseException]:
    """The error, and what it was raised from."""
    found: list[BaseException] = [error]
    while len(found) < _MAX_CAUSES and (cause := found[-1].__cause__) is not None and cause not in found:
        found.append(cause)
    return found


def _unmasked(error: BaseException) -> BaseException:
    # fsspec's HTTP driver calls every failure to look at a file FileNotFoundError.
    cause = error.__cause__
    is_masked = isinstance(error, FileNotFoundError) and cause is not None and _client(cause) == "aiohttp"
    return cause if is_masked and cause is not None and http_status(cause) not in (404, 410) else error


def _kind(error: BaseException, status: int | None) -> type[OSError]:
    told = _unmasked(error)
    known = next((kind for kind in (*_PERMANENT, TimeoutError, LastingError) if isinstance(told, kind)), None)
    if known is not None:
        return known
    if status in (404, 410):
        return FileNotFoundError
    return PermissionError if status in (401, 403) else OSError


def _text(causes: list[BaseException]) -> str:
    told = _unmasked(causes[0])
    # A client's own word is in the cause where the driver only says where it happened.
    said = next((each for each in _causes(told) if str(each).strip()), told)
    text = " ".join(str(said).split())
    text = re.sub(r" RequestId:.*", "", text)  # Azure's, and with it the answer in XML
    text = re.sub(r"^\[Errno \d+\] |,? ?For more (information|details)(, see| check:) \S+", "", text).strip()
    return text or type(told).__name__


def _error_code(causes: list[BaseException]) -> str:
    for cause in causes:
        response = getattr(cause, "response", None)
        if isinstance(response, dict) and "Error" in response:
            return str(response["Error"].get("Code", ""))
        for name in ("error_code", "reason"):
            if _client(cause) == "azure" and isinstance(code := getattr(cause, name, None), str):
                return str(getattr(code, "value", code))
    return ""


def _wait_s(causes: list[BaseException]) -> float:
    """What `Retry-After` says, in seconds; 0 where nothing does. Its other form, a date, no store is known to use."""
    for cause in causes:
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            headers = response.get("ResponseMetadata", {}).get("HTTPHeaders")
        else:
            headers = getattr(response if response is not None else cause, "headers", None)
        if _client(cause) and isinstance(headers, Mapping):
            told = {str(name).lower(): str(value) for name, value in headers.items()}
            if (seconds := told.get("retry-after", "").strip()).isdecimal():
                return float(seconds)
    return 0.0


def _client(error: BaseException) -> str:
    """The package of a client that defines the class of the error or one of its bases; empty where none does."""
    roots = (base.__module__.partition(".")[0] for base in type(error).__mro__)
    return next((root for root in roots if root in _CLIENTS), "")


def _is_refusal(error: BaseException) -> bool:
    """Whether a client or fsspec refused what it was given, in the words of Python: a URL that has not its form."""
    if not isinstance(error, (ValueError, NotImplementedError)) or error.__traceback__ is None:
        return False
    last = error.__traceback__
    while last.tb_next is not None:
        last = last.tb_next
    root = str(last.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
    return root in _CLIENTS or root == "fsspec"


def _class_names(error: BaseException) -> set[str]:
    return {base.__name__ for base in type(error).__mro__}
