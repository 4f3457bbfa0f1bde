"""What other decoders make of a file, in a process of its own that may not take much memory or time.

They agree on less than one would think, so what each leaves to its user is done here, and nothing else: 16 bits are
scaled to 8, alpha is put over white, inks are multiplied out; the alpha of a BMP counts only where it is not 0
everywhere, as in browsers. Where a decoder gives samples of which it does not say
what they mean, or a picture that it says is incomplete, it has no opinion.
"""

from __future__ import annotations

import io
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np

MEMORY_BYTES = 4 << 30
_SECONDS = 300


def _over_white(values: np.ndarray) -> np.ndarray | None:
    """(H, W), (H, W, 1 to 4) of 8 or 16 bits, the last of two or four being alpha, as (H, W, 3), 0 to 255."""
    if values.dtype not in (np.uint8, np.uint16):
        return None
    scaled = values.astype(np.float64) * (255 / np.iinfo(values.dtype).max)
    scaled = scaled if scaled.ndim == 3 else scaled[..., None]
    if scaled.shape[2] in (2, 4):
        weight = scaled[..., -1:] / 255
        scaled = scaled[..., :-1] * weight + 255 * (1 - weight)
    return np.repeat(scaled, 3, axis=2) if scaled.shape[2] == 1 else scaled[..., :3]


def _opencv(format: str, data: bytes) -> np.ndarray | None:
    """As many channels as the file has, unless that turns palettes or inks into something else."""
    import cv2

    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    if pixels is None:
        return None
    if pixels.ndim == 3 and pixels.shape[2] >= 3:
        pixels = pixels[..., [2, 1, 0, *range(3, pixels.shape[2])]]
    return _over_white(_without_empty_alpha(pixels) if format == "BMP" else pixels)


def _vips(format: str, data: bytes) -> np.ndarray | None:
    import pyvips

    image = pyvips.Image.new_from_buffer(data, "", fail_on="warning")
    if image.interpretation == "cmyk":
        inks = image.numpy().astype(np.float64)
        inks = inks / (65535 if image.format == "ushort" else 255)
        return (1 - inks[..., :3]) * (1 - inks[..., 3:4]) * 255
    if image.interpretation in ("lab", "labs"):
        image = image.colourspace("srgb")
    if image.format not in ("uchar", "ushort"):
        return None
    pixels = image.numpy()
    if image.format == "ushort" and image.interpretation not in ("grey16", "rgb16"):
        return None
    if image.interpretation in ("b-w", "grey16") and image.bands > 2:
        return None
    return _over_white(pixels)


def _imagecodecs(format: str, data: bytes) -> np.ndarray | None:
    """For TIFF tifffile, which gives samples: what is plain grey or RGB, with or without alpha, has an opinion."""
    import imagecodecs

    if format == "TIFF":
        return _tifffile(data)
    decode: dict[str, Callable] = {
        "PNG": imagecodecs.png_decode,
        "WEBP": imagecodecs.webp_decode,
        "AVIF": imagecodecs.avif_decode,
        "BMP": imagecodecs.bmp_decode,
    }
    if format not in decode:
        return None
    pixels = decode[format](data)
    if format == "AVIF" and pixels.dtype == np.uint16:  # 10 or 12 bits, and it does not say which
        return None
    return _over_white(_without_empty_alpha(pixels) if format == "BMP" else pixels)


def _without_empty_alpha(pixels: np.ndarray) -> np.ndarray:
    return (
        pixels[..., :3] if pixels.ndim == 3 and pixels.shape[2] == 4 and not pixels[..., 3].any() else pixels
    )


def _tifffile(data: bytes) -> np.ndarray | None:
    import tifffile

    with tifffile.TiffFile(io.BytesIO(data)) as file:
        page = file.pages[0]
        assert isinstance(page, tifffile.TiffPage)
        values = page.asarray()
        meaning, bits = int(page.photometric), page.bitspersample
        if meaning == 3 and page.colormap is not None and values.ndim == 2:
            return page.colormap[:, values].transpose(1, 2, 0) / 257.0
        if values.dtype == bool:
            values = values.astype(np.uint8)
        if values.dtype.kind != "u" or meaning not in (0, 1, 2):
            return None
        if values.ndim == 3 and int(page.planarconfig) == 2:
            values = np.moveaxis(values, 0, -1)
        num_colours = 3 if meaning == 2 else 1
        extra = [int(sample) for sample in page.extrasamples]
        num_samples = values.shape[2] if values.ndim == 3 else 1
        if num_samples != num_colours + len(extra) or len(extra) > 1:
            return None
        values = values if values.ndim == 3 else values[..., None]
        scaled = values.astype(np.float64) / (2.0**bits - 1) * 255
        colours = 255 - scaled[..., :1] if meaning == 0 else scaled[..., :num_colours]
        if extra in ([1], [2]):
            opacity = scaled[..., -1:] / 255
            colours = (colours if extra == [1] else colours * opacity) + 255 * (1 - opacity)
        return np.repeat(colours, 3, axis=2) if num_colours == 1 else colours


DECODERS = {"opencv": _opencv, "vips": _vips, "imagecodecs": _imagecodecs}


def main() -> None:
    """DECODER FOLDER: for every NAME.FORMAT there is, in order, NAME.DECODER.npy; empty where it has no opinion."""
    name, folder = sys.argv[1], Path(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    resource.setrlimit(resource.RLIMIT_CPU, (_SECONDS, _SECONDS))
    for line in sys.stdin:
        path = folder / line.strip()
        try:
            pixels = DECODERS[name](path.suffix[1:], path.read_bytes())
        except Exception:  # whatever it raises, it has no opinion
            pixels = None
        result = np.zeros(0) if pixels is None else pixels
        np.save(path.with_suffix(f".{name}.npy"), result.astype(np.float32))
        print(path.name, flush=True)


if __name__ == "__main__":
    main()
