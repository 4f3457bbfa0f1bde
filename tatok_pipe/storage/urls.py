"""What a URL means: its filesystem, its one canonical spelling, and how it may be shown."""

from __future__ import annotations

import functools
import os
import re
from typing import Any, NamedTuple
from urllib.parse import unquote

import fsspec
from fsspec import available_protocols
from fsspec.config import conf
from fsspec.core import split_protocol, url_to_fs
from fsspec.implementations.local import LocalFileSystem

from tatok_pipe.errors import UserError
from tatok_pipe.storage.faults import find_fault
from tatok_pipe.storage.hub_session import limit_silence
from tatok_pipe.storage.parts import ListedPart, hide_lists, parse_part
from tatok_pipe.storage.settings import settings_of

# Their driver passes every option on to paramiko's `connect`, and has one connection, in which the answer to one thread
# may be taken by another, so that both wait for ever.
_SSH_PROTOCOLS = ("sftp", "ssh")
# Their drivers drop what stands behind a '?', as if it were a query.
_WITHOUT_QUESTION_MARKS = (*_SSH_PROTOCOLS, "ftp", "smb", "webhdfs")
_S3_PROTOCOLS = ("s3", "s3a")
# Filesystems of fsspec that read out of another one, which their URL names behind `::`.
_WITHIN_ANOTHER = frozenset(
    (
        "asyncwrapper",
        "blockcache",
        "cached",
        "dir",
        "filecache",
        "libarchive",
        "reference",
        "simplecache",
        "tar",
        "zip",
    )
)
_LOCAL_PROTOCOLS = ("file", "local")
# Our extras that bring the drivers of protocols.
_EXTRAS = {
    "az": "azure",
    "abfs": "azure",
    "abfss": "azure",
    "gs": "gcs",
    "gcs": "gcs",
    "hf": "hub",
    "sftp": "sftp",
    "ssh": "sftp",
}
LOCAL_STORE = ("",)
# Several streams share one filesystem object, each with eight ranges in flight; botocore's own limit is 10.
_S3_CONNECTIONS = 64
# In abfs://container@account.dfs.core.windows.net/ it is no user that stands before the `@`.
_USER = r"(?<!abfs://)(?<!abfss://)(?<!az://)(?<=://)"
_PLAIN_USER_INFO = r"[^/\s]*@"
# A secret may hold `/`; but behind a host's `:` is its port.
_USER_INFO_WITH_SLASH = r"(?!\[)[^/@\s:]*:(?!\d+(?:/|$))\S*@"
_USER_INFO = re.compile(f"{_USER}(?:{_PLAIN_USER_INFO}|{_USER_INFO_WITH_SLASH})")
# What is shown has rather too much hidden: an `@` of the path, too, where somebody is named before it.
_OPTION = re.compile(r"[\w.]+=")
_HIDDEN_USER_INFO = re.compile(f"{_USER}(?:{_USER_INFO_WITH_SLASH}|{_PLAIN_USER_INFO})")
_PARAMETER = re.compile(r"[?&;#]([^=?&;#\s]+)=(?=[^&#\s])")  # a value may hold what looks like another
_VALUE = re.compile(r"[^&#\s]+")
_SECRET_NAME = re.compile(
    r"sig|token|key|secret|credential|passw|auth|pwd|jwt|(?<![a-z])(?:pass|code)(?![a-z])", re.IGNORECASE
)
_MAX_ENCODINGS = 3  # percent-encoding of percent-encoding is undone this often


def open_filesystem(url: str) -> tuple[Any, str]:
    """The fsspec filesystem of `url` and the path inside it; listings are never cached.

    A `file://` URL is percent-encoded (RFC 8089), `file:///a%20b` is the folder `a b`; but a part of it that is there
    as it stands is taken as it stands. A path without a protocol is never decoded.

    Raises UserError where the protocol is unknown, its driver is not installed, or the driver refuses the URL or
    what it finds of credentials.
    """
    protocol = split_protocol(url)[0]
    if protocol in _WITHOUT_QUESTION_MARKS and "?" in url:
        raise UserError(
            f"{redact(url)}: the driver of {protocol}:// takes no '?' in names and patterns; use * instead"
        )
    try:
        if protocol == "hf":
            limit_silence()
        if is_chained(url) or protocol not in (None, *_LOCAL_PROTOCOLS) and "::" not in url:
            return url_to_fs(url, **_driver_options(url))
        if protocol in (None, *_LOCAL_PROTOCOLS):
            path = url if protocol is None else _local_path(url.partition("://")[2])
            return fsspec.filesystem("file", use_listings_cache=False), str(
                LocalFileSystem._strip_protocol(path)
            )
        # A name with `::` in it, which fsspec alone would take for a chain.
        driver = fsspec.get_filesystem_class(protocol)
        options = driver._get_kwargs_from_urls(url) | _driver_options(url)
        return fsspec.filesystem(protocol, **options), driver._strip_protocol(url)
    except ImportError as error:
        extra = _EXTRAS.get(protocol or "")
        how = f'; pip install "tatok_pipe[{extra}]"' if extra else ""
        raise UserError(
            f"{redact(url)}: the driver of {protocol}:// is not installed: {error}{how}"
        ) from error
    except Exception as error:
        if protocol not in (None, *available_protocols()) and isinstance(error, ValueError):
            known = ", ".join(f"{name}://" for name in ("s3", "gs", "az", "hf", "http", "file"))
            raise UserError(
                f"{redact(url)}: {protocol}:// is no protocol that fsspec knows; use a path or one of {known}"
            ) from error
        fault = find_fault(error)
        if fault is None:
            raise
        raise UserError(
            f"{redact(url)}: the driver of {protocol}:// refuses ({redact(fault.text)}); check the URL, and "
            "the credentials in the environment"
        ) from error


def is_for_one_thread(filesystem: Any) -> bool:
    """Whether a filesystem must not be used by several threads, so that each needs one from `open_apart`."""
    return speaks(filesystem, "sftp")


def open_apart(url: str) -> tuple[Any, str]:
    """As `open_filesystem`, with a connection that nobody else has, for `close_apart`. Of those `is_for_one_thread`
    holds for."""
    return url_to_fs(url, skip_instance_cache=True, **_driver_options(url))


def close_apart(filesystem: Any) -> None:
    filesystem.client.close()


def is_chained(url: str) -> bool:
    """Whether `url` names a filesystem within another one: `simplecache::s3://bucket/a`, `zip://a::file://b.zip`."""
    return "::" in url and any(map(names_filesystem_within, url.split("::")[:-1]))


def names_filesystem_within(part: str) -> bool:
    """Whether what stands before a `::` names a filesystem that reads out of what stands behind it."""
    return part in _WITHIN_ANOTHER or "://" in part and part.partition("://")[0] in _WITHIN_ANOTHER


def file_name(url: str) -> str:
    """The last part of the path of `url`, in lower case, whose end says what the file is: without a query, of a file
    within another one its own."""
    if is_chained(url):
        url = next((part for part in url.split("::") if "://" in part), url)
    return url.partition("?")[0].rpartition("/")[2].lower()


def _driver_options(url: str) -> dict[str, Any]:
    # Settings are of the store, which comes last in a chained URL (simplecache::s3://bucket/a.tar); fsspec gives the
    # protocol in front what has no name of its own.
    protocol = split_protocol(url.rpartition("::")[2])[0]
    options = settings_of(url)
    if protocol in _S3_PROTOCOLS:
        told = conf.get("s3", {}).get("config_kwargs", {})
        options["config_kwargs"] = {"max_pool_connections": _S3_CONNECTIONS} | told
    if protocol not in _SSH_PROTOCOLS:
        options["use_listings_cache"] = False
    if is_chained(url) and protocol is not None:
        return {"use_listings_cache": False, protocol: options}
    return options


def _local_path(path: str) -> str:
    """The path behind `file://`."""
    if path.startswith("localhost/") and not os.path.lexists("localhost"):
        path = path.removeprefix("localhost")
    if "%" not in path:
        return path
    found = ""
    for part in path.split("/"):
        decoded = unquote(part, errors="surrogateescape")
        # Decided part by part, so that what is written into a folder lands in it, whichever way it is spelled.
        stays = "\0" in decoded or decoded == part or os.path.lexists(found + part)
        found += (part if stays else decoded) + "/"
    return found[:-1]


def is_local(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether paths of this filesystem are files of this machine."""
    return isinstance(filesystem, LocalFileSystem)


def is_s3(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether the filesystem speaks S3, and so has conditional PUT."""
    return speaks(filesystem, "s3")


def is_web_url(url: str) -> bool:
    """Whether a URL is of a web server, where `?` begins a query and nothing can be listed."""
    return url.startswith(("http://", "https://"))


def is_http(filesystem: fsspec.AbstractFileSystem) -> bool:
    """Whether the files are those of a web server."""
    return speaks(filesystem, "http")


def speaks(filesystem: fsspec.AbstractFileSystem, protocol: str) -> bool:
    """Whether `protocol` is one of those that the filesystem is the driver of."""
    return protocol in (
        (filesystem.protocol,) if isinstance(filesystem.protocol, str) else filesystem.protocol
    )


def join(url: str, *parts: str) -> str:
    """`url` with `parts` below it, separated by single slashes."""
    # Not posixpath.join: there a part that begins with a slash would replace everything before it.
    base = url if url.endswith("://") else url.rstrip("/") + "/"
    return base + "/".join(part.strip("/") for part in parts)


def resolve_address(address: str, base: str) -> str:
    """What a file at `base` means by `address`: a URL, an absolute path, or what is relative to its own folder."""
    if names_its_place(address):
        return address
    parts = base.split("::") if is_chained(base) else [base]
    place = next((number for number, part in enumerate(parts) if "://" in part), 0)
    path = parts[place]
    if path.startswith(("http://", "https://")):
        path = path.partition("?")[0]
    parts[place] = join(path.rpartition("/")[0] or "/", address.removeprefix("./"))
    return "::".join(parts)


def names_its_place(address: str) -> bool:
    """Whether an address is a URL or an absolute path, so that it means the same wherever it is written."""
    return "://" in address or is_chained(address) or address.startswith(("/", "data:"))


def store_of(url: str) -> tuple[str, ...]:
    """Which store `url` is in: protocol, and host or bucket; of a chained URL what is before it, too. The disks of this
    machine are one."""
    if is_local(open_filesystem(url)[0]):
        return LOCAL_STORE
    *within, last = canonical_url(url).split("::")
    protocol, _, place = last.partition("://")
    return (*within, protocol, place.lstrip("/").partition("/")[0])


def canonical_url(url: str) -> str:
    """The one name of a file: an absolute path where it is local, else a normalised URL without secrets.

    A signed URL loses its query, so that a shard keeps its name when the link is signed anew; a part of a folder the
    URL of its list.
    """
    if part := parse_part(url):
        return ListedPart(canonical_url(part.source), part.number, "").name
    folder, name = _split(url)
    return _spell(url).canonical if folder is None else folder.canonical + name


def openable_url(url: str) -> str:
    """`url` as it was written, but where it is local as an absolute path.

    Unlike the canonical one it keeps what opening the file needs: `user:password@` and signed queries.
    """
    if part := parse_part(url):
        return str(ListedPart(openable_url(part.source), part.number, openable_url(part.list_url)))
    folder, name = _split(url)
    return _spell(url).openable if folder is None else folder.openable + name


class _Spelling(NamedTuple):
    openable: str
    canonical: str


def _spell(url: str) -> _Spelling:
    filesystem, path = open_filesystem(url)
    if is_local(filesystem):
        return _Spelling(path, os.path.abspath(path))
    name = url if is_chained(url) else _with_host(filesystem.unstrip_protocol(path), url)
    if speaks(filesystem, "abfs") and "@" in url.partition("://")[2].partition("/")[0]:
        name = "abfs://" + url.partition("://")[2]  # with the account, which adlfs leaves out of the path
    name = _USER_INFO.sub("", name)
    if any(_is_secret(match[1]) for match in _PARAMETER.finditer(name)):
        name = name.partition("?")[0]
        name = name.partition("#")[0] if name.startswith(("http://", "https://")) else name
    return _Spelling(url, name)


def name_listed(url: str, path: str, name: str) -> str:
    """The URL of the file that a listing of the filesystem of `url` calls `name`, spelled as `url` is.

    `path` is what `open_filesystem` gave for `url`. Drivers leave the account of an Azure URL out of their names, and
    know nothing of what a chained URL has behind their part.
    """
    if "://" in name:
        return name
    parts = url.rstrip("/").split("::") if is_chained(url) else [url.rstrip("/")]
    place = next((number for number, part in enumerate(parts) if "://" in part), 0)
    path, part = path.rstrip("/"), parts[place]
    if part.endswith(path):
        parts[place] = part[: len(part) - len(path)] + name
    else:
        key = path.partition("/")[2]
        parts[place] = part[: len(part) - len(key)] + name.partition("/")[2]
    return "::".join(parts)


def _with_host(name: str, url: str) -> str:
    """The driver's `name` of `url`, with the host and port that those of sftp, ftp, smb and webhdfs leave out."""
    protocol, _, path = name.partition("://")
    host = _USER_INFO.sub("", url).partition("://")[2].partition("/")[0]
    has_host = "host" in fsspec.get_filesystem_class(protocol)._get_kwargs_from_urls(url)
    return f"{protocol}://{host.lower()}{path}" if has_host and path.startswith("/") else name


# Asking fsspec takes 15 to 40 us a URL, most of a minute for a million. Their directories are few, and a name
# of such characters alone means the same below any of them: no query, no escape, no '..', no secret.
_PLAIN_NAME = re.compile(r"\w[\w.+-]*")
_PROBE = "stands-for-any-plain-name"


def _split(url: str) -> tuple[_Spelling | None, str]:
    """The spelling of the directory of `url`, with its slash, and the name; None where `_spell` has to say."""
    directory, slash, name = url.rpartition("/")
    if (
        not _PLAIN_NAME.fullmatch(name)
        or url.startswith("~")
        or any(each in url for each in ("?", "::", "%"))
    ):
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


def user_info(url: str) -> str:
    """`user:password` of `url`; empty where it has none."""
    found = _USER_INFO.search(url)
    return found[0].removesuffix("@") if found else ""


def redact(url: str) -> str:
    """`url`, or a text with URLs in it, with `user:password@` and secret values of its query and fragment hidden."""
    text = _HIDDEN_USER_INFO.sub("***@", hide_lists(url))
    shown, stop = [], 0
    for match in _PARAMETER.finditer(text):
        if match.start() >= stop and _is_secret(match[1]):
            shown += [text[stop : match.end()], "***"]
            value = _VALUE.match(text, match.end())
            stop = value.end() if value else match.end()
    return "".join([*shown, text[stop:]])


def redact_argument(argument: str) -> str:
    """An argument of a command, `option=value` or not, as it may stand in a file that others read."""
    option = _OPTION.match(argument)
    return option[0] + redact(argument[option.end() :]) if option else redact(argument)


def _is_secret(name: str) -> bool:
    """Whether a query's parameter of this name holds a secret."""
    for _ in range(_MAX_ENCODINGS):
        name = unquote(name)
    return _SECRET_NAME.search(name) is not None
