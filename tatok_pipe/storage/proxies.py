"""HTTP proxies that the environment names: which requests go through one, and which never should."""

from __future__ import annotations

import os
import re
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

_LOOPBACK = ("127.0.0.1", "localhost", "::1")
_USER_INFO = re.compile(r"(?<=://)[^/@\s]*@")


def spare_loopback() -> None:
    """Have this process and those it starts reach this machine itself directly: a proxy elsewhere cannot."""
    if not getproxies().keys() - {"no"}:
        return
    # Python reads the name in small letters first, others the one in capitals alone.
    spared = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if spared.strip() == "*":
        return
    hosts = [host.strip() for host in spared.split(",") if host.strip()]
    value = ",".join(dict.fromkeys((*hosts, *_LOOPBACK)))
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = value


def proxy_of(url: str) -> str:
    """The proxy that requests to this http(s) URL go through, without credentials; empty without one."""
    parts, proxies = urlsplit(url), getproxies()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if not proxy or proxy_bypass(parts.netloc):
        return ""
    return _USER_INFO.sub("", proxy)
