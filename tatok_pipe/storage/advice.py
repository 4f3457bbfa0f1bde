"""What a store's answer means and what to do about it, where its own words do not say so."""

from __future__ import annotations

import os
import re

from tatok_pipe.storage.faults import Fault, client_response, lacks_credentials
from tatok_pipe.storage.proxies import proxy_of
from tatok_pipe.storage.settings import endpoint_of, place_of, protocol_of, settings_of

_EXPIRED = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired"}
_UNKNOWN_KEY = {"InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken"}
_ELSEWHERE = {"PermanentRedirect", "TemporaryRedirect", "301", "307", "AuthorizationHeaderMalformed"}
_NO_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_ENDPOINT_URL for a store other than AWS), or give "
    "the machine a role; a public bucket is read with storage.anonymous",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS or log in with gcloud; a public bucket is read with storage.anonymous",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or AZURE_STORAGE_CONNECTION_STRING",
}
_MAY_NOT = {
    "s3": "its credentials may not do this, or the bucket is public (storage.anonymous) or has its reader pay "
    "(storage.requester_pays)",
    "gs": "its credentials may not do this, or the bucket is public (storage.anonymous) or has its reader pay "
    "(storage.requester_pays)",
    "az": "check the account's key or the role of its identity",
    "hf": "set HF_TOKEN to a token that may do this; to write takes one with the right to",
}


def explain(error: BaseException, fault: Fault, url: str) -> str:
    """What is told of a fault at `url`: the store's words, what they mean and what to do; and the proxy between, which
    may be the one that failed."""
    told = _explain(error, fault, url)
    proxy = "" if fault.is_local else proxy_of(_address(url))
    return f"{told}; the request went through the proxy {proxy} (NO_PROXY spares it)" if proxy else told


def _address(url: str) -> str:
    """Where requests go, of the stores whose drivers heed a proxy of the environment; else empty."""
    match protocol_of(url):
        case "s3":
            return endpoint_of(url) or "https://s3.amazonaws.com"
        case "hf":
            return _hub(url)
    return ""


def _explain(error: BaseException, fault: Fault, url: str) -> str:
    protocol = protocol_of(url)
    if protocol == "s3" and (told := _explain_s3(error, fault, url)):
        return told
    if protocol == "hf" and (told := _explain_hub(fault, url)):
        return told
    if fault.code == "ContainerNotFound":
        return no_such_place(url)
    if lacks_credentials(fault):
        return f"{fault.text}; {_NO_CREDENTIALS.get(protocol, 'check the credentials in the environment')}"
    if fault.kind is PermissionError and protocol in _MAY_NOT:
        return f"access denied ({fault.text}); {_MAY_NOT[protocol]}"
    return fault.text


def no_such_place(url: str) -> str:
    kind = "container" if protocol_of(url) == "az" else "bucket"
    at = f" at {_show_endpoint(url)}" if protocol_of(url) == "s3" else ""
    return f"{kind} {place_of(url)} does not exist{at}; correct its name"


def _show_endpoint(url: str) -> str:
    return endpoint_of(url) or "AWS"


def _explain_s3(error: BaseException, fault: Fault, url: str) -> str:
    bucket, endpoint = place_of(url), _show_endpoint(url)
    if "Invalid bucket name" in fault.text:
        if "@" in url.partition("://")[2].partition("/")[0]:
            return "S3 takes no credentials from a URL; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        return f"{bucket} cannot be the name of a bucket; it has letters, digits, dots and hyphens alone"
    if fault.code == "NoSuchBucket":
        return no_such_place(url)
    if fault.code in _EXPIRED:
        return (
            f"the credentials have expired ({fault.text}); get new ones and set AWS_SESSION_TOKEN with them"
        )
    if fault.code == "RequestTimeTooSkewed":
        return f"the clock of this machine is not the store's ({fault.text}); set it right"
    if fault.code in _UNKNOWN_KEY:
        return (
            f"{endpoint} does not accept the credentials ({fault.code}: {fault.text}); check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL, or read a public bucket with storage.anonymous"
        )
    if fault.code in _ELSEWHERE:
        answer = client_response(error)
        headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        region = headers.get("x-amz-bucket-region") or answer.get("Error", {}).get("Region")
        where = f"in region {region}" if region else "in another region"
        return (
            f"bucket {bucket} is {where}, not at {endpoint} ({fault.text}); "
            f"set AWS_DEFAULT_REGION={region or '…'}, or AWS_ENDPOINT_URL to that region's"
        )
    if fault.status is None and fault.passes and not fault.is_local:
        # botocore quotes the request, with the name as it travels.
        text = re.sub(r':? "?https?://[^ "]*"?', "", fault.text)
        return f"{endpoint} does not answer ({text}); check the network and AWS_ENDPOINT_URL"
    return ""


def _hub(url: str) -> str:
    return settings_of(url).get("endpoint") or os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def _explain_hub(fault: Fault, url: str) -> str:
    hub = _hub(url)
    token = "HF_TOKEN is set" if os.environ.get("HF_TOKEN") else "HF_TOKEN is not set"
    if "GatedRepoError" in fault.names:
        return (
            f"the repository is gated: accept its terms at {hub}, and set HF_TOKEN of that account ({token})"
        )
    if "RevisionNotFoundError" in fault.names:
        return "the repository has no such revision"
    if "RepositoryNotFoundError" in fault.names:
        return f"{hub} has no such repository, or one that is private ({token}); check the name (datasets/USER/NAME/…)"
    if "DisabledRepoError" in fault.names:
        return f"{hub} has disabled access to the repository"
    if "OfflineModeIsEnabled" in fault.names:
        return "HF_HUB_OFFLINE is set, so the Hub is not asked; unset it, or give a local copy"
    if fault.status == 429:
        wait = f"come again in {fault.wait_s:.0f} s" if fault.wait_s else "come again later"
        return f"{hub} is asked too often ({fault.text}); {wait}: the same command does the rest"
    if fault.status is None and fault.passes:
        return f"{hub} does not answer ({fault.text}); check the network and HF_ENDPOINT"
    return ""
