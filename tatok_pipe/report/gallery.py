"""The images of the gallery: original crop, kept patches, reconstruction, as pixels with their PSNR.

Letters: B images, S image size, N patches.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image

from tatok_pipe.images.crops import CropConfig
from tatok_pipe.images.decode import DecodeError, decode_crops
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.records import TokenRecord
from tatok_pipe.report.sources import Shown
from tatok_pipe.tokenizer.analysis import psnr
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.trainer import to_model_input
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.spec import TokenSpec

_BATCH_IMAGES = 16
_LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Exhibit:
    """One image of the gallery. Pictures are (S, S, 3) uint8; a missing one is None, `problem` says why."""

    record: TokenRecord
    original: np.ndarray | None
    reconstruction: np.ndarray | None
    psnr_db: float | None  # of the reconstruction against the original
    problem: str


def make_exhibits(dataset: TokenDataset, shown: Sequence[Shown], model: TaTok | None) -> list[Exhibit]:
    """Decode originals and tokens; without a `model` there are no reconstructions."""
    exhibits = []
    for start in range(0, len(shown), _BATCH_IMAGES):
        batch = shown[start : start + _BATCH_IMAGES]
        decoded = None if model is None else dataset.decode([each.record for each in batch], model).cpu()
        for place, each in enumerate(batch):
            original, problem = _decode_original(each, dataset.spec)
            picture, quality = None, None
            if decoded is not None:
                output = decoded[place]  # (3, S, S)
                picture = (output.permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
                if original is not None:
                    target = to_model_input(original[None], torch.device("cpu"))
                    quality = float(psnr(output[None], target)[0])
            exhibits.append(Exhibit(each.record, original, picture, quality, problem))
    return exhibits


def draw_kept(exhibit: Exhibit, spec: TokenSpec) -> np.ndarray:
    """The original, in its place the reconstruction, in its place plain grey, with the dropped patches dimmed."""
    picture = exhibit.reconstruction if exhibit.original is None else exhibit.original
    if picture is None:
        picture = np.full((spec.image_size, spec.image_size, 3), 160, np.uint8)
    return dim_dropped(picture, exhibit.record.patch_positions, patch_size=spec.patch_size)


def dim_dropped(picture: np.ndarray, positions: np.ndarray, *, patch_size: int) -> np.ndarray:
    """The picture (S, S, 3) uint8 with all patches but those at raster `positions` grey and dark."""
    side = len(picture) // patch_size
    keep = np.zeros(side * side, np.bool_)
    keep[positions] = True
    mask = np.kron(keep.reshape(side, side), np.ones((patch_size, patch_size), np.bool_))  # (S, S)
    grey = (0.3 * (picture @ _LUMA) + 18).astype(np.uint8)
    return np.where(mask[:, :, None], picture, grey[:, :, None])


def outline_kept(positions: np.ndarray, *, side: int) -> str:
    """SVG path data, in patches, of the border between kept and dropped patches of a side × side grid."""
    keep = np.zeros((side + 2, side + 2), np.bool_)
    rows, columns = np.divmod(np.asarray(positions, np.int64), side)
    keep[rows + 1, columns + 1] = True
    upright = np.argwhere(keep[1:-1, :-1] != keep[1:-1, 1:])  # left edges, row by row
    level = np.argwhere(keep[:-1, 1:-1] != keep[1:, 1:-1])  # top edges
    return "".join([f"M{x} {y}v1" for y, x in upright.tolist()] + [f"M{x} {y}h1" for y, x in level.tolist()])


def to_data_uri(picture: np.ndarray) -> str:
    """A picture (S, S, 3) uint8 as a JPEG in a data: URI, near to lossless: faults seen are the tokenizer's."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "JPEG", quality=95, subsampling=0)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def _decode_original(shown: Shown, spec: TokenSpec) -> tuple[np.ndarray | None, str]:
    """The crop as it was encoded, or why there is none."""
    if shown.image is None:
        return None, shown.problem
    record = shown.record
    try:
        crops = CropConfig.from_encoding(spec.encoding)
    except ValueError as error:
        return None, f"crop {record.crop} of its image cannot be cut again: {error}"
    if record.crop >= crops.num_crops:
        return None, f"crop {record.crop} of its image cannot be cut again: images have {crops.num_crops}"
    max_pixels = spec.encoding.get("max_pixels", PreprocessConfig().max_pixels)
    try:
        decoded = decode_crops(
            shown.image, PreprocessConfig(spec.image_size, max_pixels), crops, key=record.key
        )
    except DecodeError as error:
        return None, f"its image does not decode here: {error.error}: {error}"
    return decoded.pixels[record.crop], ""
