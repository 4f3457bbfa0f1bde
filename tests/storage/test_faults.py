"""Errors of every client: which may pass, which are about a store at all, and what is told of them."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import aiohttp
import fsspec
import google.api_core.exceptions
import google.auth.exceptions
import httpx2
import pytest
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ServiceRequestError
from botocore.exceptions import ClientError, EndpointConnectionError, NoCredentialsError, ReadTimeoutError
from gcsfs.retry import ChecksumError, HttpError
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from multidict import CIMultiDict, CIMultiDictProxy

from tatok_pipe.storage.faults import LastingError, find_fault, is_transient


def client_error(status: int, code: str) -> ClientError:
    response = {"Error": {"Code": code, "Message": "?"}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return ClientError(response, "GetObject")  # pyright: ignore[reportArgumentType]


def aiohttp_error(status: int) -> aiohttp.ClientResponseError:
    request: Any = SimpleNamespace(real_url="http://host/x")
    return aiohttp.ClientResponseError(request, (), status=status, message="?")


def hub_error(kind: type[HfHubHTTPError], status: int) -> HfHubHTTPError:
    return kind("?", response=httpx2.Response(status, request=httpx2.Request("GET", "http://hub/x")))


def azure_error(status: int) -> HttpResponseError:
    error = HttpResponseError("?")
    error.status_code = status
    return error


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def masked(error: Exception) -> Exception:
    """As fsspec's HTTP driver tells every failure to look at a file."""
    return caused(FileNotFoundError("http://host/x"), error)


def translated(error: Exception) -> OSError:
    """As s3fs raises it: an OSError caused by the client's error."""
    result = OSError(errno.EINVAL, "translated")
    result.__cause__ = error
    return result


@pytest.mark.parametrize(
    "error",
    [
        TimeoutError(),
        ConnectionResetError(),
        OSError(errno.EIO, "broken"),
        client_error(503, "SlowDown"),
        client_error(500, "InternalError"),
        client_error(400, "RequestTimeout"),
        translated(client_error(409, "ConditionalRequestConflict")),
        EndpointConnectionError(endpoint_url="http://x"),
        ReadTimeoutError(endpoint_url="http://x"),
        aiohttp.ServerDisconnectedError(),
        aiohttp_error(503),
        masked(aiohttp_error(503)),
        masked(aiohttp.ClientOSError(errno.ECONNRESET, "reset")),
        httpx2.ConnectError("refused"),
        httpx2.ReadTimeout("slow"),
        hub_error(HfHubHTTPError, 502),
        hub_error(HfHubHTTPError, 412),
        ServiceRequestError("no connection"),
        azure_error(503),
        caused(RuntimeError("failed to upload"), azure_error(500)),
        google.auth.exceptions.TransportError("no connection"),
        google.api_core.exceptions.ServiceUnavailable("busy"),
        HttpError({"code": 503, "message": "busy"}),
        HttpError({"code": 429, "message": "slow down"}),
        ChecksumError(),
    ],
)
def test_transient(error: Exception) -> None:
    assert is_transient(error)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(),
        PermissionError(),
        OSError(errno.ENOSPC, "full"),
        client_error(403, "AccessDenied"),
        translated(client_error(412, "PreconditionFailed")),
        translated(client_error(416, "InvalidRange")),
        NoCredentialsError(),
        ValueError(),
        KeyError("status"),
        masked(aiohttp_error(404)),
        aiohttp_error(403),
        aiohttp.InvalidURL("http://"),
        httpx2.UnsupportedProtocol("ftp"),
        hub_error(RepositoryNotFoundError, 401),
        hub_error(GatedRepoError, 403),
        OfflineModeIsEnabled("offline"),
        azure_error(404),
        ClientAuthenticationError("no"),
        google.auth.exceptions.DefaultCredentialsError("none"),
        HttpError({"code": 401, "message": "who"}),
        LastingError("so it is"),
        OSError(errno.ELOOP, "links"),
    ],
)
def test_permanent(error: Exception) -> None:
    assert not is_transient(error)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (client_error(404, "NoSuchKey"), FileNotFoundError),
        (client_error(403, "AccessDenied"), PermissionError),
        (masked(aiohttp_error(404)), FileNotFoundError),
        (masked(aiohttp_error(403)), PermissionError),
        (masked(aiohttp_error(500)), OSError),
        (hub_error(GatedRepoError, 403), PermissionError),
        (caused(FileNotFoundError("x"), hub_error(RepositoryNotFoundError, 401)), FileNotFoundError),
        (HttpError({"code": 401, "message": "who"}), PermissionError),
        (azure_error(404), FileNotFoundError),
        (TimeoutError(), TimeoutError),
        (ServiceRequestError("no connection"), OSError),
        (NotADirectoryError("x"), NotADirectoryError),
    ],
)
def test_as_what_it_may_be_caught(error: Exception, kind: type[OSError]) -> None:
    fault = find_fault(error)
    assert fault is not None and fault.kind is kind


@pytest.mark.parametrize(
    "error", [ValueError("x"), KeyError("x"), TypeError("x"), NotImplementedError(), MemoryError()]
)
def test_bugs_are_no_faults(error: Exception) -> None:
    assert find_fault(error) is None
    try:
        raise error
    except Exception as raised:
        assert find_fault(raised) is None


def test_what_a_driver_refuses_is_a_fault_and_its_bugs_are_not() -> None:
    with pytest.raises(ValueError) as refused:
        fsspec.filesystem("hf").resolve_path("gpt2")
    fault = find_fault(refused.value)
    assert fault is not None and "Repository id must be" in fault.text and not fault.passes
    with pytest.raises(AttributeError) as bug:
        fsspec.filesystem("memory").cat_file(None)
    assert find_fault(bug.value) is None


def test_the_text_is_one_line_in_the_words_of_who_said_it() -> None:
    error = OSError(errno.EIO, "line one\nline two")
    assert find_fault(error).text == "line one line two"  # pyright: ignore[reportOptionalMemberAccess]
    fault = find_fault(masked(aiohttp_error(503)))
    assert fault is not None and fault.text.startswith("503, message=")
    assert find_fault(TimeoutError()).text == "TimeoutError"  # pyright: ignore[reportOptionalMemberAccess]


def test_how_long_a_store_wants_not_to_be_asked() -> None:
    told = {"retry-after": "30"}
    of_s3 = client_error(503, "SlowDown")
    of_s3.response["ResponseMetadata"]["HTTPHeaders"] = told  # pyright: ignore[reportTypedDictNotRequiredAccess]
    of_web = aiohttp_error(429)
    of_web.headers = CIMultiDictProxy(CIMultiDict({"Retry-After": "30"}))
    response = httpx2.Response(429, headers=told, request=httpx2.Request("GET", "http://hub/x"))
    of_hub = HfHubHTTPError("?", response=response)
    for error in (of_s3, translated(of_s3), of_web, of_hub):
        assert find_fault(error).wait_s == 30  # pyright: ignore[reportOptionalMemberAccess]
    date = httpx2.Response(
        429, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}, request=response.request
    )
    for error in (
        client_error(503, "SlowDown"),
        aiohttp_error(429),
        HfHubHTTPError("?", response=date),
        OSError(),
    ):
        assert find_fault(error).wait_s == 0  # pyright: ignore[reportOptionalMemberAccess]
