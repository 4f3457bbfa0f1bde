"""How images are decoded, without Pillow and torch."""

from __future__ import annotations

from dataclasses import dataclass

# Twice Pillow's MAX_IMAGE_PIXELS, from where Image.open refuses by itself.
PILLOW_PIXEL_LIMIT = 178_956_970


@dataclass(frozen=True)
class PreprocessConfig:
    """How image bytes become the tokenizer's input: every field changes pixels, or what is refused."""

    image_size: int = 256  # side of the square crop given to the tokenizer, in pixels
    # Width x height of an image, as declared; larger ones are quarantined before any pixel is decoded.
    max_pixels: int = 64_000_000

    def __post_init__(self) -> None:
        if not 1 <= self.image_size <= 8192:
            raise ValueError(f"image_size={self.image_size}: expected 1 to 8192 pixels")
        if not 1 <= self.max_pixels <= PILLOW_PIXEL_LIMIT:
            raise ValueError(
                f"max_pixels={self.max_pixels}: expected 1 to {PILLOW_PIXEL_LIMIT} (Pillow refuses more)"
            )


IMAGES_PER_PART = 500
