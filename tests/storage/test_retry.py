from __future__ import annotations

import errno
import pickle

import pytest
from azure.core.exceptions import ServiceRequestError
from botocore.exceptions import EndpointConnectionError, NoCredentialsError

from tatok_pipe.errors import UserError, has_outside_cause
from tatok_pipe.storage import retry


class Flaky:
    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.num_calls = 0

    def __call__(self) -> str:
        self.num_calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


def test_pauses_grow_until_it_works() -> None:
    pauses: list[float] = []
    action = Flaky(TimeoutError(), TimeoutError(), TimeoutError())
    assert retry.call(action, url="s3://b/x", pause=pauses.append) == "done"
    assert action.num_calls == 4
    for attempt, pause in enumerate(pauses):
        assert 0.5 <= pause / (retry.FIRST_DELAY_S * 2**attempt) <= 1
    assert len(pauses) == 3


def test_gives_up_after_the_last_attempt_and_names_the_file() -> None:
    action = Flaky(*[ConnectionResetError("reset")] * 9)
    with pytest.raises(OSError, match=r"https://\*\*\*@host/x: reset") as raised:
        retry.call(action, url="https://me:pw@host/x", num_attempts=3, pause=lambda _: None)
    assert action.num_calls == 3
    assert isinstance(raised.value.__cause__, ConnectionResetError)


@pytest.mark.parametrize("kind", [FileNotFoundError, PermissionError, FileExistsError, IsADirectoryError])
def test_a_permanent_error_keeps_its_kind_and_is_not_repeated(kind: type[OSError]) -> None:
    action = Flaky(kind("no"), kind("no"))
    with pytest.raises(kind, match="ftp://b/x: no"):
        retry.call(action, url="ftp://b/x")
    assert action.num_calls == 1


def test_what_a_client_says_of_a_secret_is_hidden() -> None:
    with pytest.raises(OSError, match=r"^ftp://\*\*\*@b/x: no \*\*\* here$"):
        retry.call(Flaky(PermissionError("no me:secret here")), url="ftp://me:secret@b/x")


def test_missing_credentials_are_the_users_to_give() -> None:
    with pytest.raises(UserError, match="AWS_ACCESS_KEY_ID"):
        retry.call(Flaky(NoCredentialsError()), url="s3://b/x")


def test_a_bug_passes_through_unchanged() -> None:
    bug = ZeroDivisionError("mine")
    with pytest.raises(ZeroDivisionError) as raised:
        retry.call(Flaky(bug), url="s3://b/x")
    assert raised.value is bug


def test_connection_failures_of_the_client_become_os_errors() -> None:
    action = Flaky(*[EndpointConnectionError(endpoint_url="http://x")] * 2)
    with pytest.raises(
        OSError, match=r"s3://b/x: .* does not answer \(Could not connect to the endpoint URL\)"
    ):
        retry.call(action, url="s3://b/x", num_attempts=2, pause=lambda _: None)


def test_what_storage_raises_is_known_as_such_and_keeps_its_number() -> None:
    full = OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(OSError, match="s3://b/x: .*No space left") as raised:
        retry.call(Flaky(full), url="s3://b/x")
    assert raised.value.errno == errno.ENOSPC
    assert has_outside_cause(raised.value) and has_outside_cause(pickle.loads(pickle.dumps(raised.value)))
    assert not has_outside_cause(full)


def test_a_client_that_tried_for_a_minute_by_itself_is_asked_twice() -> None:
    action = Flaky(*[ServiceRequestError("Cannot connect to host")] * 9)
    with pytest.raises(OSError, match="az://b/x: Cannot connect to host"):
        retry.call(action, url="az://b/x", pause=lambda _: None)
    assert action.num_calls == retry.NUM_PATIENT_ATTEMPTS == 2


def test_the_hub_is_asked_twice_where_each_time_took_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client asks six times by itself in some of its calls, and in others once."""
    for longest_s, num_calls in ((60.0, retry.NUM_ATTEMPTS), (-1.0, retry.NUM_PATIENT_ATTEMPTS)):
        monkeypatch.setattr(retry, "_LONG_SILENCE_S", longest_s)
        action = Flaky(*[ServiceRequestError("timed out")] * 9)
        with pytest.raises(OSError, match="timed out"):
            retry.call(action, url="hf://datasets/a/b/x", pause=lambda _: None)
        assert action.num_calls == num_calls
