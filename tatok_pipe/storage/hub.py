"""Files in repositories of the Hugging Face hub, asked for by their names.

fsspec's driver reads a file by way of a listing of its folder, which it keeps, so that what another process has
committed since is not there for it; and with each range it fetches 5 MiB more.
"""

from __future__ import annotations

from typing import Any

from tatok_pipe.storage.faults import LastingError
from tatok_pipe.storage.urls import speaks

_NO_RANGES = "the server gave the whole file where a part of it was asked for (it ignores Range)"
_BUCKETS = "buckets/"


def is_repository(filesystem: Any, path: str) -> bool:
    """Whether `path` is in a repository of the hub, not in one of its buckets."""
    return speaks(filesystem, "hf") and not path.startswith(_BUCKETS)


def make_api(filesystem: Any) -> Any:
    """huggingface_hub's HfApi, which asks where and as whom the filesystem does."""
    from huggingface_hub import HfApi

    return HfApi(endpoint=filesystem.endpoint, token=filesystem.token)


def find(filesystem: Any, place: Any, *, revision: str, is_expanded: bool = False) -> Any | None:
    """What the hub tells of the file or folder at `place` (of `resolve_path`) in this revision; None where it has
    neither. A file has a `blob_id`. Where expanded, with its last commit."""
    (found,) = make_api(filesystem).get_paths_info(
        place.repo_id, place.path_in_repo, expand=is_expanded, revision=revision, repo_type=place.repo_type
    ) or [None]
    return found


def file_entry(filesystem: Any, path: str) -> dict[str, Any]:
    """As fsspec's `info`. Raises FileNotFoundError."""
    place = filesystem.resolve_path(path)
    folder = {"name": place.unresolve(), "type": "directory", "size": 0}
    if not place.path_in_repo:
        return folder
    found = find(filesystem, place, revision=place.revision)
    if found is None:
        raise FileNotFoundError("the repository has no such file")
    if not hasattr(found, "blob_id"):
        return folder
    return folder | {"type": "file", "size": found.size, "blob_id": found.blob_id}


def read(filesystem: Any, path: str, start: int | None = None, stop: int | None = None) -> bytes:
    """The bytes [start, stop) of the file, or all of it, in one attempt; fewer where the answer ends early."""
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    place = filesystem.resolve_path(path)
    address = hf_hub_url(
        place.repo_id,
        place.path_in_repo,
        repo_type=place.repo_type,
        revision=place.revision,
        endpoint=filesystem.endpoint,
    )
    headers = {"Accept-Encoding": "identity", **build_hf_headers(token=filesystem.token)}
    if start is not None and stop is not None:
        headers["Range"] = f"bytes={start}-{stop - 1}"
    timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT  # of silence
    with get_session().stream("GET", address, headers=headers, timeout=timeout_s) as answer:
        hf_raise_for_status(answer)
        if "Range" in headers and answer.status_code != 206:
            raise LastingError(_NO_RANGES)
        return answer.read()
