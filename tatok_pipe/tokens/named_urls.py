"""What a token dataset names, its image shards and its tokenizer, so that it can be opened. That is not done lightly:
somebody else may have written those URLs."""

from __future__ import annotations

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.folder_list import LIST_FILE

_LOCAL = ("",)
_MIN_DIGITS = 6  # of the number of a part of a folder


def open_named(url: str, dataset_url: str, *, other_stores: bool) -> str:
    """A URL that the dataset at `dataset_url` names, as it is opened: a part of a folder with its list, which the
    dataset keeps. Raises UserError where it is on no disk of this machine, in another store (protocol, and host or
    bucket) than the dataset, and `other_stores` does not say that it may be; or where it names a list of its own, which
    no dataset of ours does, and which could be anywhere."""
    if storage.parse_part(url) is not None:
        raise UserError(
            f"{storage.redact(url)}: names the list of a folder, which no footer does, so it is not opened; find out "
            "who wrote the dataset"
        )
    if not other_stores and _store_of(url) not in (_LOCAL, _store_of(dataset_url)):
        raise UserError(
            f"{storage.redact(url)}: in another store than the dataset that names it, so it is not opened; "
            "input.other_stores=true opens it"
        )
    folder, sign, number = url.rpartition("#")
    list_url = storage.join(dataset_url, LIST_FILE)
    if not (sign and len(number) >= _MIN_DIGITS and number.isdecimal() and storage.exists(list_url)):
        return url
    return str(storage.FolderPart(folder, int(number), storage.openable_url(list_url)))


def _store_of(url: str) -> tuple[str, ...]:
    """Protocol, and host or bucket; of a chained URL what is before it, too."""
    if storage.is_local(storage.open_filesystem(url)[0]):
        return _LOCAL
    *within, last = storage.canonical_url(url).split("::")
    protocol, _, place = last.partition("://")
    return (*within, protocol, place.lstrip("/").partition("/")[0])
