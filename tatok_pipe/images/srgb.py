"""Loaded pixels of any trusted mode to 8-bit sRGB."""

from __future__ import annotations

import io
from contextlib import suppress
from functools import cache, lru_cache

import numpy as np
from PIL import Image, ImageCms

from tatok_pipe.images.crops import Box
from tatok_pipe.images.errors import unsupported_mode

_OPAQUE = ("L", "RGB", "CMYK", "YCbCr", "LAB")
_GREY = ("1", "L", "LA", "La")
_MAX_CACHED_BYTES = 1 << 20
_BROKEN = (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError)  # of a profile
# Of 255. The same sRGB, written by other programs, differs by that in a colour of a thousand: how lcms rounds.
_MAX_SRGB_LEVELS = 1


def interpolable(image: Image.Image, field: Box) -> tuple[Image.Image, tuple[float, float]]:
    """The image in a mode whose values may be averaged, and where its origin is in the one given.

    Where that needs a conversion only the field of the crops is converted. (Only JPEG has a fractional one, and its
    modes need none.) White comes in behind transparency here, before averaging, so that the colours of transparent
    pixels do not: the same as resizing premultiplied, without its ringing in alpha.
    """
    mode = image.mode
    if mode in _OPAQUE and not image.has_transparency_data:
        return image, (0, 0)
    crop = image.crop(field)  # type: ignore[arg-type]
    if mode in ("1", "L", "RGB", "P", "PA", "LA", "La", "RGBA") and image.has_transparency_data:
        layer = crop.convert("LA" if mode in _GREY else "RGBA")
        crop = Image.new("L" if mode in _GREY else "RGB", layer.size, "white")
        crop.paste(layer, mask=layer)
    elif mode == "1":
        crop = crop.convert("L")
    elif mode == "P":
        crop = crop.convert("RGB")
    else:
        raise unsupported_mode(f"{image.format} pixels of mode {mode!r}")
    return crop, field[:2]


def to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """To sRGB through the embedded ICC profile, else by Pillow's plain conversion.

    A profile that is broken, or belongs to another kind of pixels, is ignored: the pixels are whole, viewers
    show them as sRGB, and refusing the image would lose more than it saves.
    """
    if image.mode in ("YCbCr", "LAB"):
        image = image.convert("RGB")
    transform = _find_transform(image.mode, profile)
    if transform is not None:
        with suppress(*_BROKEN):
            return transform.apply(image.convert(transform.input_mode))
    return image.convert("RGB")


def is_srgb(profile: bytes | None) -> bool:
    """Whether RGB pixels with this profile are sRGB as they are: `to_srgb` would not change a value."""
    return _find_transform("RGB", profile) is None


def _find_transform(mode: str, profile: bytes | None) -> ImageCms.ImageCmsTransform | None:
    """The way to sRGB of pixels of this mode, from RGB where grey ones have a profile of RGB; None: there is none, or
    it leaves colours as they are."""
    if not profile:
        return None
    try:
        # A large one, of a scanner's own, would only fill the cache.
        build = _srgb_transform if len(profile) <= _MAX_CACHED_BYTES else _srgb_transform.__wrapped__
        transform = build(profile)
    except _BROKEN:
        return None
    belongs = transform is not None and (
        transform.input_mode == mode or (transform.input_mode, mode) == ("RGB", "L")
    )
    return transform if belongs else None


@lru_cache(maxsize=32)  # building one takes milliseconds and a corpus has few; applying one keeps no state
def _srgb_transform(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """The way from what an ICC profile describes to sRGB; None where that is sRGB. KeyError: none of Pillow's modes."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space  # pyright: ignore[reportAttributeAccessIssue]
    mode = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}[space]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    transform = ImageCms.ImageCmsTransform(source, srgb, mode, "RGB")
    if mode == "RGB":
        colours = _sample_colours()
        there = np.asarray(transform.apply(Image.fromarray(colours)))
        if np.abs(there.astype(np.int16) - colours).max() <= _MAX_SRGB_LEVELS:
            return None
    return transform


@cache
def _sample_colours() -> np.ndarray:
    """(1, M, 3) uint8: a lattice of all colours, every grey, and every level of one channel alone."""
    steps = np.linspace(0, 255, 33).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    levels = np.arange(256, dtype=np.uint8)[:, None]
    ramps = [
        levels * np.array(channels, np.uint8) for channels in [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    ]
    return np.concatenate([lattice, *ramps])[None]
