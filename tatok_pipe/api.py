"""The pipeline's models as Python objects: encode and decode images, sample new ones.

    import tatok_pipe

    tokenizer = tatok_pipe.load_tokenizer()
    tokens = tokenizer.encode(["a.jpg", "b.png"], target_tokens=80)
    images = tokenizer.decode(tokens)  # (2, 3, S, S)

    generator = tatok_pipe.load_generator("tatok_generator")
    images = tokenizer.decode(generator.sample(16, classes=[3, 5]))

Letters: B images, S image size, K globals, M kept of N patches, side = √N.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tatok_pipe import storage
from tatok_pipe.ar import checkpoint as generator_checkpoint
from tatok_pipe.ar.requests import ImageRequest, ImageTokens
from tatok_pipe.ar.sampler import DEFAULT_SLOTS, Sampler, SamplingConfig
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.generation.job import keep_part
from tatok_pipe.generation.plan import asked_patches
from tatok_pipe.images.decode import DecodeError, PreprocessConfig, decode_image
from tatok_pipe.seeds import hash_seed
from tatok_pipe.tokenizer import checkpoint as tokenizer_checkpoint
from tatok_pipe.tokenizer.dtf import DTFConfig
from tatok_pipe.tokens.dataset import records_to_tensors

_BATCH_IMAGES = 16

Picture = str | PathLike[str] | bytes | Image.Image


@dataclass(frozen=True)
class RaggedTokens:
    """B images as tokens, end to end. `tokens[i]` is one image; `len`, iteration and slices work as for a list."""

    global_codes: np.ndarray  # (B, K) int32
    patch_codes: np.ndarray  # (sum of M,) int32
    patch_positions: np.ndarray  # (sum of M,) int32, raster indices, strictly increasing within an image
    offsets: np.ndarray  # (B + 1,) int64, where each image's patches begin, and the end
    tokenizer_fingerprint: str

    @classmethod
    def from_images(
        cls, images: Sequence[ImageTokens], *, num_globals: int, fingerprint: str
    ) -> RaggedTokens:
        def joined(parts: list[np.ndarray]) -> np.ndarray:
            return np.concatenate(parts or [np.zeros(0)]).astype(np.int32)

        return cls(
            global_codes=joined([image.global_codes for image in images]).reshape(-1, num_globals),
            patch_codes=joined([image.patch_codes for image in images]),
            patch_positions=joined([image.patch_positions for image in images]),
            offsets=np.cumsum([0, *(len(image.patch_codes) for image in images)]),
            tokenizer_fingerprint=fingerprint,
        )

    def __len__(self) -> int:
        return len(self.global_codes)

    def __getitem__(self, index: int) -> ImageTokens:
        index = range(len(self))[index]
        span = slice(self.offsets[index], self.offsets[index + 1])
        return ImageTokens(
            index, self.global_codes[index], self.patch_codes[span], self.patch_positions[span]
        )

    def __iter__(self) -> Iterator[ImageTokens]:
        return map(self.__getitem__, range(len(self)))

    @property
    def num_tokens(self) -> np.ndarray:
        """(B,) int64, globals included."""
        return self.global_codes.shape[1] + np.diff(self.offsets)


class ImageTokenizer:
    """Images to tokens and back; see `load_tokenizer`."""

    def __init__(self, loaded: tokenizer_checkpoint.Tokenizer) -> None:
        self._loaded = loaded
        self.model = loaded.model
        self.fingerprint = loaded.fingerprint
        self._device = self.model.encoder_rotary.device

    @property
    def image_size(self) -> int:
        """S, pixels."""
        return self.model.config.image_size

    def encode(
        self,
        images: Tensor | np.ndarray | Sequence[Picture],
        *,
        target_tokens: int | None = None,
        filter: DTFConfig | None = None,
    ) -> RaggedTokens:
        """Images of the right size, (B, 3, S, S) float in [0, 1] or (B, S, S, 3) uint8, or a list of paths, URLs, bytes
        of files or PIL images of any size, which are cropped and scaled as tokenize_corpus does.

        `target_tokens` is the mean number on images like those that the tokenizer was calibrated on; `filter` is any
        other setting of DTF. Raises UserError for an image that does not decode, or another size.
        """
        if filter is not None and target_tokens is not None:
            raise UserError("target_tokens and filter are given; expected one of them")
        resolved = self._loaded.filter(filter or DTFConfig(target_tokens=target_tokens))
        found: list[ImageTokens] = []
        pixels = self._to_pixels(images)
        for start in range(0, len(pixels), _BATCH_IMAGES):
            with torch.no_grad():
                tokens = self.model.tokenize(pixels[start : start + _BATCH_IMAGES].to(self._device), resolved)
            rows = zip(
                *(x.cpu().numpy() for x in (tokens.global_codes, tokens.patch_codes, tokens.keep)),
                strict=True,
            )
            found += [
                ImageTokens(number, global_codes, codes[keep], np.flatnonzero(keep))
                for number, (global_codes, codes, keep) in enumerate(rows, start)
            ]
        return RaggedTokens.from_images(
            found, num_globals=self.model.config.num_globals, fingerprint=self.fingerprint
        )

    def decode(self, tokens: RaggedTokens) -> Tensor:
        """Images (B, 3, S, S) float32 in [0, 1], on the CPU. Raises RefusedError for another tokenizer's tokens."""
        if tokens.tokenizer_fingerprint != self.fingerprint:
            raise RefusedError(
                f"tokens of tokenizer {tokens.tokenizer_fingerprint[:12]}: this one is {self.fingerprint[:12]}"
            )
        images, config = list(tokens), self.model.config
        decoded = [torch.zeros(0, 3, config.image_size, config.image_size)]
        for start in range(0, len(images), _BATCH_IMAGES):
            batch = records_to_tensors(
                images[start : start + _BATCH_IMAGES],
                num_globals=config.num_globals,
                num_patches=config.num_patches,
            )
            decoded.append(self.model.decode(*(each.to(self._device) for each in batch)).cpu())
        return torch.cat(decoded)

    def _to_pixels(self, images: Tensor | np.ndarray | Sequence[Picture]) -> Tensor:
        size = self.image_size
        if isinstance(images, np.ndarray) and images.dtype == np.uint8:
            images = torch.from_numpy(images).movedim(-1, 1).float() / 255
        if isinstance(images, np.ndarray):
            images = torch.from_numpy(images)
        if isinstance(images, Tensor):
            if images.ndim != 4 or images.shape[1:] != (3, size, size) or not images.is_floating_point():
                raise UserError(
                    f"images of shape {tuple(images.shape)}, {images.dtype}: expected (B, 3, {size}, {size}) float in "
                    f"[0, 1], or (B, {size}, {size}, 3) uint8"
                )
            return images.float()
        crops = [self._decode(picture) for picture in images]
        return torch.stack(crops) if crops else torch.zeros(0, 3, size, size)

    def _decode(self, picture: Picture) -> Tensor:
        shown = "an image"
        if isinstance(picture, Image.Image):
            buffer = io.BytesIO()
            picture.save(buffer, "PNG")
            data = buffer.getvalue()
        elif isinstance(picture, bytes):
            data = picture
        else:
            shown = storage.redact(str(picture))
            try:
                data = storage.read_bytes(
                    str(Path(picture)) if isinstance(picture, PathLike) else str(picture)
                )
            except FileNotFoundError:
                raise UserError(f"{shown}: is not there") from None
        try:
            pixels, _, _ = decode_image(data, PreprocessConfig(image_size=self.image_size))
        except DecodeError as error:
            raise UserError(f"{shown}: does not decode: {error.error}: {error}") from None
        return torch.from_numpy(pixels.copy()).movedim(-1, 0).float() / 255


class ImageGenerator:
    """New images as tokens; see `load_generator`."""

    def __init__(self, loaded: generator_checkpoint.LoadedGenerator) -> None:
        self._loaded = loaded
        self.model = loaded.model
        self.fingerprint = loaded.fingerprint
        self.tokenizer_fingerprint = loaded.tokens.tokenizer_fingerprint
        self._samplers: dict[tuple[SamplingConfig, int], Sampler] = {}

    def sample(
        self,
        num_images: int,
        *,
        classes: Sequence[int] | None = None,
        embeddings: np.ndarray | None = None,
        seed: int = 0,
        target_tokens: int | None = None,
        sampling: SamplingConfig | None = None,
        start: RaggedTokens | None = None,
        keep: np.ndarray | None = None,
        keep_globals: bool = True,
        slots: int | None = None,
    ) -> RaggedTokens:
        """Images in order, each a function of `seed`, its number and the arguments: the ones that
        `python -m tatok_pipe.generate` draws.

        `classes`, or `embeddings` (n, E), are taken in turn; without them images are drawn without a condition.
        `target_tokens` is about what an image has, where the generator knows budgets. Of `start`, whose images are
        taken in turn, the patches at the places in `keep` (N,) or (side, side) bool stay as they are, and the globals
        with `keep_globals`; the rest is drawn. `slots` images are drawn at once. Raises UserError for what the
        generator cannot do.
        """
        if num_images < 1:
            raise UserError(f"num_images={num_images}: expected at least 1")
        sampling, tokens = sampling or SamplingConfig(), self._loaded.tokens
        if start is not None and start.tokenizer_fingerprint != self.tokenizer_fingerprint:
            raise RefusedError(
                f"start: tokens of tokenizer {start.tokenizer_fingerprint[:12]}, the generator was trained on those of "
                f"{self.tokenizer_fingerprint[:12]}"
            )
        if start is not None and not len(start):
            raise UserError("start: has no image")
        is_kept = (
            np.zeros(tokens.num_patches, np.bool_) if keep is None else np.asarray(keep, np.bool_).ravel()
        )
        if len(is_kept) != tokens.num_patches:
            raise UserError(f"keep: has {len(is_kept)} places, images have {tokens.num_patches}")
        num_patches = asked_patches(target_tokens, self._loaded)

        def requests() -> Iterator[ImageRequest]:
            for number in range(num_images):
                codes, patches = (None, None)
                if start is not None:
                    codes, patches = keep_part(start[number % len(start)], is_kept, keep_globals=keep_globals)
                yield ImageRequest(
                    number,
                    seed=hash_seed(seed, number),
                    label=classes[number % len(classes)] if classes else None,
                    embedding=None if embeddings is None else embeddings[number % len(embeddings)],
                    num_patches=num_patches,
                    global_codes=codes,
                    patches=patches,
                )

        device = self.model.rotary.device.type
        default = DEFAULT_SLOTS[device]
        sampler = self._sampler(sampling, slots or (min(default, num_images) if device == "cpu" else default))
        try:
            drawn = sorted(sampler.sample(requests()), key=lambda image: image.number)
        except ValueError as error:  # a request that cannot be
            raise UserError(str(error)) from None
        return RaggedTokens.from_images(
            drawn, num_globals=tokens.num_globals, fingerprint=self.tokenizer_fingerprint
        )

    def _sampler(self, sampling: SamplingConfig, slots: int) -> Sampler:
        """One is kept: on a GPU it is compiled once."""
        key = sampling, slots
        if key not in self._samplers:
            self._samplers.clear()
            dtype = torch.float32 if self.model.rotary.device.type == "cpu" else torch.bfloat16
            try:
                self._samplers[key] = Sampler(self.model, sampling, num_slots=slots, dtype=dtype)
            except ValueError as error:
                raise UserError(str(error)) from None
        return self._samplers[key]


def load_tokenizer(url: str = tokenizer_checkpoint.PACKAGED, *, device: str | None = None) -> ImageTokenizer:
    """The tokenizer in a folder that train_tokenizer wrote, on any URL, or the packaged one; on a GPU where there is
    one. Raises UserError where there is none or it is damaged."""
    return ImageTokenizer(tokenizer_checkpoint.load_tokenizer(url, device=device or _best_device()))


def load_generator(url: str, *, device: str | None = None) -> ImageGenerator:
    """The generator of a train_ar run, on any URL; on a GPU where there is one. Raises UserError where there is none or
    it is damaged."""
    return ImageGenerator(generator_checkpoint.load_generator(url, device=device or _best_device()))


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


__all__ = ["ImageGenerator", "ImageTokenizer", "RaggedTokens", "load_generator", "load_tokenizer"]
