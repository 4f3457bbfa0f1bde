"""Image bytes to square sRGB crops, or a stable reason why not.

The source may be anything people upload, so: no format that runs another program, no pixel decoded before the
declared size is checked, no truncated image passed off as a whole one, no kind of pixels of which Pillow makes another
picture than the file's (`formats/` knows them), and no exception type but DecodeError.
Letters: S = `PreprocessConfig.image_size`, C = `CropConfig.num_crops`.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

import numpy as np
import PIL
import torch
from PIL import ExifTags, Image, ImageFile, UnidentifiedImageError

from tatok_pipe.images.crops import Box, CropConfig, CropPlan
from tatok_pipe.images.decode_budget import PixelBudget
from tatok_pipe.images.errors import DecodeError
from tatok_pipe.images.formats.jpeg import Jpeg, load_jpeg, read_jpeg
from tatok_pipe.images.formats.plain_jpeg import PlainHeader
from tatok_pipe.images.formats.reading import Reading
from tatok_pipe.images.formats.signatures import find_format
from tatok_pipe.images.formats.table import NAMES, reader_of
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.images.resize import resize_rgb
from tatok_pipe.images.srgb import interpolable, is_srgb, to_srgb

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

# RGB pixels as (height, width, 3) uint8, or an image of any mode.
Picture = np.ndarray | Image.Image

_CENTER = CropConfig()
# A centre square is scaled once for all its crops, unless that is so much larger than they are.
_MAX_SCALED = 2
# A JPEG decodes at 1/2, 1/4 or 1/8 for less. The last factor of two and more is left to the filter.
_REACH = 2


@dataclass(frozen=True)
class DecodedCrops:
    """The crops of one image."""

    pixels: list[np.ndarray]  # C times (S, S, 3) uint8 sRGB, by crop number
    width: int  # of the whole image after EXIF orientation, pixels
    height: int


def decoder_version() -> str:
    """What, beside PreprocessConfig and CropConfig, decides the pixels, or what is refused: Pillow with the libraries
    in it, simplejpeg and AVIF by their own versions since not every machine has them, torch's resizing, and the
    procedure of this module, of `crops` and of `formats` (raise its number when a change there changes pixels)."""
    versions = [reader.version() for reader in map(reader_of, NAMES) if reader.version is not None]
    return "/".join(
        [
            f"pillow-{PIL.__version__}",
            *versions,
            f"torch-{torch.__version__.partition('+')[0]}",
            "box-bicubic-4",
        ]
    )


def decode_image(data: bytes, config: PreprocessConfig) -> tuple[np.ndarray, int, int]:
    """The centre square of an image, as (S, S, 3) uint8 sRGB, and the width and height of the whole image in
    pixels. Otherwise as `decode_crops`.
    """
    decoded = decode_crops(data, config, _CENTER, key="")
    return decoded.pixels[0], decoded.width, decoded.height


def decode_crops(data: bytes, config: PreprocessConfig, crops: CropConfig, *, key: str) -> DecodedCrops:
    """All crops of an image, after EXIF orientation, from one decoding. The first frame of an animation, the first
    image of a file that holds several; transparency, and what that frame leaves uncovered, composited over white.

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
    format = find_format(data)
    try:
        jpeg = read_jpeg(data) if format == "JPEG" else None
        plan = CropPlan(crops, config.image_size, key)
        if jpeg is not None and jpeg.plain is not None:
            decoded = _decode_plain(jpeg, jpeg.plain, config, plan)
            if decoded is not None:
                return decoded
        reading = reader_of(format).read(data)
        with Image.open(io.BytesIO(reading.data), formats=[format]) as image:
            return _decode(image, reading, jpeg, config, plan)
    except DecodeError:
        raise
    except Exception as error:  # on garbage Pillow raises OSError, struct.error, IndexError, almost anything
        raise _explain(error, data, format) from error


def _decode_plain(
    jpeg: Jpeg, header: PlainHeader, config: PreprocessConfig, plan: CropPlan
) -> DecodedCrops | None:
    """A JPEG of whose header all is known; None: this takes Pillow. The same as `_decode` gives."""
    width, height = jpeg.width, jpeg.height
    if Image.MAX_IMAGE_PIXELS is not None and width * height > Image.MAX_IMAGE_PIXELS:
        return None  # Pillow warns of it
    _check_size(width, height, config)
    reach = _REACH * plan.largest_side
    scale = next((scale for scale in (8, 4, 2) if min(width, height) // reach >= scale), 1)
    size = -(-width // scale), -(-height // scale)
    with _BUDGET.hold(width * height if jpeg.is_held_whole else size[0] * size[1]):
        picture = load_jpeg(jpeg, size)
        if picture is None:
            return None
        return _resample(picture, 1, header.profile, width, height, scale, plan)


def _decode(
    image: ImageFile.ImageFile, reading: Reading, jpeg: Jpeg | None, config: PreprocessConfig, plan: CropPlan
) -> DecodedCrops:
    width, height = image.size
    _check_size(width, height, config)
    # Pillow would turn a picture by an orientation in XMP where EXIF has none, as no other decoder does.
    image.info.pop("xmp", None)
    reach = _REACH * plan.largest_side
    drafted = image.draft(None, (reach, reach)) if jpeg is not None else None
    scale = width / drafted[1][2] if drafted is not None else 1.0
    num_held = width * height if jpeg is not None and jpeg.is_held_whole else image.width * image.height
    with _BUDGET.hold(num_held):
        if jpeg is not None:
            if (jpeg.width, jpeg.height, jpeg.mode) != (width, height, image.mode):
                raise DecodeError("Corrupt", "its size or colours are declared twice")
            picture = load_jpeg(jpeg, image.size)
            if picture is None:
                image.load()
                picture = image
        else:
            if reading.before_load is not None:
                reading.before_load(image)
            image.load()
            width, height = image.size  # a TIFF applies its orientation as it loads
            picture = image if reading.after_load is None else reading.after_load(image)
        profile = reading.profile or image.info.get("icc_profile")
        return _resample(picture, _orientation(image), profile, width, height, scale, plan)


def _check_size(width: int, height: int, config: PreprocessConfig) -> None:
    if width * height > config.max_pixels:
        message = f"{width}x{height} = {width * height} pixels, more than max_pixels={config.max_pixels}"
        raise DecodeError("TooManyPixels", message)


def _resample(
    loaded: Picture,
    orientation: int,
    profile: bytes | None,
    width: int,
    height: int,
    scale: float,
    plan: CropPlan,
) -> DecodedCrops:
    """The crops of a picture that was `width` x `height` and is loaded at 1 / `scale` of it."""
    upright = (height, width) if orientation >= 5 else (width, height)

    def to_stored(box: Box) -> Box:
        left, top, right, bottom = _turn_back(box, orientation, width, height)
        return left / scale, top / scale, right / scale, bottom / scale

    field = to_stored(plan.field(*upright))
    size, scaled = plan.image_size, None
    is_scaled_once = plan.config.kind != "random" and plan.largest_side <= _MAX_SCALED * size
    if isinstance(loaded, np.ndarray):
        source, (x, y) = loaded if is_scaled_once else Image.fromarray(loaded), (0, 0)
    else:
        source, (x, y) = interpolable(loaded, field)

    def in_source(box: Box) -> Box:
        left, top, right, bottom = box
        return left - x, top - y, right - x, bottom - y

    def finish(small: Picture) -> np.ndarray:
        """(side, side, 3) uint8, upright."""
        if isinstance(small, np.ndarray):
            if orientation not in _TRANSPOSE and is_srgb(profile):
                return small
            small = Image.fromarray(small)
        small = to_srgb(small, profile)
        return np.array(small.transpose(_TRANSPOSE[orientation]) if orientation in _TRANSPOSE else small)

    if is_scaled_once:
        scaled = finish(_scale_field(source, in_source(field), plan.largest_side))
    seen: dict[Box, np.ndarray] = {}
    pixels = []
    for square in plan.squares(*upright):
        if square.box not in seen:
            if scaled is not None and square.place is not None:
                left, top = square.place
                part = scaled[top : top + size, left : left + size]
                seen[square.box] = part if plan.largest_side == size else part.copy()
            else:
                box = in_source(to_stored(square.box))
                seen[square.box] = finish(_resize_box(source, box, size))
        crop = seen[square.box]
        pixels.append(np.ascontiguousarray(crop[:, ::-1]) if square.is_mirrored else crop)
    return DecodedCrops(pixels, *upright)


def _scale_field(source: Picture, field: Box, side: int) -> Picture:
    """The field at (side, side). Where it lies on whole pixels it is cut out first, so its edges have no neighbours."""
    if any(edge != int(edge) for edge in field):  # of a draft whose size was rounded
        return _resize_box(source, field, side)
    left, top, right, bottom = map(int, field)
    if isinstance(source, np.ndarray):
        return resize_rgb(source[top:bottom, left:right], side)
    cut = source.crop((left, top, right, bottom))
    if cut.mode == "RGB":
        return resize_rgb(np.array(cut), side)
    return cut.resize((side, side), Image.Resampling.BICUBIC)


def _resize_box(source: Picture, box: Box, side: int) -> Image.Image:
    picture = Image.fromarray(source) if isinstance(source, np.ndarray) else source
    return picture.resize((side, side), Image.Resampling.BICUBIC, box=box)


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


def _explain(error: Exception, data: bytes, format: str) -> DecodeError:
    """A Pillow exception as a stable class and a line without object addresses."""
    if isinstance(error, UnidentifiedImageError):
        error = _reason(error, data, format)
    detail = re.sub(r"<[^<>]* at 0x[0-9a-fA-F]+>", "", str(error))
    detail = " ".join(detail.split())[:200]
    text = f"{type(error).__name__}: {detail}" if detail else type(error).__name__
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return DecodeError("TooManyPixels", text)
    if isinstance(error, MemoryError):
        return DecodeError("OutOfMemory", text)
    # Pillow has no exception for these, only wording; some formats say how long a file should be.
    ends_early = reader_of(format).ends_early
    is_cut = ends_early is not None and ends_early(data)
    if is_cut or re.search("truncated|not enough image data", detail, re.IGNORECASE):
        return DecodeError("Truncated", text)
    if re.search(
        "unsupported|not (yet )?supported|unknown (pixel mode|raw mode|data organization)",
        detail,
        re.IGNORECASE,
    ):
        return DecodeError("UnsupportedMode", f"{text}; convert it to 8 bits a channel, grey or RGB")
    return DecodeError("Corrupt", text)


def _reason(error: Exception, data: bytes, format: str) -> Exception:
    """Why Pillow could not open a file of a format: Image.open says no more than that it could not."""
    factory, _ = Image.OPEN[format]
    try:
        factory(io.BytesIO(data), "")
    except Exception as reason:
        return reason
    return error
