"""What a run says of its stores beyond credentials: who is asked without a signature, who pays, where a bucket is.

The settings live in an environment variable of the process, so that they reach what it starts: actors, Ray Train's
workers, programs. They hold no secret.
"""

from __future__ import annotations

import functools
import json
import os
import re
from dataclasses import asdict
from typing import Any

from fsspec.config import conf

from tatok_pipe.config.options import config_dataclass, option

ENVIRONMENT = "TATOK_STORAGE"
# Spellings of one store, by the one that settings are compared in.
_SAME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az"}
_WITHOUT_CREDENTIALS = {
    "s3": {"anon": True},
    "gs": {"token": "anon"},
    "az": {"anon": True},
    "hf": {"token": False},
}
_READER_PAYS = {"s3": {"requester_pays": True}, "gs": {"requester_pays": True}}
_ENDPOINT = {"s3": "endpoint_url", "gs": "endpoint_url", "hf": "endpoint"}
STORAGE_HELP = "how stores are asked; who asks, and where they are, comes from the environment"
OTHER_STORES_HELP = (
    "open images that a manifest names in another store (protocol, and host or bucket) than its own, as those on web "
    "servers are"
)
_SEVERAL = ("anonymous", "requester_pays", "endpoints")


@config_dataclass
class StorageConfig:
    anonymous: list[str] = option(
        [],
        help="what is read without credentials, with all below it: public buckets, as [s3://bucket]",
        unit="URLs",
    )
    requester_pays: list[str] = option(
        [], help="what has its reader pay for the requests, with all below it, as [s3://bucket]", unit="URLs"
    )
    endpoints: list[str] = option(
        [],
        help="where buckets are that are not at AWS_ENDPOINT_URL, as ['s3://bucket=https://store:9000']",
        unit="URL=ENDPOINT each",
    )

    def __post_init__(self) -> None:
        for name, known in zip(_SEVERAL, (_WITHOUT_CREDENTIALS, _READER_PAYS, _ENDPOINT), strict=True):
            for item in getattr(self, name):
                url, equals, endpoint = item.partition("=")
                protocol, found, _ = url.partition("://")
                if not found or _SAME.get(protocol, protocol) not in known:
                    schemes = ", ".join(f"{each}://" for each in known)
                    raise ValueError(f"{name}: {item}: expected a URL that begins with one of {schemes}")
                if name == "endpoints" and not (equals and endpoint.startswith(("http://", "https://"))):
                    raise ValueError(
                        f"{name}: {item}: expected URL=ENDPOINT, such as s3://bucket=https://store:9000"
                    )
                if "@" in endpoint:
                    raise ValueError(
                        f"{name}: {url}=…: an endpoint with a user or password; credentials come from the environment"
                    )


def configure(config: StorageConfig) -> None:
    """Let every later access of this process, and of what it starts from now on, heed `config`."""
    os.environ.pop(ENVIRONMENT, None)
    if config != StorageConfig():
        os.environ[ENVIRONMENT] = json.dumps(asdict(config))


def protocol_of(url: str) -> str:
    """The protocol of the store that `url` is in, in one spelling; empty for a path."""
    return _split(url)[0]


def place_of(url: str) -> str:
    """The bucket, container or account that `url` is in."""
    return _split(url)[1].partition("/")[0]


def settings_of(url: str) -> dict[str, Any]:
    """What fsspec's driver is to be told for `url` besides what it finds itself; for a chained URL, its last part."""
    protocol, place = _split(url)
    config = _parse(os.environ.get(ENVIRONMENT, ""))
    options: dict[str, Any] = {}
    if _longest(config.anonymous, protocol, place) is not None:
        options |= _WITHOUT_CREDENTIALS[protocol]
    if _longest(config.requester_pays, protocol, place) is not None:
        options |= _READER_PAYS[protocol]
    endpoint = _longest(config.endpoints, protocol, place)
    if protocol == "s3":
        endpoint = endpoint or _environment_endpoint()
    if endpoint:
        options[_ENDPOINT[protocol]] = endpoint
    return options


def endpoint_of(url: str) -> str | None:
    """The address of the S3 server behind `url` where it is not AWS's."""
    fsspec_config = conf.get("s3", {})
    from_fsspec = fsspec_config.get("endpoint_url") or fsspec_config.get("client_kwargs", {}).get(
        "endpoint_url"
    )
    return settings_of(url).get("endpoint_url") or from_fsspec


def _split(url: str) -> tuple[str, str]:
    """Protocol, and what is behind `://` without `user:password@`; of a chained URL those of its last part."""
    protocol, found, place = url.rpartition("::")[2].partition("://")
    if not found:
        return "", url
    protocol = _SAME.get(protocol, protocol)
    return protocol, place if protocol == "az" else re.sub(r"^[^/@]*@", "", place)


def _environment_endpoint() -> str | None:
    # botocore reads the variables by itself. It is passed on because fsspec keeps one filesystem object per set of
    # arguments, and would hand out the one of an earlier endpoint. What fsspec's own settings say (FSSPEC_S3_…,
    # ~/.config/fsspec) is meant for s3fs alone, so it comes first, as it does without us.
    fsspec_config = conf.get("s3", {})
    if "endpoint_url" in fsspec_config or "endpoint_url" in fsspec_config.get("client_kwargs", {}):
        return None
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")


@functools.lru_cache(maxsize=8)
def _parse(text: str) -> StorageConfig:
    return StorageConfig(**json.loads(text)) if text else StorageConfig()


def _longest(items: list[str], protocol: str, place: str) -> str | None:
    """What stands behind the `=` of the most particular of `items` that `protocol://place` lies below; None of none."""
    found, longest = None, -1
    for item in items:
        url, _, value = item.partition("=")
        its_protocol, prefix = _split(url.rstrip("/") if not url.endswith("://") else url)
        is_below = not prefix or place == prefix or place.startswith(prefix + "/")
        if its_protocol == protocol and is_below and len(prefix) > longest:
            found, longest = value, len(prefix)
    return found
