"""The proxy itself: a real client and a real server see each fault as it is named, and nothing without one."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Literal
from urllib.parse import urlsplit

import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, HTTPClientError, ResponseStreamingError
from botocore.session import get_session

from tatok_pipe import storage
from tatok_pipe.commands.demo import server as demo_server
from tests.faults import job
from tests.faults.proxy import KINDS, FaultProxy, Faults, measure_latency_s

pytestmark = pytest.mark.s3

DATA = bytes(range(256)) * 400


@pytest.fixture
def proxy(s3_server: demo_server.S3Server) -> Iterator[FaultProxy]:
    with FaultProxy(s3_server.endpoint_url) as running:
        yield running


@pytest.fixture
def client(proxy: FaultProxy, s3_server: demo_server.S3Server) -> Any:
    """A client that tries once, so that a fault arrives at the test."""
    return get_session().create_client(
        "s3",
        region_name="us-east-1",
        endpoint_url=proxy.endpoint_url,
        aws_access_key_id=s3_server.access_key,
        aws_secret_access_key=s3_server.secret_key,
        config=Config(read_timeout=10, retries={"max_attempts": 0}, s3={"addressing_style": "path"}),
    )


def test_without_faults_everything_passes_through(
    proxy: FaultProxy, client: Any, s3_server: demo_server.S3Server
) -> None:
    where = {"Bucket": s3_server.bucket, "Key": "proxy/plain"}
    client.put_object(
        **where, Body=DATA
    )  # signed, Expect: 100-continue, aws-chunked with a checksum behind it
    client.put_object(Bucket=s3_server.bucket, Key="proxy/empty", Body=b"")
    assert client.head_object(**where)["ContentLength"] == len(DATA)
    assert client.get_object(**where)["Body"].read() == DATA
    assert client.get_object(**where, Range="bytes=10-19")["Body"].read() == DATA[10:20]
    listed = client.list_objects_v2(Bucket=s3_server.bucket, Prefix="proxy/")["Contents"]
    assert [entry["Key"] for entry in listed] == ["proxy/empty", "proxy/plain"]
    with pytest.raises(ClientError, match="PreconditionFailed"):
        client.put_object(**where, Body=DATA, IfNoneMatch="*")
    with pytest.raises(ClientError, match="404"):
        client.head_object(Bucket=s3_server.bucket, Key="proxy/none")
    assert [(each.method, each.status) for each in proxy.exchanges] == [
        ("PUT", 200), ("PUT", 200), ("HEAD", 200), ("GET", 200), ("GET", 206), ("GET", 200), ("PUT", 412),
        ("HEAD", 404),
    ]  # fmt: skip
    assert not proxy.injected


def test_one_connection_carries_several_requests_and_chunked_bodies(proxy: FaultProxy) -> None:
    connection = http.client.HTTPConnection(urlsplit(proxy.endpoint_url).netloc, timeout=10)
    for _ in range(2):
        connection.request("PUT", "/tatok/anonymous", body=iter([b"a" * 5000, b"b"]), encode_chunked=True)
        answer = connection.getresponse()
        assert answer.status == 403 and b"AccessDenied" in answer.read()
        assert connection.sock is not None
    connection.close()


def refuse(client: Any, where: dict[str, str], kind: str) -> None:
    """A request that meets a fault of this kind, and what a client sees of it."""
    if kind == "slow_down":
        with pytest.raises(ClientError, match="SlowDown"):
            client.put_object(**where, Body=DATA)
        with pytest.raises(ClientError, match="503"):
            client.head_object(**where)
    elif kind == "reset_before":
        with pytest.raises((ConnectionClosedError, HTTPClientError)):
            client.get_object(**where)
    elif kind == "lost_answer":
        with pytest.raises((ConnectionClosedError, HTTPClientError)):
            client.put_object(**where, Body=DATA[::-1])
    else:
        with pytest.raises((ResponseStreamingError, HTTPClientError)) as caught:
            client.get_object(**where)["Body"].read()
        assert ("reset" in str(caught.value).lower()) == (kind == "reset_within")


@pytest.mark.parametrize("kind", KINDS)
def test_each_fault_is_what_it_is_called(
    proxy: FaultProxy, client: Any, s3_server: demo_server.S3Server, kind: str
) -> None:
    where = {"Bucket": s3_server.bucket, "Key": f"proxy/{kind}"}
    client.put_object(**where, Body=DATA)
    proxy.faults = replace(Faults(), **{kind: 1.0})
    refuse(client, where, kind)
    assert proxy.injected == {kind: 2 if kind == "slow_down" else 1}
    proxy.faults = Faults()
    # Only where the answer got lost was the request done.
    stored = client.get_object(**where)["Body"].read()
    assert stored == (DATA[::-1] if kind == "lost_answer" else DATA)


@pytest.mark.parametrize("verdict", ["cut", None])
def test_a_hook_acts_in_the_middle_of_a_body(
    proxy: FaultProxy, client: Any, s3_server: demo_server.S3Server, verdict: Literal["cut"] | None
) -> None:
    where = {"Bucket": s3_server.bucket, "Key": f"proxy/hook-{verdict}"}
    seen: list[float] = []

    def on_request(method: str, path: str, progress: float) -> Literal["cut"] | None:
        assert (method, path) == ("PUT", f"/tatok/{where['Key']}")
        seen.append(progress)
        return verdict if progress > 0.5 else None

    proxy.on_request = on_request
    if verdict is None:
        client.put_object(**where, Body=DATA)
    else:
        with pytest.raises(HTTPClientError):
            client.put_object(**where, Body=DATA)
    proxy.on_request = None
    assert seen[0] == 0 and seen == sorted(seen) and len(seen) > 10
    found = client.list_objects_v2(Bucket=s3_server.bucket, Prefix=where["Key"]).get("Contents", [])
    assert len(found) == (1 if verdict is None else 0)
    assert seen[-1] == (1 if verdict is None else min(share for share in seen if share > 0.5))


def test_latency_is_added_to_every_request(proxy: FaultProxy) -> None:
    plain = measure_latency_s(proxy.endpoint_url)
    proxy.faults = Faults(latency_s=20 * plain + 0.1)
    assert measure_latency_s(proxy.endpoint_url) > 5 * plain


def test_our_storage_gets_through_a_bad_day(proxy: FaultProxy, s3_server: demo_server.S3Server) -> None:
    proxy.faults = Faults(*(0.1,) * len(KINDS), latency_s=0.01, seed=1)
    with job.environment({**s3_server.environment(), "AWS_ENDPOINT_URL": proxy.endpoint_url}):
        for index in range(24):
            url = f"s3://{s3_server.bucket}/proxy/day/{index}"
            assert storage.publish_bytes(DATA, url, exclusive=True)
            assert not storage.publish_bytes(b"", url, exclusive=True)
            assert storage.read_bytes(url) == DATA
    assert set(proxy.injected) == set(KINDS)


def test_faults_depend_on_the_seed_and_the_request_alone() -> None:
    faults = Faults(slow_down=0.2, lost_answer=0.2, latency_s=1, seed=3)

    def draws(faults: Faults, order: Callable[[range], Any]) -> dict[int, tuple[str, float]]:
        return {index: faults.draw("GET", f"/{index}", 1) for index in order(range(1000))}

    first = draws(faults, iter)
    assert first == draws(faults, reversed)
    assert first != draws(Faults(slow_down=0.2, lost_answer=0.2, latency_s=1, seed=4), iter)
    counts = [kind for kind, _ in first.values()]
    assert 150 < counts.count("slow_down") < 250 and 150 < counts.count("lost_answer") < 250
    assert faults.draw("GET", "/0", 1) != faults.draw("GET", "/0", 2)
