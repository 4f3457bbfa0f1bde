"""A folder of loose images, on any store, as the image shards that the rest of the program knows: its parts.

What belongs to an image is what has its name with another extension, as in a tar; its key is its path below the folder
without the extension. Where every image is in a folder of its own kind, the names of these folders are the classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.class_names import MAX_NAMES, are_names
from tatok_pipe.images.formats.table import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS
from tatok_pipe.images.limits import METADATA_EXTENSIONS
from tatok_pipe.images.loose.image_list import ListedFile, extension_of, show_path
from tatok_pipe.images.loose.part_plan import PartPlan, plan_parts
from tatok_pipe.images.options import IMAGES_PER_PART
from tatok_pipe.storage import ShardFile

_OF_IMAGES = frozenset((*IMAGE_EXTENSIONS, *UNREAD_EXTENSIONS))
_OF_SAMPLES = _OF_IMAGES.union(METADATA_EXTENSIONS)
_OF_SYSTEMS = frozenset(("__MACOSX", "@eaDir"))  # folders of thumbnails and the like beside the images
_SPLITS = frozenset(("train", "training", "val", "valid", "validation", "dev", "test", "testing"))
_NO_CLASSES = (
    "some images are in folders and some beside these, so that the names of the folders are no classes; move them into "
    "folders too where they should be"
)


def is_image(name: str) -> bool:
    """Whether a file is an image, also one that is not read, by its name or URL."""
    return extension_of(name) in _OF_IMAGES


def plan_folder(
    folder: str,
    files: Sequence[ShardFile],
    *,
    list_url: str,
    images_per_part: int = IMAGES_PER_PART,
) -> PartPlan:
    """The parts of the folder at `folder` in which these files are, given the list at `list_url`, where there is one.

    Raises UserError as `plan_parts`, and where the folder has parts for training and for validation.
    """
    root = folder.rstrip("/") + "/"
    samples = _group(files, start=len(root))
    classes, note = _find_classes(folder, samples)
    has_times = storage.is_local(storage.open_filesystem(folder)[0])

    def find(stem: str) -> list[tuple[ListedFile, int | None]]:
        return [
            (ListedFile(file.url[len(root) :], file.size_bytes or 0, file.etag), file.mtime_ns if has_times else None)
            for file in samples[stem]
        ]  # fmt: skip

    return plan_parts(
        folder,
        list(samples),
        find,
        classes=classes,
        list_url=list_url,
        images_per_part=images_per_part,
        note=note,
    )


def _group(files: Sequence[ShardFile], *, start: int) -> dict[str, list[ShardFile]]:
    """The files of every image by its path without the extension, both sorted."""
    paired = []
    with_image: set[str] = set()
    for file in files:
        path = file.url[start:]
        extension = extension_of(path)
        if extension in _OF_SAMPLES and not _is_hidden(path):
            paired.append((_stem(path), file))
            if extension in _OF_IMAGES:
                with_image.add(paired[-1][0])
    paired.sort(key=lambda pair: (pair[0], pair[1].url))
    return {
        stem: [file for _, file in run]
        for stem, run in groupby(paired, key=lambda pair: pair[0])
        if stem in with_image
    }


def _find_classes(folder: str, samples: dict[str, list[ShardFile]]) -> tuple[tuple[str, ...], str]:
    """Names of the classes, and what a user ought to know of them."""
    tops = sorted({show_path(stem.partition("/")[0]) for stem in samples if "/" in stem})
    splits = [top for top in tops if top.lower() in _SPLITS]
    if splits and all(top in splits for top in tops):
        raise UserError(
            f"{storage.redact(folder)}: has the folders {', '.join(tops)}; give one of them, as in "
            f"{storage.redact(storage.join(folder, splits[0]))}"
        )
    if tops and any("/" not in stem for stem in samples):
        return (), _NO_CLASSES
    if tops and not are_names(tops):
        return (
            (),
            f"{len(tops)} folders, which are no classes: more than {MAX_NAMES}, or a name of several lines",
        )
    return tuple(tops), ""


def _is_hidden(path: str) -> bool:
    return any(name.startswith(".") or name in _OF_SYSTEMS for name in path.split("/"))


def _stem(path: str) -> str:
    return path.rpartition(".")[0]
