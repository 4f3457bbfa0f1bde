"""Loaded pixels of any trusted mode to 8-bit sRGB."""

from __future__ import annotations

import io
from functools import lru_cache

from PIL import Image, ImageCms

from tatok_pipe.images.crops import Box
from tatok_pipe.images.errors import unsupported_mode

_OPAQUE = ("L", "RGB", "CMYK", "YCbCr", "LAB")
_GREY = ("1", "L", "LA", "La")
_MAX_CACHED_BYTES = 1 << 20


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
    if not profile:
        return image.convert("RGB")
    try:
        # A large one, of a scanner's own, would only fill the cache.
        build = _srgb_transform if len(profile) <= _MAX_CACHED_BYTES else _srgb_transform.__wrapped__
        mode, transform = build(profile)
        if mode == image.mode or (mode, image.mode) == ("RGB", "L"):
            return transform.apply(image.convert(mode))
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError, KeyError):
        pass
    return image.convert("RGB")


@lru_cache(maxsize=32)  # building one takes milliseconds and a corpus has few; applying one keeps no state
def _srgb_transform(profile: bytes) -> tuple[str, ImageCms.ImageCmsTransform]:
    """The mode an ICC profile describes, and the way from there to sRGB. KeyError: none of Pillow's modes."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    space = source.profile.xcolor_space  # pyright: ignore[reportAttributeAccessIssue]
    mode = {"RGB ": "RGB", "GRAY": "L", "CMYK": "CMYK"}[space]
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    return mode, ImageCms.ImageCmsTransform(source, srgb, mode, "RGB")
