from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tatok_pipe.ar.generation.exports import contact_sheet, decode, write_npz
from tatok_pipe.ar.generation.layout import IMAGE_FORMATS
from tatok_pipe.ar.generation.worker import encode_image

SIZE, GAP = 16, 4
BACKGROUND = (24, 24, 24)


def make_pictures(count: int, size: int = SIZE) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, size, size, 3)).astype(np.uint8)


def encode(pictures: np.ndarray, image_format: str = "png") -> list[bytes]:
    return [encode_image(picture, image_format) for picture in pictures]


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
def test_what_was_encoded_is_decoded(image_format: str) -> None:
    pictures = make_pictures(3)
    found = [decode(image) for image in encode(pictures, image_format)]
    assert np.array_equal(np.stack(found), pictures) and found[0].dtype == np.uint8


@pytest.mark.parametrize(
    ("count", "columns", "rows"),
    [(1, 1, 1), (2, 2, 1), (3, 2, 2), (4, 2, 2), (5, 3, 2), (6, 3, 2), (7, 3, 3), (12, 4, 3), (13, 4, 4), (64, 8, 8)],
)  # fmt: skip
def test_a_sheet_is_its_images_in_a_grid(count: int, columns: int, rows: int) -> None:
    pictures = make_pictures(count)
    sheet = Image.open(io.BytesIO(contact_sheet(encode(pictures), range(count))))
    assert sheet.format == "PNG" and sheet.mode == "RGB"
    assert sheet.size == (GAP + columns * (SIZE + GAP), GAP + rows * (SIZE + GAP))
    expected = np.empty((sheet.size[1], sheet.size[0], 3), np.uint8)
    expected[:] = BACKGROUND
    for place, picture in enumerate(pictures):
        top, left = (GAP + at * (SIZE + GAP) for at in (place // columns, place % columns))
        expected[top : top + SIZE, left : left + SIZE] = picture
    assert np.array_equal(np.asarray(sheet), expected)


def test_the_same_images_give_the_same_sheet_of_any_format() -> None:
    pictures = make_pictures(5)
    labels = [None] * 5
    assert contact_sheet(encode(pictures), labels) == contact_sheet(encode(pictures, "webp"), labels)
    assert contact_sheet(encode(pictures), labels) != contact_sheet(encode(pictures[::-1]), labels)


def test_a_sheet_has_a_row_a_class() -> None:
    pictures = make_pictures(7)
    sheet = Image.open(io.BytesIO(contact_sheet(encode(pictures), [5, 2, 9, 5, 2, 9, 5])))
    assert sheet.size == (GAP + 3 * (SIZE + GAP), GAP + 3 * (SIZE + GAP))
    for place, (row, column) in enumerate([(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1), (0, 2)]):
        top, left = (GAP + at * (SIZE + GAP) for at in (row, column))
        assert np.array_equal(np.asarray(sheet)[top : top + SIZE, left : left + SIZE], pictures[place])


@pytest.mark.parametrize("image_format", IMAGE_FORMATS)
@pytest.mark.parametrize("count", [1, 7])
def test_the_array_is_what_numpy_reads(tmp_path: Path, image_format: str, count: int) -> None:
    pictures = make_pictures(count)
    path = tmp_path / "samples.npz"
    write_npz(path, iter(encode(pictures, image_format)), num_images=count, image_size=SIZE)
    with np.load(path, allow_pickle=False) as archive:
        assert archive.files == ["arr_0"]
        found = archive["arr_0"]
    assert found.dtype == np.uint8 and found.flags.c_contiguous and np.array_equal(found, pictures)
    # The same content as numpy's own, whose array the evaluator reads without numpy.load.
    np.savez(tmp_path / "numpys.npz", pictures)
    with zipfile.ZipFile(path) as ours, zipfile.ZipFile(tmp_path / "numpys.npz") as numpys:
        assert ours.testzip() is None
        assert ours.read("arr_0.npy") == numpys.read("arr_0.npy")
        assert ours.infolist()[0].compress_type == zipfile.ZIP_STORED


def test_the_same_images_give_the_same_bytes(tmp_path: Path) -> None:
    paths = [tmp_path / "one.npz", tmp_path / "folder" / "two.npz"]
    paths[1].parent.mkdir()
    for path in paths:
        write_npz(path, encode(make_pictures(3)), num_images=3, image_size=SIZE)
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with zipfile.ZipFile(paths[0]) as archive:
        assert archive.infolist()[0].date_time == (1980, 1, 1, 0, 0, 0)  # not that of writing


def test_images_are_taken_one_after_the_other(tmp_path: Path) -> None:
    """Tens of gigabytes of pixels do not fit into memory."""
    path, sizes = tmp_path / "samples.npz", []

    def images() -> Iterator[bytes]:
        for image in encode(make_pictures(6, 256)):
            sizes.append(path.stat().st_size)
            yield image

    write_npz(path, images(), num_images=6, image_size=256)
    assert sizes[5] >= 4 * 256 * 256 * 3 and sizes[1] < 2 * 256 * 256 * 3


@pytest.mark.parametrize(
    ("num_images", "image_size", "message"),
    [
        (4, SIZE, "3 images, expected 4"),
        (2, SIZE, "3 images, expected 2"),
        (3, 32, r"image 0 is \(16, 16, 3\), expected \(32, 32, 3\)"),
    ],
)
def test_an_array_of_another_shape_is_an_error(
    tmp_path: Path, num_images: int, image_size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_npz(tmp_path / "x.npz", encode(make_pictures(3)), num_images=num_images, image_size=image_size)
    mixed = [*encode(make_pictures(2)), *encode(make_pictures(1, 8))]
    with pytest.raises(ValueError, match=r"image 2 is \(8, 8, 3\)"):
        write_npz(tmp_path / "x.npz", mixed, num_images=3, image_size=SIZE)
