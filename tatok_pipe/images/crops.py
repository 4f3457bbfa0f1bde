"""Where the crops of an image are: squares of the upright picture, in a fixed order. Maths only.

Letters: S, side of a crop that the tokenizer is given; T = round(scale × S), short side of the picture at the scale at
which crops are cut. Both are pixels of the scaled picture; everything else is in pixels of the source.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tatok_pipe.config.options import config_dataclass, option
from tatok_pipe.seeds import hash_words

# What each kind can be told, with its defaults, and how it may flip. 1.1 is LlamaGen's range for ten-crop, 1 to 1.25
# are ADM's random crops (arXiv 2105.05233; its fractions 1.0 and 0.8 of the short side).
_SETTINGS: dict[str, dict[str, Any]] = {
    "center": {"scale": 1.0, "flip": "no"},
    "ten_crop": {"scale": 1.1, "flip": "both"},
    "random": {"count": 1, "min_scale": 1.0, "max_scale": 1.25, "flip": "no", "seed": 0},
}
_FLIPS = {"center": ("no", "both"), "ten_crop": ("both",), "random": ("no", "both", "random")}
KINDS = tuple(_SETTINGS)
FLIPS = _FLIPS["random"]
_MIN_SCALE = 1  # below it the picture would be smaller than its crop
_MAX_SCALE = 10
_MAX_COUNT = 128  # all crops of an image are in memory at once

Box = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class Square:
    """A square of the upright picture, to be resized to S x S."""

    box: Box
    place: tuple[int, int] | None = None  # left, top in the field scaled to T; random crops have none
    is_mirrored: bool = False


@config_dataclass
class CropConfig:
    """Which crops an image is cut into; each is a row. An option that is null is the default of its kind."""

    kind: str = option(
        "center",
        choices=KINDS,
        help="center: the centre square; ten_crop: corners and centre of the centre square, then their mirror images, "
        "as LlamaGen cuts them; random: squares anywhere in the picture, the same ones for the same key and seed",
    )
    scale: float | None = option(
        None,
        at_least=_MIN_SCALE,
        at_most=_MAX_SCALE,
        help="center, ten_crop: the picture's short side is scaled to this many image sizes before it is cut; "
        "null: 1.0, for ten_crop 1.1",
        unit="image sizes",
    )
    min_scale: float | None = option(
        None,
        at_least=_MIN_SCALE,
        at_most=_MAX_SCALE,
        help="random: the smallest scale, drawn for each crop; null: 1.0",
        unit="image sizes",
    )
    max_scale: float | None = option(
        None,
        at_least=_MIN_SCALE,
        at_most=_MAX_SCALE,
        help="random: the largest scale, drawn for each crop; null: 1.25",
        unit="image sizes",
    )
    count: int | None = option(
        None, at_least=1, at_most=_MAX_COUNT, help="random: how many; null: 1", unit="crops per image"
    )
    flip: str | None = option(
        None,
        choices=FLIPS,
        help="both: all crops, then the mirror image of each; random: each is mirrored or not; null: no, for ten_crop "
        "both",
    )
    seed: int | None = option(None, at_least=0, help="random: other crops for another number; null: 0")

    def __post_init__(self) -> None:
        for name in ("scale", "min_scale", "max_scale", "count", "seed"):
            if getattr(self, name) is not None and name not in _SETTINGS[self.kind]:
                kinds = " or ".join(kind for kind in KINDS if name in _SETTINGS[kind])
                raise ValueError(
                    f"{name}={getattr(self, name)}: is for kind={kinds}, this is {self.kind}; leave it out, or give "
                    "another kind"
                )
        settings = self.settings
        if settings["flip"] not in _FLIPS[self.kind]:
            raise ValueError(
                f"flip={settings['flip']!r}: expected {' or '.join(_FLIPS[self.kind])} with kind={self.kind}; "
                "leave it out for the default"
            )
        if self.kind == "random" and settings["min_scale"] > settings["max_scale"]:
            raise ValueError(
                f"min_scale={settings['min_scale']}: expected at most max_scale={settings['max_scale']}; give both"
            )

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What the kind can be told, with the defaults filled in."""
        given = {name: getattr(self, name) for name in _SETTINGS[self.kind]}
        return _SETTINGS[self.kind] | {name: value for name, value in given.items() if value is not None}

    @property
    def num_places(self) -> int:
        """Different squares of an image, mirror images aside."""
        return self.settings["count"] if self.kind == "random" else 5 if self.kind == "ten_crop" else 1

    @property
    def num_crops(self) -> int:
        """Rows of an image."""
        return self.num_places * (2 if self.settings["flip"] == "both" else 1)

    def check_size(self, image_size: int) -> None:
        """Raise ValueError where the crops of images of this size S would be the same one."""
        if self.kind == "ten_crop" and self.largest_side(image_size) < image_size + 2:
            scale = self.settings["scale"]
            raise ValueError(
                f"scale={scale}: of {self.largest_side(image_size)} pixels, crops of {image_size} at the corners and "
                f"the centre are not five different ones; give at least {1 + 2 / image_size:.4f}"
            )

    def largest_side(self, image_size: int) -> int:
        """T at the largest scale."""
        settings = self.settings
        return round(settings["max_scale" if self.kind == "random" else "scale"] * image_size)

    def to_encoding(self) -> dict[str, Any]:
        """What a dataset says of its crops, for `TokenSpec.encoding`; nothing where they are the default. The inverse
        is `from_encoding`."""
        if self.kind == "center" and self.settings == _SETTINGS["center"]:
            return {}
        return {"crops": {"kind": self.kind, **self.settings, "per_image": self.num_crops}}

    @classmethod
    def from_encoding(cls, encoding: Mapping[str, Any]) -> CropConfig:
        """Raises ValueError for crops that this program does not cut."""
        written = dict(encoding.get("crops", {}))
        written.pop("per_image", None)
        try:
            return cls(**written)
        except TypeError as error:
            raise ValueError(f"crops {written}: {error}") from None


@dataclass(frozen=True)
class CropPlan:
    """Where one image is cut. Pictures are upright."""

    config: CropConfig
    image_size: int  # S
    key: str  # of the sample: what random crops depend on, with the seed and their number

    @cached_property
    def largest_side(self) -> int:
        """T at the largest scale."""
        return self.config.largest_side(self.image_size)

    def field(self, width: int, height: int) -> tuple[int, int, int, int]:
        """The box in which all crops are: the centre square, its origin rounded down; for `random` all of it."""
        if self.config.kind == "random":
            return 0, 0, width, height
        side = min(width, height)
        left, top = (width - side) // 2, (height - side) // 2
        return left, top, left + side, top + side

    def squares(self, width: int, height: int) -> list[Square]:
        """The crops by number: top left, top right, bottom left, bottom right and centre of a ten-crop, random ones as
        they are drawn. Those that `flip=both` adds are the mirror images of the first half, in its order."""
        if self.config.kind == "random":
            squares = [self._draw(number, width, height) for number in range(self.config.num_places)]
        else:
            left, top, right, _ = self.field(width, height)
            space = self.largest_side - self.image_size
            half = space // 2  # rounds down, too
            corners = [(0, 0), (space, 0), (0, space), (space, space)]
            places = [*corners, (half, half)] if self.config.kind == "ten_crop" else [(half, half)]
            squares = [
                Square(
                    self._to_source(x, y, side=right - left, scaled=self.largest_side, left=left, top=top),
                    (x, y),
                )
                for x, y in places
            ]
        if self.config.settings["flip"] == "both":
            squares += [replace(square, is_mirrored=True) for square in squares]
        return squares

    def _draw(self, number: int, width: int, height: int) -> Square:
        settings, size = self.config.settings, self.image_size
        at_scale, at_x, at_y, coin = hash_words(settings["seed"], self.key, number)
        low, high = settings["min_scale"], settings["max_scale"]
        scaled = round(size * (low + (high - low) * (at_scale / 2**64)))
        side = min(width, height)
        # Whole pixels of the scaled picture, as many as lie in the source entirely.
        x = at_x * (width * scaled // side - size + 1) >> 64
        y = at_y * (height * scaled // side - size + 1) >> 64
        is_mirrored = settings["flip"] == "random" and bool(coin & 1)
        return Square(self._to_source(x, y, side=side, scaled=scaled), is_mirrored=is_mirrored)

    def _to_source(self, x: int, y: int, *, side: int, scaled: int, left: int = 0, top: int = 0) -> Box:
        """The crop at (x, y) of a picture whose short side was scaled from `side` to `scaled`.

        One division, at the end, so that what reaches an edge of the picture does so exactly.
        """
        size = self.image_size
        return (
            left + x * side / scaled,
            top + y * side / scaled,
            left + (x + size) * side / scaled,
            top + (y + size) * side / scaled,
        )
