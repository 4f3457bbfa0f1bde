"""How much of a written text an OCR engine still reads. The engine is Tesseract, where its program is installed."""

from __future__ import annotations

import io
import os
import shutil
import subprocess

import numpy as np
from PIL import Image
from torchmetrics.functional.text import char_error_rate

_PROGRAM = "tesseract"
_READ_PIXELS = 512  # side at which it is given pictures: it was made for scanned pages
_TIMEOUT_S = 60.0
_BLOCK_OF_TEXT = "6"  # its page segmentation mode


def can_read() -> bool:
    """Whether the program is on this machine's PATH."""
    return shutil.which(_PROGRAM) is not None


def error_rate(pixels: np.ndarray, text: str) -> float:
    """Character error rate of what is read from a picture (S, S, 3) uint8: edit distance over the length of `text`,
    white space counted as one blank; at most 1. Raises OSError where the program fails."""
    side = max(len(pixels), _READ_PIXELS // len(pixels) * len(pixels))
    file = io.BytesIO()
    Image.fromarray(pixels).resize((side, side), Image.Resampling.LANCZOS).save(file, "PNG")
    try:
        done = subprocess.run(
            [_PROGRAM, "stdin", "stdout", "--psm", _BLOCK_OF_TEXT], input=file.getvalue(), capture_output=True,
            check=True, timeout=_TIMEOUT_S, env=os.environ | {"OMP_THREAD_LIMIT": "1"},
        )  # fmt: skip
    except subprocess.SubprocessError as error:
        raise OSError(f"{_PROGRAM}: {error}") from error
    read = done.stdout.decode(errors="replace")
    return min(1.0, float(char_error_rate(" ".join(read.split()), " ".join(text.split()))))
