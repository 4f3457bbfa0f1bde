"""What a URL means: its filesystem, its one canonical spelling, and how it may be shown."""

from __future__ import annotations

import functools
import os
import re
from typing import Any, NamedTuple

import fsspec
from fsspec.core import split_protocol, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from tatok_pipe.errors import UserError

_S3_PROTOCOLS = ("s3", "s3a")
# Several streams share one filesystem object, each with eight ranges in flight; botocore's own limit is 10.
_S3_CONNECTIONS = 64
_USER_INFO = re.compile(r"(?<=://)[^/@\s]*@")
_SECRET_PARAMETER = re.compile(
    r"([?&;][^=&#\s]*(?:sig|token|key|secret|credential|passw|auth)[^=&#\s]*=)[^&#\s]+", re.IGNORECASE
)


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of `url` and the path inside it; listings are never cached.

    Raises UserError where the protocol is unknown or its driver is not installed.
    """
    protocol = split_protocol(url)[0]
    options: dict[str, Any] = {"use_listings_cache": False}
    if protocol in _S3_PROTOCOLS:
        # botocore reads the endpoint from the environment by itself. It is passed on because fsspec keeps one
        # filesystem object per set of arguments, and would hand out the one of an earlier endpoint.
        options["endpoint_url"] = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        options["config_kwargs"] = {"max_pool_connections": _S3_CONNECTIONS}
    try:
        return url_to_fs(url, **options)
    except (ImportError, ValueError) as error:
        known = ", ".join(f"{name}://" for name in ("s3", "gs", "http", "file"))
        raise UserError(
            f"{redact(url)}: cannot open a {protocol}:// filesystem ({error}); "
            f"use a path, one of {known}, or install the fsspec driver of {protocol}"
        ) from error


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether paths of this filesystem are files of this machine."""
    return isinstance(filesystem, LocalFileSystem)


def is_s3(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether the filesystem speaks S3, and so has conditional PUT."""
    protocols = (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    return any(protocol in _S3_PROTOCOLS for protocol in protocols)


def join(url: str, *parts: str) -> str:
    """`url` with `parts` below it, separated by single slashes."""
    # Not posixpath.join: there a part that begins with a slash would replace everything before it.
    base = url if url.endswith("://") else url.rstrip("/") + "/"
    return base + "/".join(part.strip("/") for part in parts)


def canonical_url(url: str) -> str:
    """The one name of a file: an absolute path where it is local, else a normalised URL without secrets.

    A signed URL loses its query, so that a shard keeps its name when the link is signed anew.
    """
    folder, name = _split(url)
    return _spell(url).canonical if folder is None else folder.canonical + name


def openable_url(url: str) -> str:
    """`url` with its protocol spelled in one way and, where it is local, as an absolute path.

    Unlike the canonical one it keeps what opening the file needs: `user:password@` and signed queries.
    """
    folder, name = _split(url)
    return _spell(url).openable if folder is None else folder.openable + name


class _Spelling(NamedTuple):
    openable: str
    canonical: str


def _spell(url: str) -> _Spelling:
    filesystem, path = open_filesystem(url)
    if is_local(filesystem):
        return _Spelling(path, os.path.abspath(path))
    openable = filesystem.unstrip_protocol(path)
    name = _USER_INFO.sub("", openable)
    return _Spelling(openable, name.partition("?")[0] if _SECRET_PARAMETER.search(name) else name)


# Asking fsspec takes 15 to 40 us a URL, most of a minute for a million. Their directories are few, and a name
# of such characters alone means the same below any of them: no query, no escape, no '..', no secret.
_PLAIN_NAME = re.compile(r"\w[\w.+-]*")
_PROBE = "stands-for-any-plain-name"


def _split(url: str) -> tuple[_Spelling | None, str]:
    """The spelling of the directory of `url`, with its slash, and the name; None where `_spell` has to say."""
    directory, slash, name = url.rpartition("/")
    if not _PLAIN_NAME.fullmatch(name) or url.startswith("~") or "?" in url or "::" in url:
        return None, name
    is_relative = not (url.startswith("/") or "://" in url)
    if is_relative and ":" in url:
        return None, name
    return _spell_folder(directory + slash, os.getcwd() if is_relative else ""), name


@functools.lru_cache(maxsize=1 << 14)
def _spell_folder(folder: str, working_directory: str) -> _Spelling | None:
    """How names of plain characters in `folder`, which ends with a slash or is empty, are spelled up to them.

    None where they are not simply appended. `working_directory` is that of a relative path.
    """
    parent, slash, name = folder[:-1].rpartition("/")
    is_host = "://" in folder and "/" not in folder.partition("://")[2][:-1]
    if slash and not is_host and _PLAIN_NAME.fullmatch(name):
        above = _spell_folder(parent + slash, working_directory)
        return None if above is None else _Spelling(*(f"{each}{name}/" for each in above))
    probe = _spell(folder + _PROBE)
    if not all(each.endswith("/" + _PROBE) for each in probe):
        return None
    return _Spelling(*(each.removesuffix(_PROBE) for each in probe))


def redact(url: str) -> str:
    """`url`, or a text with URLs in it, with `user:password@` and secret query values hidden."""
    return _SECRET_PARAMETER.sub(r"\1***", _USER_INFO.sub("***@", url))
