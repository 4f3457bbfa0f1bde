"""What a token dataset names, its image shards and its tokenizer, so that it can be opened. That is not done lightly:
somebody else may have written those URLs."""

from __future__ import annotations

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.loose.image_list import LIST_FILE, read_part

_MIN_DIGITS = 6  # of the number of a part


def open_named(url: str, dataset_url: str, *, other_stores: bool) -> str:
    """A URL that the dataset at `dataset_url` names, as it is opened: a part of a folder or manifest with its list,
    which the dataset keeps. Raises UserError where it, or an image that the list names, is on no disk of this machine,
    in another store (protocol, and host or bucket) than the dataset, and `other_stores` does not say that it may be; or
    where it names a list of its own, which no dataset of ours does, and which could be anywhere."""
    own = (storage.LOCAL_STORE, storage.store_of(dataset_url))
    if storage.parse_part(url) is not None:
        raise UserError(
            f"{storage.redact(url)}: names a list of images, which no footer does, so it is not opened; find out "
            "who wrote the dataset"
        )
    if not other_stores and storage.store_of(url) not in own:
        raise UserError(
            f"{storage.redact(url)}: in another store than the dataset that names it, so it is not opened; "
            "input.other_stores=true opens it"
        )
    source, sign, number = url.rpartition("#")
    list_url = storage.join(dataset_url, LIST_FILE)
    if not (sign and len(number) >= _MIN_DIGITS and number.isdecimal() and storage.exists(list_url)):
        return url
    part = storage.ListedPart(source, int(number), storage.openable_url(list_url))
    for file in [] if other_stores else read_part(part).files:
        if storage.store_of(image := file.url(source)) not in own:
            raise UserError(
                f"{storage.redact(url)}: names {storage.redact(image)}, in another store than the dataset, so it is "
                "not opened; input.other_stores=true opens it"
            )
    return str(part)
