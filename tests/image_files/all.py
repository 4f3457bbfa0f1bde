"""Every generated file."""

from __future__ import annotations

from functools import cache

from tests.image_files.avif import avif_cases
from tests.image_files.bmp import bmp_cases
from tests.image_files.case import Case
from tests.image_files.gif import gif_cases
from tests.image_files.png import png_cases
from tests.image_files.pnm import pnm_cases
from tests.image_files.qoi import qoi_cases
from tests.image_files.tiff import tiff_cases
from tests.image_files.webp import webp_cases

GENERATORS = (png_cases, tiff_cases, bmp_cases, gif_cases, pnm_cases, webp_cases, avif_cases, qoi_cases)


@cache
def all_cases() -> tuple[Case, ...]:
    return tuple(case for generate in GENERATORS for case in generate())
