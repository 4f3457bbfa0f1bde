"""A study judges drawn images by the classes of real ones: every image needs a label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.pictures import Picture, read_pictures, share_out
from tatok_pipe.images.shard_errors import ShardError
from tatok_pipe.storage import ShardFile


def check_label(picture: Picture, *, option: str, num_classes: int) -> None:
    """Raise UserError where it is of none of the classes."""
    if picture.label is None:
        raise UserError(
            f"{option}: {picture.key} has no label; expected 0 to {num_classes - 1}: a file .cls beside each image of "
            "a tar, or a column label"
        )
    if not 0 <= picture.label < num_classes:
        raise UserError(
            f"{option}: {picture.key} has label {picture.label}; expected 0 to {num_classes - 1}, or another "
            "data.num_classes"
        )


def look_at_labels(images: Mapping[str, Sequence[ShardFile]], *, image_size: int, num_classes: int) -> None:
    """Check the first image that each option gives, before anything is made. Raises UserError."""
    for option, shards in images.items():
        (source,) = share_out(shards, max_images=1)
        try:
            pictures = read_pictures(source, image_size=image_size)
        except ShardError as error:
            raise UserError(f"{option}: {error}") from None
        for picture in pictures:
            check_label(picture, option=option, num_classes=num_classes)
