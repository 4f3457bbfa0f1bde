"""The options of decoding, without Pillow and torch."""

from __future__ import annotations

from dataclasses import dataclass

from tatok_pipe.config.options import option

# Twice Pillow's MAX_IMAGE_PIXELS, from where Image.open refuses by itself.
PILLOW_PIXEL_LIMIT = 178_956_970


@dataclass(frozen=True)
class PreprocessConfig:
    """How image bytes become the tokenizer's input: every field changes pixels, or what is refused."""

    image_size: int = option(256, help="side of the square crop given to the tokenizer", unit="pixels")
    max_pixels: int = option(
        64_000_000,
        help="largest declared width x height; larger images are quarantined before any pixel is decoded",
        unit="pixels, per image",
    )

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= 8192:
            raise ValueError(f"image_size={self.image_size}: expected 1 to 8192 pixels")
        if not 1 <= self.max_pixels <= PILLOW_PIXEL_LIMIT:
            raise ValueError(
                f"max_pixels={self.max_pixels}: expected 1 to {PILLOW_PIXEL_LIMIT} (Pillow refuses more)"
            )


IMAGES_PER_PART = 500
