"""What stores answer is told in one line that says what is so and what to do. The answers are those of AWS's
documentation, given by a server on loopback to the real client. Of the hub: `test_hub`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tatok_pipe import storage
from tatok_pipe.errors import UserError, has_outside_cause
from tatok_pipe.images.shard_list import expand_shards
from tatok_pipe.storage import retry

from .answers import AnsweringServer, Request

Answered = tuple[int, dict[str, str], bytes]


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retry, "FIRST_DELAY_S", retry.FIRST_DELAY_S / 1000)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")


def s3_error(status: int, code: str, message: str, **more: str) -> Answered:
    headers = {"Content-Type": "application/xml"}
    if region := more.pop("region", ""):
        headers["x-amz-bucket-region"] = region
    extra = "".join(f"<{name}>{value}</{name}>" for name, value in more.items())
    body = f"<Error><Code>{code}</Code><Message>{message}</Message>{extra}</Error>"
    return status, headers, b'<?xml version="1.0" encoding="UTF-8"?>' + body.encode()


S3_ANSWERS = [
    (s3_error(400, "ExpiredToken", "The provided token has expired."),
     r"the credentials have expired \(The provided token has expired.\); get new ones"),
    (s3_error(403, "RequestTimeTooSkewed", "The difference is too large."),
     r"the clock of this machine is not the store's \(The difference is too large.\); set it right"),
    (s3_error(403, "InvalidAccessKeyId", "The key does not exist."),
     r"does not accept the credentials \(InvalidAccessKeyId: The key does not exist.\); check AWS_ACCESS_KEY_ID"),
    (s3_error(403, "SignatureDoesNotMatch", "Check your key."), "does not accept the credentials"),
    (s3_error(403, "AccessDenied", "Access Denied"), r"access denied \(Access Denied\); .*storage.requester_pays"),
    (s3_error(301, "PermanentRedirect", "Use the endpoint.", region="eu-west-3"),
     r"bucket b is in region eu-west-3, not at http://127.*set AWS_DEFAULT_REGION=eu-west-3"),
    (s3_error(400, "AuthorizationHeaderMalformed", "The region is wrong.", Region="eu-west-3"),
     "bucket b is in region eu-west-3"),
    (s3_error(400, "InvalidBucketName", "The bucket is not valid."), "The bucket is not valid"),
]  # fmt: skip


@pytest.fixture(scope="module")
def server() -> Iterator[AnsweringServer]:
    """One for all tests, since a client of S3 takes most of a second to be made for an address."""
    with AnsweringServer(lambda request: (404, {}, b"")) as server:
        yield server


@pytest.fixture
def s3(server: AnsweringServer, monkeypatch: pytest.MonkeyPatch) -> AnsweringServer:
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    return server


@pytest.mark.parametrize(("answer", "told"), S3_ANSWERS)
def test_s3(s3: AnsweringServer, answer: Answered, told: str) -> None:
    s3.answer = lambda request: answer
    for spec in ("s3://b/x/0.tar", "s3://b/x/*.tar", "s3://b/x", "s3://b/x/{00..99}.tar"):
        if "{" in spec and answer[0] == 403:
            continue  # a store that does not let one list is asked for every file by itself
        with pytest.raises(UserError, match=told) as raised:
            expand_shards(spec)
        assert "\n" not in str(raised.value) and "s3://b/x" in str(raised.value)
    for action in (storage.read_bytes, storage.file_info, storage.exists, publish):
        with pytest.raises(OSError, match=told) as failed:
            action("s3://b/x/0.tar")
        assert has_outside_cause(failed.value)


def publish(url: str) -> None:
    storage.publish_bytes(b"x", url, exclusive=True)


def test_a_bucket_that_is_not_there(s3: AnsweringServer) -> None:
    s3.answer = lambda request: s3_error(404, "NoSuchBucket", "The specified bucket does not exist")
    told = f"bucket b does not exist at {s3.url}"
    for spec in ("s3://b/x/0.tar", "s3://b/x/*.tar", "s3://b/x"):
        with pytest.raises(UserError, match=told):
            expand_shards(spec)
    for action in (storage.read_bytes, storage.file_info, publish):
        with pytest.raises(FileNotFoundError, match=told):
            action("s3://b/x/0.tar")
    assert not storage.exists("s3://b/x/0.tar")


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("s3://me:secret@b/x/0.tar", "S3 takes no credentials from a URL; set AWS_ACCESS_KEY_ID"),
        ("s3://b(1)/x/0.tar", r"b\(1\) cannot be the name of a bucket"),
    ],
)
def test_what_is_no_bucket(s3: AnsweringServer, url: str, told: str) -> None:
    with pytest.raises(UserError, match=told) as raised:
        expand_shards(url)
    assert "secret" not in str(raised.value)


def test_a_busy_store_is_asked_again_at_look_up(s3: AnsweringServer) -> None:
    listing = (
        b"<ListBucketResult><Name>b</Name><KeyCount>1</KeyCount><Contents><Key>x/0.tar</Key><Size>7</Size>"
    )
    listing += b"<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents></ListBucketResult>"
    seen: list[Request] = []

    def busy(request: Request) -> Answered:
        if "%2A" in request.path:  # is there a file or folder of that very name?
            return (404, {}, b"") if request.method == "HEAD" else (200, {}, b"<ListBucketResult/>")
        seen.append(request)
        if len(seen) % 3:
            return s3_error(503, "ServiceUnavailable", "Please come again.")
        return (
            200,
            {"Content-Type": "application/xml", "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT"},
            listing,
        )

    s3.answer = busy
    for spec in ("s3://b/x/0.tar", "s3://b/x/*.tar", "s3://b/x"):
        assert [shard.url for shard in expand_shards(spec)] == ["s3://b/x/0.tar"]
        assert seen and len(seen) % 3 == 0


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    with AnsweringServer(lambda request: (200, {}, b"")) as server:
        pass
    monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    with pytest.raises(
        UserError, match=rf"s3://b/x/0.tar: {server.url} does not answer \(Could not connect to the"
    ):
        expand_shards("s3://b/x/0.tar")
