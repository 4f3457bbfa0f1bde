"""Crops: where they are, what is in them, and that nothing but the image, the options and its key decides it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, ImageOps

from tatok_pipe.config.load import load_config
from tatok_pipe.images import decode
from tatok_pipe.images.crops import CropConfig, CropPlan, Square
from tatok_pipe.images.decode import DecodedCrops, decode_crops, decode_image
from tatok_pipe.images.demo import held_out_crops
from tatok_pipe.images.options import PreprocessConfig

TEN = CropConfig("ten_crop")
RANDOM = CropConfig("random", count=6)


def encode(image: Image.Image, format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def gradient(width: int, height: int) -> Image.Image:
    """No two pixels alike: red counts columns, green rows, blue what they leave over."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x % 256, y % 256, x // 256 * 16 + y // 256], 2).astype(np.uint8))


def photograph(width: int, height: int, *, seed: int = 0, cells: int = 24) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (cells, cells, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def cut(data: bytes, config: CropConfig, size: int, *, key: str = "a") -> list[np.ndarray]:
    decoded = decode_crops(data, PreprocessConfig(image_size=size), config, key=key)
    assert len(decoded.pixels) == config.num_crops
    assert all(crop.shape == (size, size, 3) and crop.dtype == np.uint8 for crop in decoded.pixels)
    assert all(crop.flags.c_contiguous and crop.flags.writeable for crop in decoded.pixels)
    return decoded.pixels


def cut_whole(picture: Image.Image, squares: Sequence[Square], size: int) -> list[np.ndarray]:
    """The same crops by the long way: the whole picture is scaled, then cut, then flipped. Only for pictures whose
    scaled size and crops fall on whole pixels."""
    crops = []
    for square in squares:
        left, top, right, bottom = square.box
        factor = (right - left) / size
        assert (bottom - top) / size == pytest.approx(factor)
        scaled = picture.resize(
            (round(picture.width / factor), round(picture.height / factor)), Image.Resampling.BICUBIC
        )
        x, y = round(left / factor), round(top / factor)
        assert (scaled.width, scaled.height) == pytest.approx(
            (picture.width / factor, picture.height / factor)
        )
        assert (x, y) == pytest.approx((left / factor, top / factor))
        crop = np.asarray(scaled.crop((x, y, x + size, y + size)))
        crops.append(crop[:, ::-1] if square.is_mirrored else crop)
    return crops


def assert_equal(found: Sequence[np.ndarray], expected: Sequence[np.ndarray], *, within: int = 0) -> None:
    for number, (mine, theirs) in enumerate(zip(found, expected, strict=True)):
        difference = np.abs(mine.astype(int) - theirs.astype(int)).max()
        assert difference <= within, f"crop {number} differs by {difference}"


def test_places_of_a_ten_crop() -> None:
    # Of 30 x 24 pixels the centre square is x 3 to 27. It becomes 12 pixels wide, so a crop of 10 has 20 in the source.
    squares = CropPlan(CropConfig("ten_crop", scale=1.2), 10, "").squares(30, 24)
    boxes = [(3, 0, 23, 20), (7, 0, 27, 20), (3, 4, 23, 24), (7, 4, 27, 24), (5, 2, 25, 22)]
    assert [square.box for square in squares] == boxes * 2
    assert [square.place for square in squares] == [(0, 0), (2, 0), (0, 2), (2, 2), (1, 1)] * 2
    assert [square.is_mirrored for square in squares] == [False] * 5 + [True] * 5
    # 256 pixels of 282; the centre is 13 off the corner.
    first, *_, centre = CropPlan(TEN, 256, "").squares(282, 400)[:5]
    assert (first.box, centre.box) == ((0, 59, 256, 315), (13, 72, 269, 328))


def test_place_of_a_centre_crop() -> None:
    assert CropPlan(CropConfig(), 10, "").squares(31, 24) == [Square((3, 0, 27, 24), (0, 0))]
    scaled = CropConfig(
        scale=1.25, flip="both"
    )  # 8 of 10 pixels of the square, 1 off its corner, at 2.4 a pixel
    (square, mirrored) = CropPlan(scaled, 8, "").squares(24, 31)
    assert square.box == pytest.approx((2.4, 5.4, 21.6, 24.6))
    assert square.place == (1, 1)
    assert mirrored == Square(square.box, (1, 1), is_mirrored=True)


def test_crops_of_a_gradient_are_its_pixels() -> None:
    picture = gradient(40, 24)  # 24 = 1.2 x 20, so nothing is scaled and crops are slices
    pixels = np.asarray(picture)
    slices = [pixels[y : y + 20, x : x + 20] for x, y in ((8, 0), (12, 0), (8, 4), (12, 4), (10, 2))]
    expected = [*slices, *(crop[:, ::-1] for crop in slices)]
    assert_equal(cut(encode(picture), CropConfig("ten_crop", scale=1.2), 20), expected)
    assert_equal(cut(encode(picture), CropConfig(scale=1.2, flip="both"), 20), [expected[4], expected[9]])


@pytest.mark.parametrize("size", [(320, 240), (240, 320), (240, 240)])
@pytest.mark.parametrize("config", [CropConfig("ten_crop", scale=1.2), CropConfig(scale=1.2, flip="both")])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_crops_are_those_of_the_centre_square_scaled(
    mode: str, config: CropConfig, size: tuple[int, int]
) -> None:
    picture = photograph(*size).convert(mode)
    left, top = (size[0] - 240) // 2, (size[1] - 240) // 2
    square = picture.crop((left, top, left + 240, top + 240))
    expected = cut_whole(square.convert("RGB"), CropPlan(config, 50, "").squares(240, 240), 50)
    assert_equal(cut(encode(picture), config, 50), expected, within=1 if mode == "RGB" else 0)


@pytest.mark.parametrize("config", [CropConfig("ten_crop", scale=2.4), CropConfig(scale=2.4, flip="both")])
def test_small_crops_are_those_of_the_whole_picture_scaled(config: CropConfig) -> None:
    picture = photograph(320, 240)
    assert_equal(
        cut(encode(picture), config, 50), cut_whole(picture, CropPlan(config, 50, "").squares(320, 240), 50)
    )


@pytest.mark.parametrize("scale", [1.0, 1.2])
def test_random_crops_are_those_of_the_whole_picture_scaled(scale: float) -> None:
    config = CropConfig("random", count=8, min_scale=scale, max_scale=scale, flip="random")
    picture = photograph(480, 240)
    squares = CropPlan(config, 50, "a").squares(*picture.size)
    assert len({square.box for square in squares}) > 4
    assert len({square.is_mirrored for square in squares}) == 2
    if scale == 1.0:  # nothing to move along the short side
        assert {(square.box[1], square.box[3]) for square in squares} == {(0, 240)}
    assert_equal(cut(encode(picture), config, 50), cut_whole(picture, squares, 50))


@pytest.mark.parametrize("config", [TEN, CropConfig(flip="both"), CropConfig("random", count=5, flip="both")])
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_the_second_half_mirrors_the_first(config: CropConfig, format: str) -> None:
    crops = cut(encode(photograph(301, 207), format), config, 64)
    half = config.num_places
    assert len(crops) == 2 * half
    assert_equal(crops[half:], [crop[:, ::-1] for crop in crops[:half]])
    assert not np.array_equal(crops[0], crops[half])
    crops[0][:] = 0
    assert crops[half].any()  # of its own


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "JPEG"])
@pytest.mark.parametrize("size", [(40, 24), (24, 41)])
def test_orientation_is_exactly_that_of_exif_transpose(
    format: str, orientation: int, size: tuple[int, int]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(gradient(*size), format, exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    plain = encode(upright.convert("RGB"))
    for config in (  # unscaled: a short side of 24 is 1.2 x 20
        CropConfig("ten_crop", scale=1.2),
        CropConfig("random", count=4, min_scale=1.2, max_scale=1.2, flip="random"),
    ):
        decoded = decode_crops(data, PreprocessConfig(20), config, key="a")
        assert (decoded.width, decoded.height) == upright.size
        assert_equal(decoded.pixels, cut(plain, config, 20))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_with_scaling(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(photograph(303, 203), "TIFF", exif=exif)
    upright = encode(ImageOps.exif_transpose(Image.open(io.BytesIO(data))))
    for config in (TEN, RANDOM):
        assert_equal(cut(data, config, 48), cut(upright, config, 48), within=1)


def test_the_default_is_the_centre_square() -> None:
    for sample in held_out_crops(crops_per_source=1):
        pixels, width, height = decode_image(sample.image, PreprocessConfig(64))
        decoded = decode_crops(sample.image, PreprocessConfig(64), CropConfig(), key=sample.key)
        assert (decoded.width, decoded.height) == (width, height)
        assert_equal(decoded.pixels, [pixels])


def test_an_image_is_decoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = decode.load_jpeg
    monkeypatch.setattr(decode, "load_jpeg", lambda *a: calls.append(1) or original(*a))
    cut(encode(photograph(300, 200), "JPEG"), TEN, 32)
    assert len(calls) == 1


@pytest.mark.parametrize("config", [TEN, CropConfig("random", count=5, max_scale=2.0)])
def test_a_draft_keeps_the_quality(config: CropConfig) -> None:
    data = encode(photograph(1500, 1130, cells=200), "JPEG", quality=90)
    whole = encode(Image.open(io.BytesIO(data)))  # PNG, which has no draft
    for mine, theirs in zip(cut(data, config, 128), cut(whole, config, 128), strict=True):
        error = np.mean((mine.astype(float) - theirs) ** 2)
        assert (
            0 < error < 255**2 / 10**3.8
        )  # 38 dB; a draft for crops of scale 1 has less, and none has no error


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "1", "I;16", "CMYK"])
@pytest.mark.parametrize("kind", ["ten_crop", "random"])
def test_modes_that_are_converted_first(mode: str, kind: str) -> None:
    config = (
        CropConfig("ten_crop", scale=1.2)
        if kind == "ten_crop"
        else CropConfig(kind, count=4, min_scale=1.2, max_scale=1.2)
    )
    picture = photograph(40, 24)
    if mode == "RGBA":
        alpha = Image.fromarray(np.tile(np.arange(40, dtype=np.uint8) * 6, (24, 1)))
        stored = picture.copy()
        stored.putalpha(alpha)
        flat = Image.new("RGB", picture.size, "white")
        flat.paste(picture, mask=alpha)
    elif mode == "I;16":
        grey = np.asarray(picture.convert("L"))
        stored = Image.fromarray(grey.astype(np.uint16) * 257)
        flat = Image.fromarray(grey)
    else:
        stored = picture.convert("LA" if mode == "LA" else mode)
        flat = stored
    data = encode(stored, "TIFF" if mode == "CMYK" else "PNG")
    assert_equal(cut(data, config, 20), cut(encode(flat.convert("RGB")), config, 20))


@pytest.mark.parametrize("size", [(1, 1), (20000, 1), (1, 20000), (2, 3)])
@pytest.mark.parametrize("format", ["PNG", "JPEG"])
@pytest.mark.parametrize("config", [TEN, CropConfig("random", count=40), CropConfig(scale=10)])
def test_extreme_shapes(config: CropConfig, format: str, size: tuple[int, int]) -> None:
    data = encode(Image.new("RGB", size, (60, 60, 60)), format)
    assert all((crop == 60).all() for crop in cut(data, config, 16))


def squares(config: CropConfig, key: str, width: int = 700, height: int = 500) -> list[Square]:
    return CropPlan(config, 100, key).squares(width, height)


def test_random_crops_depend_on_seed_key_and_number_alone() -> None:
    assert squares(RANDOM, "a") == squares(RANDOM, "a")
    assert len({square.box for square in squares(RANDOM, "a")}) == 6
    fewer = CropConfig("random", count=2)
    assert squares(fewer, "a") == squares(RANDOM, "a")[:2]
    others = [squares(RANDOM, "b"), squares(CropConfig("random", count=6, seed=1), "a")]
    for other in others:
        assert not {square.box for square in other} & {square.box for square in squares(RANDOM, "a")}
    # What is drawn must not change with a version of anything.
    boxes = [square.box for square in squares(fewer, "a")]
    assert boxes[0] == pytest.approx((110.576923, 19.230769, 591.346154, 500.0))
    assert boxes[1] == pytest.approx((118.181818, 9.090909, 572.727273, 463.636364))


def test_random_crops_fill_their_range() -> None:
    config = CropConfig("random", count=100, min_scale=1.0, max_scale=2.0, flip="random")
    found = [square for number in range(20) for square in squares(config, f"image-{number}")]
    boxes = np.array([square.box for square in found])
    assert boxes[:, :2].min() == 0
    assert boxes[:, 2].max() > 695 and boxes[:, 3].max() > 495
    assert boxes[:, 2].max() <= 700 and boxes[:, 3].max() <= 500
    sides = boxes[:, 2:] - boxes[:, :2]
    np.testing.assert_allclose(sides[:, 0], sides[:, 1])
    scales = 500 / sides[:, 0]
    assert scales.min() < 1.01 and scales.max() > 1.99
    np.testing.assert_allclose(np.histogram(scales, 4, (1, 2))[0], 500, rtol=0.15)
    middles = (boxes[:, 0] + boxes[:, 2]) / 2
    assert middles.mean() == pytest.approx(350, abs=8)
    assert np.mean([square.is_mirrored for square in found]) == pytest.approx(0.5, abs=0.05)


def test_a_crop_does_not_depend_on_how_many_there_are() -> None:
    data = encode(
        photograph(900, 700).quantize(64)
    )  # converted first, and what it is converted with is the same
    few, many = CropConfig("random", count=2), CropConfig("random", count=9)
    assert_equal(cut(data, many, 64)[:2], cut(data, few, 64))


def test_same_pixels_from_every_thread() -> None:
    images = [encode(photograph(300 + i, 260, seed=i), "JPEG") for i in range(4)]

    def go(data: bytes) -> DecodedCrops:
        return decode_crops(data, PreprocessConfig(32), RANDOM, key="a")

    alone = [go(data) for data in images]
    with ThreadPoolExecutor(4) as pool:
        for number, found in enumerate(pool.map(go, images * 4)):
            assert_equal(found.pixels, alone[number % 4].pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "five"}, "kind=five: expected one of center, ten_crop, random"),
        ({"count": 3}, "count=3: is for kind=random, this is center"),
        ({"seed": 3}, "seed=3: is for kind=random, this is center"),
        (
            {"kind": "random", "scale": 1.1},
            "scale=1.1: is for kind=center or ten_crop, this is random; leave it out",
        ),
        ({"kind": "ten_crop", "max_scale": 1.1}, "max_scale=1.1: is for kind=random"),
        ({"flip": "random"}, "flip='random': expected no or both with kind=center"),
        ({"flip": "sideways"}, "flip=sideways: expected one of no, both, random"),
        ({"kind": "ten_crop", "flip": "no"}, "flip='no': expected both with kind=ten_crop; leave it out"),
        ({"scale": 0.9}, "scale=0.9: expected 1 to 10"),
        ({"scale": 11.0}, "scale=11.0: expected 1 to 10"),
        ({"kind": "random", "min_scale": 0.5}, "min_scale=0.5: expected 1 to 10"),
        ({"kind": "random", "min_scale": 1.5}, "min_scale=1.5: expected at most max_scale=1.25; give both"),
        ({"kind": "random", "count": 0}, "count=0: expected 1 to 128"),
        ({"kind": "random", "count": 129}, "count=129: expected 1 to 128"),
        ({"kind": "random", "seed": -1}, "seed=-1: expected at least 0"),
    ],
)
def test_options_that_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError) as caught:
        CropConfig(**options)
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("scale", "size"), [(1.0, 256), (1.004, 256), (1.03, 32)])
def test_a_ten_crop_that_would_be_one_crop_is_refused(scale: float, size: int) -> None:
    config = CropConfig("ten_crop", scale=scale)
    with pytest.raises(
        ValueError, match=f"scale={scale}: .* are not five different ones; give at least"
    ) as caught:
        config.check_size(size)
    least = float(str(caught.value).split()[-1])
    widened = CropConfig("ten_crop", scale=least)
    widened.check_size(size)
    assert len({square.box for square in CropPlan(widened, size, "").squares(300, 300)}) == 5


@pytest.mark.parametrize(
    ("config", "num_places", "num_crops"),
    [
        (CropConfig(), 1, 1),
        (CropConfig(flip="both"), 1, 2),
        (TEN, 5, 10),
        (RANDOM, 6, 6),
        (CropConfig("random", count=3, flip="random"), 3, 3),
        (CropConfig("random", count=3, flip="both", seed=7), 3, 6),
    ],
)
def test_encoding_says_all_and_is_read_back(config: CropConfig, num_places: int, num_crops: int) -> None:
    assert (config.num_places, config.num_crops) == (num_places, num_crops)
    encoding = config.to_encoding()
    assert encoding.get("crops", {}).get("per_image", 1) == num_crops
    read = CropConfig.from_encoding({"precision": "fp32", **encoding})
    assert (read.kind, read.settings) == (config.kind, config.settings)
    assert read.to_encoding() == encoding


def test_encoding_by_what_is_cut_not_by_how_it_was_asked_for() -> None:
    assert CropConfig(scale=1.0, flip="no").to_encoding() == {}  # as datasets of before
    assert CropConfig("ten_crop", scale=1.1).to_encoding() == TEN.to_encoding()
    assert TEN.to_encoding()["crops"] == {"kind": "ten_crop", "scale": 1.1, "flip": "both", "per_image": 10}
    for crops in ({"kind": "spiral"}, {"kind": "center", "angle": 3}):
        with pytest.raises(ValueError, match="spiral|angle"):
            CropConfig.from_encoding({"crops": crops})


def test_options_as_they_are_written(tmp_path) -> None:
    path = tmp_path / "crops.yaml"
    path.write_text("kind: random\ncount: 3\nflip: no\n")  # not false
    assert load_config(CropConfig, [str(path), "max_scale=1.5"], prog="", description="") == CropConfig(
        "random", count=3, flip="no", max_scale=1.5
    )
