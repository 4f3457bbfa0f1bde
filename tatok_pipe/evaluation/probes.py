"""Pictures with known content, made on the spot: textures, text, and what nobody photographs.

Letters: S image size in pixels.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from scipy.ndimage import gaussian_filter

from tatok_pipe.errors import UserError
from tatok_pipe.evaluation.pictures import Picture
from tatok_pipe.images.demo import SOURCES

PROBES = ("texture", "text", "synthetic")
MIN_IMAGE_SIZE = 16  # pixels; below it no word fits

_INSTALL = 'pip install "tatok_pipe[evaluation]"'
_LETTER_HEIGHTS = (0.08, 0.1, 0.13, 0.18)  # font sizes, of the image size
_MIN_FONT_PIXELS = 9  # below it the built-in font cannot be read
# Common English words.
_WORDS = """
about above across action after again animal answer apple around autumn baker basket beach before between bird
black bottle branch bread bridge bright brother brown building butter button candle carpet castle centre chair
cheese child circle city clear clock cloud coffee colour common copper corner cotton country cousin cover credit
dance danger daughter desert dinner doctor double dream early earth engine enough evening every family farmer
father field figure finger flower follow forest fresh friend front garden gentle glass golden grass great green
guide hammer happy harbour heavy history honey horse hotel hundred ice island jacket journey jump kettle kind
kitchen ladder language large laugh leader leather letter light little local lunch machine market master meadow
metal middle minute mirror modern money month morning mother mountain music narrow nature needle never night
north notice number ocean office often open orange order over paper parent pencil people picture planet plenty
pocket power price proud public purple quarter queen question quick quiet rabbit rain ready reason record red
rest right river road room round safe school season second shadow sharp sheep ship silver simple sister smooth
snow south spoon spring square star station stone street strong summer sugar table teacher thing thunder ticket
tiger tower travel tree under uncle up valley village violin visit voice wagon walk warm water weather west
wheel white window winter wonder wood work yellow young zebra
"""


def probe_pictures(kind: str, *, image_size: int, num_images: int, seed: int) -> list[Picture]:
    """Pictures of one of PROBES. Picture i depends on (kind, seed, i, image_size) alone; what is written on a text
    picture is its `text`, lines with newlines between. Raises UserError for another kind, for less than MIN_IMAGE_SIZE
    pixels, or where scikit-image, whose pictures textures are cut from, is missing."""
    if kind not in _DRAW:
        raise UserError(f"probe kind {kind!r}: expected one of {', '.join(PROBES)}")
    if image_size < MIN_IMAGE_SIZE:
        raise UserError(f"image_size={image_size}: probes are drawn from {MIN_IMAGE_SIZE} pixels on")
    pictures = []
    for number in range(num_images):
        dice = np.random.default_rng([seed, PROBES.index(kind), number, image_size])
        image, text = _DRAW[kind](number, image_size, dice)
        pictures.append(Picture(f"{kind}-{number:04d}", np.asarray(image, np.uint8), kind=kind, text=text))
    return pictures


Draw = Callable[[int, int, np.random.Generator], tuple[Image.Image, str]]


def _draw_texture(number: int, size: int, dice: np.random.Generator) -> tuple[Image.Image, str]:
    """Three photographs in turn, filtered noise and weave; between two colours of its own."""
    photographs = [source.path for source in SOURCES if source.kind == "texture"]
    place = number % (len(photographs) + 2)
    if place < len(photographs):
        grey = _crop(_open_packaged(photographs[place]), size, dice)
    else:
        values = _noise(size, dice) if place == len(photographs) else _weave(size, dice)
        grey = Image.fromarray((values * 255).round().astype(np.uint8))
    dark, light = dice.integers(0, 90, 3), dice.integers(150, 256, 3)
    return ImageOps.colorize(grey, black=_colour(dark), white=_colour(light)), ""


def _open_packaged(path: str) -> Image.Image:
    # The file is read where the wheel put it: skimage.data would fetch what a wheel lacks from the network.
    spec = importlib.util.find_spec("skimage")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"textures are cut from pictures in scikit-image, which is missing; {_INSTALL}")
    file = Path(spec.submodule_search_locations[0]) / path
    if not file.is_file():
        raise UserError(f"{file}: this release of scikit-image came without the picture; {_INSTALL}")
    return Image.open(file).convert("L")


def _crop(picture: Image.Image, size: int, dice: np.random.Generator) -> Image.Image:
    """A square of log-uniform side, shrunk to `size`: never enlarged where the picture is large enough, as that
    would take the fine detail away."""
    short = min(picture.size)
    least = min(size, short)
    side = round(least * (short / least) ** dice.random())
    left, top = (int(dice.integers(0, length - side + 1)) for length in picture.size)
    box = (left, top, left + side, top + side)
    return picture.resize((size, size), Image.Resampling.LANCZOS, box=box)


def _noise(size: int, dice: np.random.Generator) -> np.ndarray:
    """Gaussian noise under a gaussian filter that is wider one way than the other, (S, S) in [0, 1]."""
    deviations = 0.5 * 4 ** dice.random(2)  # pixels
    values = gaussian_filter(dice.standard_normal((size, size)), deviations, mode="wrap")
    return _stretch(values)


def _weave(size: int, dice: np.random.Generator) -> np.ndarray:
    """Two sets of threads at right angles, over and under each other in turn, at any angle: (S, S) in [0, 1]."""
    width = 2.5 * 4 ** dice.random()  # of a thread, pixels
    angle = dice.random() * np.pi
    y, x = np.mgrid[:size, :size] + dice.random((2, 1, 1)) * size
    along = (x * np.cos(angle) + y * np.sin(angle)) / width
    across = (y * np.cos(angle) - x * np.sin(angle)) / width
    is_over = (np.floor(along) + np.floor(across)) % 2 == 0
    shade = np.abs(np.sin(np.pi * np.where(is_over, along, across)))  # threads are round
    return _stretch(shade * np.where(is_over, 1.0, 0.7) + 0.05 * dice.standard_normal((size, size)))


def _stretch(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / np.ptp(values)


def _draw_text(number: int, size: int, dice: np.random.Generator) -> tuple[Image.Image, str]:
    """Lines of words, dark on light or light on dark, as many as the picture holds."""
    height = _LETTER_HEIGHTS[number % len(_LETTER_HEIGHTS)]
    font = ImageFont.load_default(max(_MIN_FONT_PIXELS, round(height * size)))
    dark, light = dice.integers(0, 80, 3), dice.integers(190, 256, 3)
    ink, ground = (dark, light) if dice.random() < 0.75 else (light, dark)
    margin = size // 20
    line_height = sum(font.getmetrics()) if isinstance(font, ImageFont.FreeTypeFont) else size
    num_lines = max(1, (size - 2 * margin) // line_height)
    fitting = [word for word in _WORDS.split() if font.getlength(word) <= size - 2 * margin]
    lines = [_line(fitting, font.getlength, size - 2 * margin, dice) for _ in range(num_lines)]
    image = Image.new("RGB", (size, size), _colour(ground))
    draw = ImageDraw.Draw(image)
    for place, line in enumerate(lines):
        draw.text((margin, margin + place * line_height), line, fill=_colour(ink), font=font)
    return image, "\n".join(lines)


def _line(words: list[str], measure: Callable[[str], float], width: int, dice: np.random.Generator) -> str:
    """Words as long as they fit `width` pixels; each does."""
    line = words[dice.integers(len(words))]
    while measure(longer := f"{line} {words[dice.integers(len(words))]}") <= width:
        line = longer
    return line


def _draw_synthetic(number: int, size: int, dice: np.random.Generator) -> tuple[Image.Image, str]:
    drawn = _SYNTHETIC[number % len(_SYNTHETIC)](size, dice)
    return drawn, ""


def _gradient(size: int, dice: np.random.Generator) -> Image.Image:
    """From one colour to another, at any angle."""
    angle = dice.random() * 2 * np.pi
    y, x = np.mgrid[:size, :size]
    share = _stretch(x * np.cos(angle) + y * np.sin(angle))[..., None]
    start, end = dice.integers(0, 256, (2, 3))
    return Image.fromarray((start + (end - start) * share).round().astype(np.uint8))


def _uniform(size: int, dice: np.random.Generator) -> Image.Image:
    return Image.new("RGB", (size, size), _colour(dice.integers(0, 256, 3)))


def _checkerboard(size: int, dice: np.random.Generator) -> Image.Image:
    """Squares of 1 pixel to an eighth of the picture, two colours."""
    side = int(dice.integers(1, size // 8 + 1))
    y, x = np.mgrid[:size, :size] // side
    colours = dice.integers(0, 256, (2, 3)).astype(np.uint8)
    return Image.fromarray(colours[(x + y) % 2])


def _shapes(size: int, dice: np.random.Generator) -> Image.Image:
    """Rectangles, ellipses and triangles with sharp edges, over each other."""
    image = _uniform(size, dice)
    draw = ImageDraw.Draw(image)
    for place in range(int(dice.integers(3, 10))):
        left, top, width, height = (dice.random(4) * [0.8, 0.8, 0.5, 0.5] * size).tolist()
        right, bottom = left + width + 2, top + height + 2
        colour = _colour(dice.integers(0, 256, 3))
        if place % 3 == 0:
            draw.rectangle((left, top, right, bottom), fill=colour)
        elif place % 3 == 1:
            draw.ellipse((left, top, right, bottom), fill=colour)
        else:
            draw.polygon([(left, bottom), (right, bottom), ((left + right) / 2, top)], fill=colour)
    return image


def _white_noise(size: int, dice: np.random.Generator) -> Image.Image:
    return Image.fromarray(dice.integers(0, 256, (size, size, 3)).astype(np.uint8))


def _colour(values: np.ndarray) -> tuple[int, int, int]:
    red, green, blue = values.tolist()
    return red, green, blue


_SYNTHETIC = (_gradient, _uniform, _checkerboard, _shapes, _white_noise)
_DRAW: dict[str, Draw] = {"texture": _draw_texture, "text": _draw_text, "synthetic": _draw_synthetic}
