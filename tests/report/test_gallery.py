from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tatok_pipe.images.crops import CropConfig
from tatok_pipe.images.decode import decode_crops
from tatok_pipe.images.options import PreprocessConfig
from tatok_pipe.records import TokenRecord
from tatok_pipe.report.gallery import (
    Exhibit,
    dim_dropped,
    draw_kept,
    make_exhibits,
    outline_kept,
    to_data_uri,
)
from tatok_pipe.report.sources import Shown
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import GlobalQuantizerConfig, GridStackConfig, StackConfig, TaTokConfig
from tatok_pipe.tokens.dataset import TokenDataset
from tatok_pipe.tokens.dataset_file import create_or_check
from tatok_pipe.tokens.spec import TokenSpec

MakeRecords = Callable[..., list[TokenRecord]]
SIDE, PATCH = 4, 8
STACK = StackConfig(width=32, depth=1, heads=2)
GRID = GridStackConfig(width=32, depth=1, heads=2, attend_every=1)


@pytest.fixture(scope="module")
def model() -> TaTok:
    torch.manual_seed(0)
    codebook = GlobalQuantizerConfig(codebook_size=16)
    config = TaTokConfig(32, PATCH, 3, 0, GRID, GRID, STACK, codebook, codebook)
    return TaTok(config).eval()


@pytest.fixture
def dataset(tmp_path: Path, token_spec: TokenSpec) -> TokenDataset:
    spec = replace(token_spec, global_vocab=16, patch_vocab=16)
    create_or_check(str(tmp_path / "tokens"), spec, {})
    return TokenDataset(str(tmp_path / "tokens"))


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def make_picture(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (SIDE * PATCH, SIDE * PATCH, 3)).astype(np.uint8)


def test_dropped_patches_are_dim_and_grey() -> None:
    picture = make_picture()
    shown = dim_dropped(picture, np.array([0, 6]), patch_size=PATCH)
    for patch in range(SIDE * SIDE):
        top, left = patch // SIDE * PATCH, patch % SIDE * PATCH
        window = (slice(top, top + PATCH), slice(left, left + PATCH))
        if patch in (0, 6):
            assert (shown[window] == picture[window]).all()
        else:
            assert (shown[window] == shown[window][:, :, :1]).all() and shown[window].max() < 100


def test_outline_is_the_border_of_what_is_kept() -> None:
    random = np.random.default_rng(0)
    for _ in range(20):
        positions = np.flatnonzero(random.random(SIDE * SIDE) < 0.4)
        kept = {divmod(int(position), SIDE) for position in positions}
        expected = set()
        for row in range(SIDE):
            for column in range(SIDE):
                inside = (row, column) in kept
                for there, edge in (
                    ((row, column - 1), (column, row, "v")),
                    ((row, column + 1), (column + 1, row, "v")),
                    ((row - 1, column), (column, row, "h")),
                    ((row + 1, column), (column, row + 1, "h")),
                ):
                    if inside and there not in kept:
                        expected.add(edge)
        found = [
            (int(x), int(y), way)
            for x, y, way in re.findall(r"M(\d+) (\d+)([vh])1", outline_kept(positions, side=SIDE))
        ]
        assert len(found) == len(set(found)) and set(found) == expected


def test_data_uri_is_the_picture() -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)
    picture = np.stack([np.tile(ramp, (64, 1)), np.tile(ramp[:, None], (1, 64)), np.full((64, 64), 90)], 2)
    uri = to_data_uri(picture.astype(np.uint8))
    kind, _, data = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        assert np.abs(np.asarray(image).astype(int) - picture).mean() < 2
    assert uri == to_data_uri(picture.astype(np.uint8))


def test_psnr_is_against_the_crop(
    dataset: TokenDataset, model: TaTok, make_token_records: MakeRecords
) -> None:
    records = [
        replace(record, crop=0) for record in make_token_records(dataset.spec, 18)
    ]  # more than one batch
    pictures = [make_picture(seed) for seed in range(18)]
    exhibits = make_exhibits(
        dataset, [Shown(r, png(p)) for r, p in zip(records, pictures, strict=True)], model
    )
    assert len(exhibits) == 18
    for record, picture, exhibit in zip(records, pictures, exhibits, strict=True):
        assert exhibit.original is not None and (exhibit.original == picture).all()
        alone = dataset.decode([record], model)[0].permute(1, 2, 0).numpy()
        assert exhibit.reconstruction is not None
        assert np.abs(exhibit.reconstruction - alone * 255).max() <= 0.51
        mse = ((alone.astype(np.float64) - picture / 255) ** 2).mean()
        assert exhibit.psnr_db == pytest.approx(-10 * np.log10(mse), abs=1e-3)


@pytest.mark.parametrize(
    ("data", "crop", "reason"),
    [
        (None, 0, "gone"),
        (b"no image", 0, "its image does not decode here: NotAnImage"),
        (b"\x89PNG\r\n\x1a\n", 2, "crop 2 of its image cannot be cut again"),
    ],
)
def test_missing_originals_have_a_reason(
    dataset: TokenDataset,
    model: TaTok,
    make_token_records: MakeRecords,
    data: bytes | None,
    crop: int,
    reason: str,
) -> None:
    record = replace(make_token_records(dataset.spec, 1)[0], crop=crop)
    exhibit = make_exhibits(dataset, [Shown(record, data, "" if data else "gone")], model)[0]
    assert exhibit.original is None and exhibit.psnr_db is None and exhibit.reconstruction is not None
    assert exhibit.problem.startswith(reason)


@pytest.mark.parametrize("config", [CropConfig("ten_crop"), CropConfig("random", count=10, seed=3)])
def test_the_original_is_the_crop_of_the_row(
    tmp_path: Path, dataset: TokenDataset, make_token_records: MakeRecords, config: CropConfig
) -> None:
    url = str(tmp_path / "crops")
    spec = replace(dataset.spec, encoding=config.to_encoding())
    create_or_check(url, spec, {})
    picture = png(np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8))
    record = make_token_records(spec, 1)[0]
    shown = [Shown(replace(record, key="a", crop=crop), picture) for crop in (7, 0, 3, 10)]
    exhibits = make_exhibits(TokenDataset(url), shown, None)
    expected = decode_crops(picture, PreprocessConfig(spec.image_size), config, key="a").pixels
    for crop, exhibit in zip((7, 0, 3), exhibits, strict=False):
        assert exhibit.original is not None and (exhibit.original == expected[crop]).all()
    assert exhibits[3].original is None
    assert exhibits[3].problem == "crop 10 of its image cannot be cut again: images have 10"


def test_crops_of_another_program_have_no_originals(
    tmp_path: Path, dataset: TokenDataset, make_token_records: MakeRecords
) -> None:
    url = str(tmp_path / "crops")
    spec = replace(dataset.spec, encoding={"crops": {"kind": "spiral", "per_image": 2}})
    create_or_check(url, spec, {})
    record = replace(make_token_records(spec, 1)[0], crop=1)
    exhibit = make_exhibits(TokenDataset(url), [Shown(record, png(make_picture()))], None)[0]
    assert exhibit.original is None
    assert exhibit.problem.startswith("crop 1 of its image cannot be cut again: kind=spiral: expected")


def test_kept_patches_are_shown_on_the_best_there_is(
    dataset: TokenDataset, make_token_records: MakeRecords
) -> None:
    record = replace(
        make_token_records(dataset.spec, 1)[0], patch_positions=np.array([0]), patch_codes=np.array([1])
    )
    first, second = make_picture(1), make_picture(2)
    for original, reconstruction, base in (
        (first, second, first),
        (None, second, second),
        (None, None, np.full_like(first, 160)),
    ):
        shown = draw_kept(Exhibit(record, original, reconstruction, None, ""), dataset.spec)
        assert (shown[:PATCH, :PATCH] == base[:PATCH, :PATCH]).all()
        assert (shown[PATCH:] < 100).all()


def test_without_a_model_there_is_no_reconstruction(
    dataset: TokenDataset, make_token_records: MakeRecords
) -> None:
    record = replace(make_token_records(dataset.spec, 1)[0], crop=0)
    exhibit = make_exhibits(dataset, [Shown(record, png(make_picture()))], None)[0]
    assert exhibit.reconstruction is None and exhibit.psnr_db is None and exhibit.original is not None
    assert make_exhibits(dataset, [], None) == []
