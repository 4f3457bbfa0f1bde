"""Image bytes to square sRGB crops, or a stable reason why not.

The source may be anything people upload, so: no format that runs another program, no pixel decoded before the
declared size is checked, no truncated image passed off as a whole one, and no exception type but DecodeError.
Letters: S = `PreprocessConfig.image_size`, C = `CropConfig.num_crops`.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import PIL
import torch
from PIL import ExifTags, Image, ImageCms, ImageFile, JpegImagePlugin, TiffImagePlugin

from tatok_pipe.images.crops import Box, CropConfig, CropPlan
from tatok_pipe.images.decode_budget import PixelBudget
from tatok_pipe.images.resize import resize_rgb
from tatok_pipe.options import option

# The formats that may be opened, so that Pillow tries no other: some of its readers run programs.
# No AVIF or JPEG 2000: not every build of Pillow has them, and what is refused may not depend on that.
_SIGNATURES = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<WEBP>RIFF.{4}WEBP)|(?P<GIF>GIF8[79]a)|(?P<BMP>BM)"
    rb"|(?P<TIFF>II[*+]\0|MM\0[*+])|(?P<PPM>P[1-6][\s#])",
    re.DOTALL,
)
FORMATS = tuple(_SIGNATURES.groupindex)

# Twice Pillow's MAX_IMAGE_PIXELS, from where Image.open refuses by itself.
PILLOW_PIXEL_LIMIT = 178_956_970

# A pixel takes up to 16 bytes on its way (loaded, cropped, flattened, converted), so about 2 GB in a process.
_BUDGET = PixelBudget(128_000_000)

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# EXIF orientations whose upright picture runs against the stored columns / rows.
_REVERSES_X = (2, 3, 7, 8)
_REVERSES_Y = (3, 4, 6, 7)

_CENTER = CropConfig()
# A centre square is scaled once for all its crops, unless that is so much larger than they are.
_MAX_SCALED = 2


@dataclass(frozen=True)
class PreprocessConfig:
    """How image bytes become the tokenizer's input: every field changes pixels, or what is refused."""

    image_size: int = option(256, help="side of the square crop given to the tokenizer", unit="pixels")
    max_pixels: int = option(
        64_000_000,
        help="largest declared width x height; larger images are quarantined before any pixel is decoded",
        unit="pixels, per image",
    )

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= 8192:
            raise ValueError(f"image_size={self.image_size}: expected 1 to 8192 pixels")
        if not 1 <= self.max_pixels <= PILLOW_PIXEL_LIMIT:
            raise ValueError(
                f"max_pixels={self.max_pixels}: expected 1 to {PILLOW_PIXEL_LIMIT} (Pillow refuses more)"
            )


@dataclass(frozen=True)
class DecodedCrops:
    """The crops of one image."""

    pixels: list[np.ndarray]  # C times (S, S, 3) uint8 sRGB, by crop number
    width: int  # of the whole image after EXIF orientation, pixels
    height: int


class DecodeError(Exception):
    """An image that cannot be used. The text is one line, the same in every run; `error` is one of the stable
    names EmptyFile, NotAnImage (no known signature), Truncated, Corrupt, TooManyPixels, UnsupportedMode,
    OutOfMemory.
    """

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        return type(self), (self.error, str(self))


def decoder_version() -> str:
    """What, beside PreprocessConfig and CropConfig, decides the pixels: Pillow with the libraries in it, torch's
    resizing, and the procedure of this module and of `crops` (raise its number when a change there changes pixels)."""
    return f"pillow-{PIL.__version__}/torch-{torch.__version__.partition('+')[0]}/box-bicubic-2"


def decode_image(data: bytes, config: PreprocessConfig) -> tuple[np.ndarray, int, int]:
    """The centre square of an image, as (S, S, 3) uint8 sRGB, and the width and height of the whole image in
    pixels. Otherwise as `decode_crops`.
    """
    decoded = decode_crops(data, config, _CENTER, key="")
    return decoded.pixels[0], decoded.width, decoded.height


def decode_crops(data: bytes, config: PreprocessConfig, crops: CropConfig, *, key: str) -> DecodedCrops:
    """All crops of an image, after EXIF orientation, from one decoding. The first frame of an animation;
    transparency composited over white.

    Bicubic and antialiased, as if the whole picture were scaled and then cut; where the centre square's origin is not
    whole it rounds down. Up to twice the size of a crop the centre square is scaled once for all its crops, and then
    its edges have no neighbours. `key` is the sample's, for random crops. Thread-safe, and the same bytes give the same
    pixels. Raises DecodeError.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise RuntimeError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is on, so half images would pass for whole ones; "
            "set it to False in whatever code of this process set it"
        )
    if not data:
        raise DecodeError("EmptyFile", "the image has 0 bytes")
    signature = _SIGNATURES.match(data)
    if signature is None or signature.lastgroup is None:
        raise DecodeError("NotAnImage", f"begins with {data[:16]!r}; expected {', '.join(FORMATS)}")
    try:
        with Image.open(io.BytesIO(data), formats=[signature.lastgroup]) as image:
            return _decode(image, config, CropPlan(crops, config.image_size, key))
    except DecodeError:
        raise
    except Exception as error:  # on garbage Pillow raises OSError, struct.error, IndexError, almost anything
        raise _explain(error, data) from error


def _decode(image: ImageFile.ImageFile, config: PreprocessConfig, plan: CropPlan) -> DecodedCrops:
    width, height = image.size
    if width * height > config.max_pixels:
        message = f"{width}x{height} = {width * height} pixels, more than max_pixels={config.max_pixels}"
        raise DecodeError("TooManyPixels", message)
    is_jpeg = isinstance(image, JpegImagePlugin.JpegImageFile)
    # A JPEG decodes at 1/2, 1/4 or 1/8 for less. The last factor of two and more is left to the filter.
    reach = 2 * plan.largest_side
    drafted = image.draft(None, (reach, reach)) if is_jpeg else None
    scale = width / drafted[1][2] if drafted is not None else 1.0
    # A progressive JPEG holds the coefficients of the whole picture, however small it is decoded.
    num_held = width * height if "progressive" in image.info else image.width * image.height
    with _BUDGET.hold(num_held):
        image.load()
        if not is_jpeg:
            width, height = image.size  # a TIFF applies its orientation as it loads
        return _resample(image, width, height, scale, plan)


def _resample(
    image: ImageFile.ImageFile, width: int, height: int, scale: float, plan: CropPlan
) -> DecodedCrops:
    """The crops of a loaded image that was `width` x `height` and came at 1 / `scale` of it."""
    orientation = _orientation(image)  # only now: a PNG may keep its EXIF behind the pixels
    upright = (height, width) if orientation >= 5 else (width, height)

    def to_stored(box: Box) -> Box:
        left, top, right, bottom = _turn_back(box, orientation, width, height)
        return left / scale, top / scale, right / scale, bottom / scale

    field = to_stored(plan.field(*upright))
    source, (x, y) = _interpolable(image, field)

    def in_source(box: Box) -> Box:
        left, top, right, bottom = box
        return left - x, top - y, right - x, bottom - y

    def finish(small: Image.Image) -> np.ndarray:
        """(side, side, 3) uint8, upright."""
        small = _to_srgb(small, image.info.get("icc_profile"))
        return np.array(small.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else small)

    size, scaled = plan.image_size, None
    if plan.config.kind != "random" and plan.largest_side <= _MAX_SCALED * size:
        scaled = finish(_scale_field(source, in_source(field), plan.largest_side))
    seen: dict[Box, np.ndarray] = {}
    pixels = []
    for square in plan.squares(*upright):
        if square.box not in seen:
            if scaled is not None and square.place is not None:
                left, top = square.place
                seen[square.box] = scaled[top : top + size, left : left + size].copy()
            else:
                box = in_source(to_stored(square.box))
                seen[square.box] = finish(source.resize((size, size), Image.Resampling.BICUBIC, box=box))
        crop = seen[square.box]
        pixels.append(np.ascontiguousarray(crop[:, ::-1]) if square.is_mirrored else crop)
    return DecodedCrops(pixels, *upright)


def _scale_field(source: Image.Image, field: Box, side: int) -> Image.Image:
    """The field at (side, side). Where it lies on whole pixels it is cut out first, so its edges have no neighbours."""
    if any(edge != int(edge) for edge in field):  # of a draft whose size was rounded
        return source.resize((side, side), Image.Resampling.BICUBIC, box=field)
    cut = source.crop(field)  # type: ignore[arg-type]
    if cut.mode == "RGB":
        return Image.fromarray(resize_rgb(np.array(cut), side))
    return cut.resize((side, side), Image.Resampling.BICUBIC)


def _turn_back(box: Box, orientation: int, width: int, height: int) -> Box:
    """Where a box of the upright picture is in the stored one of `width` x `height`."""
    left, top, right, bottom = box
    if orientation >= 5:
        left, top, right, bottom = top, left, bottom, right
    if orientation in _REVERSES_X:
        left, right = width - right, width - left
    if orientation in _REVERSES_Y:
        top, bottom = height - bottom, height - top
    return left, top, right, bottom


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. Broken EXIF counts as none: the pixels are whole, and viewers do the same."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
        return value if value in _TRANSPOSE else 1
    except Exception:
        return 1


def _interpolable(image: Image.Image, field: Box) -> tuple[Image.Image, tuple[float, float]]:
    """The image in a mode whose values may be averaged, and where its origin is in the one given.

    Where that needs a conversion only the field of the crops is converted. (Only JPEG has a fractional one, and its
    modes need none.) White comes in behind transparency here, before averaging, so that the colours of transparent
    pixels do not: the same as resizing premultiplied, without its ringing in alpha.
    """
    mode = image.mode
    if mode in ("L", "RGB", "CMYK", "YCbCr", "LAB") and not image.has_transparency_data:
        return image, (0, 0)
    crop = image.crop(field)
    if mode in ("I", "I;16", "I;16B", "I;16L"):
        crop = _grey16_to_grey8(crop, image)
    elif mode in ("1", "L", "RGB", "P", "PA", "LA", "La", "RGBA") and image.has_transparency_data:
        is_grey = mode in ("1", "L", "LA", "La")
        layer = crop.convert("LA" if is_grey else "RGBA")
        crop = Image.new("L" if is_grey else "RGB", layer.size, "white")
        crop.paste(layer, mask=layer)
    elif mode == "1":
        crop = crop.convert("L")
    elif mode == "P":
        crop = crop.convert("RGB")
    else:
        raise DecodeError("UnsupportedMode", f"{image.format} pixels of mode {mode!r} have no RGB values")
    return crop, field[:2]


def _grey16_to_grey8(crop: Image.Image, image: Image.Image) -> Image.Image:
    """The whole 16-bit range (12-bit in some TIFFs) scaled to 8 bit; Pillow's conversion clips at 255."""
    values = np.asarray(crop)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 65535:
        message = f"grey values {low} to {high}: white is defined for 8, 12 and 16 bits only"
        raise DecodeError("UnsupportedMode", message)
    twelve_bit = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(258) == (12,)
    white = 4095 if twelve_bit else 65535
    levels = np.minimum(np.arange(65536, dtype=np.int64), white)
    grey = ((levels * 255 + white // 2) // white).astype(np.uint8)[values]
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = 255
    return Image.fromarray(grey)


def _to_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    """To sRGB through the embedded ICC profile, else by Pillow's plain conversion.

    A profile that is broken, or belongs to another kind of pixels, is ignored: the pixels are whole, viewers
    show them as sRGB, and refusing the image would lose more than it saves.
    """
    if image.mode in ("YCbCr", "LAB"):
        image = image.convert("RGB")
    if not profile:
        return image.convert("RGB")
    try:
        mode, transform = _srgb_transform(profile)
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


def _explain(error: Exception, data: bytes) -> DecodeError:
    """A Pillow exception as a stable class and a line without object addresses."""
    detail = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "", str(error))
    detail = " ".join(detail.split())[:200]
    text = f"{type(error).__name__}: {detail}" if detail else type(error).__name__
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return DecodeError("TooManyPixels", text)
    if isinstance(error, MemoryError):
        return DecodeError("OutOfMemory", text)
    # Pillow has no exception for it, only wording; a WebP says in its header how long it should be.
    missing_webp = data[:4] == b"RIFF" and int.from_bytes(data[4:8], "little") + 8 > len(data)
    if missing_webp or "truncated" in detail.lower():
        return DecodeError("Truncated", text)
    return DecodeError("Corrupt", text)
