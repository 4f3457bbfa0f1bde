"""Images as people have them, paths, bytes, PIL images, arrays and tensors, to a tokenizer's input.

Letters: S image size, H and W the sides of an image that was given.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from os import PathLike, fspath

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.images.decode import DecodeError, decode_image
from tatok_pipe.images.options import PreprocessConfig

Picture = str | PathLike[str] | bytes | Image.Image | np.ndarray | Tensor

_KINDS = "a path, a URL, the bytes of a file, a PIL image, an array or a tensor"


def list_pictures(images: Picture | Iterable[Picture]) -> list[Picture]:
    """One a picture; one alone is a list of one, and an array or tensor of four axes a list along its first."""
    if isinstance(images, np.ndarray) and images.dtype.kind in "OU":  # of paths
        return images.ravel().tolist()
    if isinstance(images, (np.ndarray, Tensor)):
        return list(images) if images.ndim == 4 else [images]
    if isinstance(images, (str, PathLike, bytes, bytearray, memoryview, Image.Image)):
        return [bytes(images) if isinstance(images, (bytearray, memoryview)) else images]
    if isinstance(images, dict) or not isinstance(images, Iterable):
        raise UserError(f"images: {type(images).__name__}, expected {_KINDS}, or a list of them")
    return list(images)


def to_pixels(picture: Picture, *, size: int, number: int) -> Tensor:
    """(3, S, S) float32 in [0, 1]: cropped and scaled as tokenize_corpus does, unless it is float, which is taken as it
    is. `number` is its place among those given. Raises UserError for what is no image, or does not decode."""
    shown = f"images[{number}]"
    if isinstance(picture, Tensor):
        if picture.is_floating_point():
            return _check_float(picture.detach().cpu().float(), size=size, shown=shown)
        if picture.dtype != torch.uint8 or picture.ndim != 3 or picture.shape[0] not in (1, 3):
            raise _unexpected(shown, "tensor", picture.shape, picture.dtype, size)
        picture = picture.detach().cpu().movedim(0, -1).numpy()
    if isinstance(picture, np.ndarray):
        if np.issubdtype(picture.dtype, np.floating):
            tensor = torch.from_numpy(picture.astype(np.float32))
            return _check_float(tensor, size=size, shown=shown)
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or 0 in picture.shape:
            raise _unexpected(shown, "array", picture.shape, picture.dtype, size)
        if picture.shape == (size, size, 3):
            return _to_float(picture)
        if picture.ndim == 3 and picture.shape[2] not in (1, 3, 4):
            raise _unexpected(shown, "array", picture.shape, picture.dtype, size)
        flat = picture[..., 0] if picture.shape[2:] == (1,) else picture
        picture = Image.fromarray(np.ascontiguousarray(flat))
    if isinstance(picture, Image.Image):
        data = _to_png(picture, shown)
    elif isinstance(picture, (bytes, bytearray, memoryview)):
        data = bytes(picture)
    elif isinstance(picture, (str, PathLike)):
        shown = storage.redact(fspath(picture))
        data = _read(fspath(picture), shown)
    else:
        raise UserError(f"{shown}: {type(picture).__name__}, expected {_KINDS}")
    try:
        pixels, _, _ = decode_image(data, PreprocessConfig(image_size=size))
    except DecodeError as error:
        raise UserError(f"{shown}: does not decode: {error.error}: {error}") from None
    return _to_float(pixels)


def _to_float(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels.copy()).movedim(-1, 0).float() / 255


def _read(url: str, shown: str) -> bytes:
    try:
        return storage.read_bytes(url)
    except FileNotFoundError:
        raise UserError(f"{shown}: is not there") from None
    except IsADirectoryError:
        raise UserError(f"{shown}: is a folder, expected an image; give a list of the files in it") from None
    except OSError as error:
        raise UserError(f"{shown}: cannot be read: {' '.join(str(error).split())}") from None


def _to_png(picture: Image.Image, shown: str) -> bytes:
    """The picture as its file would be: with orientation and colour profile."""
    buffer = io.BytesIO()
    try:
        picture = picture.copy()
        picture.info.pop("xmp", None)  # an orientation in XMP alone does not count, as in a file
        picture.save(buffer, "PNG", exif=picture.getexif(), compress_level=1)
    except (OSError, ValueError, SyntaxError) as error:
        text = " ".join(str(error).split())
        raise UserError(
            f'{shown}: PIL image of mode {picture.mode}: {text}; give picture.convert("RGB"), or its file'
        ) from None
    return buffer.getvalue()


def _check_float(pixels: Tensor, *, size: int, shown: str) -> Tensor:
    if pixels.shape != (3, size, size):
        raise _unexpected(shown, "float values", pixels.shape, pixels.dtype, size)
    low, high = pixels.min().item(), pixels.max().item()
    if not (low >= 0 and high <= 1):  # NaN as well
        raise UserError(
            f"{shown}: values from {low:g} to {high:g}, expected float in [0, 1]; scale or clamp them, or give uint8"
        )
    return pixels


def _unexpected(shown: str, kind: str, shape: Iterable[int], dtype: object, size: int) -> UserError:
    return UserError(
        f"{shown}: {kind} of shape {tuple(shape)}, {dtype}: expected an array (H, W, 3) uint8, a tensor (3, H, W) "
        f"uint8, or float in [0, 1] of shape (3, {size}, {size}); several as a list, or (B, 3, {size}, {size})"
    )
