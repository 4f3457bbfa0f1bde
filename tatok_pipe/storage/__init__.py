"""Files by URL on any fsspec filesystem: list, stream, publish atomically, retry what may pass.

A plain path and `file://` are the local disk; `s3://`, `gs://`, `http://`, `memory://` and the rest are
fsspec's. Credentials come from the environment only (`AWS_ACCESS_KEY_ID`, ...), so that no config, log line or
dataset ever holds a secret; endpoints come from there or from `StorageConfig`.
"""

from tatok_pipe.storage.content import HashingReader, hash_file
from tatok_pipe.storage.faults import LastingError, why_unreachable
from tatok_pipe.storage.files import (
    ListedFile,
    SourceInfo,
    exists,
    file_info,
    list_files,
    list_folders,
    read_at_most,
    read_bytes,
    read_tail,
    remove,
    remove_folder,
    scan_files,
)
from tatok_pipe.storage.lookup import ShardFile, find_named
from tatok_pipe.storage.parts import ListedPart, parse_part
from tatok_pipe.storage.promise import find_broken_promise
from tatok_pipe.storage.publish import commits_each_write, publish_bytes, publish_file
from tatok_pipe.storage.random_access import open_random_access
from tatok_pipe.storage.reader import open_stream, source_gives_ranges
from tatok_pipe.storage.settings import StorageConfig, configure, endpoint_of
from tatok_pipe.storage.urls import (
    LOCAL_STORE,
    canonical_url,
    file_name,
    is_http,
    is_local,
    join,
    names_its_place,
    open_filesystem,
    openable_url,
    redact,
    redact_argument,
    resolve_address,
    store_of,
)

__all__ = [
    "LOCAL_STORE",
    "HashingReader",
    "LastingError",
    "ListedFile",
    "ListedPart",
    "ShardFile",
    "SourceInfo",
    "StorageConfig",
    "canonical_url",
    "commits_each_write",
    "configure",
    "endpoint_of",
    "exists",
    "file_info",
    "file_name",
    "find_broken_promise",
    "find_named",
    "hash_file",
    "is_http",
    "is_local",
    "join",
    "list_files",
    "list_folders",
    "names_its_place",
    "open_filesystem",
    "open_random_access",
    "open_stream",
    "openable_url",
    "parse_part",
    "publish_bytes",
    "publish_file",
    "read_at_most",
    "read_bytes",
    "read_tail",
    "redact",
    "redact_argument",
    "remove",
    "remove_folder",
    "resolve_address",
    "scan_files",
    "source_gives_ranges",
    "store_of",
    "why_unreachable",
]
