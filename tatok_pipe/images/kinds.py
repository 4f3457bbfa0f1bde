"""Files that are given as image shards and are none: known by their names and first bytes, each with the reason."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tatok_pipe.images.formats.table import IMAGE_EXTENSIONS, UNREAD_EXTENSIONS
from tatok_pipe.storage import file_name

BEGIN_BYTES = 8  # as many tell the kinds apart


@dataclass(frozen=True)
class Kind:
    """A kind of files that is not read, why, and what to do with them."""

    name: str  # with its article, for a user
    suffixes: tuple[str, ...]
    advice: str  # the reason in it
    begins: tuple[bytes, ...] = ()


_PACK = "pack the images as .tar files of some thousand each"
KINDS = (
    Kind("a 7z archive", (".7z",), f"no reader for it: unpack it and {_PACK}", (b"7z\xbc\xaf\x27\x1c",)),
    Kind("a rar archive", (".rar",), f"no reader for it: unpack it and {_PACK}", (b"Rar!\x1a\x07",)),
    Kind(
        "a compressed file",
        (".gz", ".bz2", ".xz", ".zst", ".lz4"),
        "where it is a tar, give it a name that ends so, as in .tar.gz; else decompress it",
        (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"),
    ),
    Kind(
        "a loose image",
        tuple(f".{extension}" for extension in (*IMAGE_EXTENSIONS, *UNREAD_EXTENSIONS)),
        "give the folder that holds the images, without a pattern",
        (b"\xff\xd8\xff", b"\x89PNG\r\n", b"GIF8"),
    ),
    Kind(
        "a table of records of another format",
        (".tfrecord", ".tfrecords", ".rec", ".mdb", ".lmdb", ".beton", ".mds", ".h5", ".hdf5", ".npy", ".npz")
        + (".arrow", ".feather", ".msgpack", ".pkl", ".pickle", ".pt", ".pth"),
        "only .tar and .parquet hold images here: convert it",
        (b"\x89HDF\r\n", b"\x93NUMPY", b"ARROW1"),
    ),
    Kind("a list of images", (".jsonl",), "as a manifest it is given by its name, alone"),
    Kind(
        "a list or text",
        (".txt", ".csv", ".tsv", ".json", ".yaml", ".yml", ".md", ".html"),
        "it has no images: a list of image shards is given as @list.txt",
    ),
)  # fmt: skip


def kind_of(name: str) -> Kind | None:
    """The kind of a file that is no image shard, by the end of its name or URL; None where the name says nothing."""
    name = file_name(name)
    return next((kind for kind in KINDS if name.endswith(kind.suffixes)), None)


def kind_of_content(begin: bytes) -> Kind | None:
    """The same by its first BEGIN_BYTES bytes, or more of them."""
    return next((kind for kind in KINDS if kind.begins and begin.startswith(kind.begins)), None)


def tell_kinds(names: Iterable[str]) -> str:
    """Files that are no image shards, those of a kind together: "60 × a loose image, first: 0.jpg; ..." with what to
    do. Empty where the names say nothing."""
    counts: dict[Kind, int] = {}
    first: dict[Kind, str] = {}
    for name in names:
        if kind := kind_of(name):
            counts[kind] = counts.get(kind, 0) + 1
            first.setdefault(kind, name)
    most = sorted(counts, key=lambda kind: -counts[kind])
    return "; ".join(f"{counts[kind]} × {kind.name}, first: {first[kind]} ({kind.advice})" for kind in most)
