"""Every kind of file there is a generator for comes out as it was made, or is refused as what it is."""

from __future__ import annotations

import numpy as np
import pytest

from tatok_pipe.images.decode import DecodeError, decode_image
from tatok_pipe.images.options import PreprocessConfig

from ...image_files.all import all_cases
from ...image_files.case import SIDE, Case

KINDS: dict[tuple[str, str], list[Case]] = {}
for _case in all_cases():
    KINDS.setdefault((_case.format, _case.kind), []).append(_case)


@pytest.mark.parametrize("kind", KINDS, ids=" ".join)
def test_the_first_and_the_last_file_of_each_kind(kind):
    cases = KINDS[kind]
    for case in dict.fromkeys((cases[0].detail, cases[-1].detail)):
        chosen = next(each for each in cases if each.detail == case)
        try:
            pixels, width, height = decode_image(chosen.data, PreprocessConfig(image_size=SIDE))
        except DecodeError as error:
            assert error.error.startswith(chosen.refused), str(chosen)
            assert chosen.refused != "Unsupported" or "convert it to" in str(error)
            continue
        assert (width, height) == (SIDE, SIDE)
        if chosen.truth is not None:
            assert np.abs(pixels - chosen.truth).mean() < 2, str(chosen)
