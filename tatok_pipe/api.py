"""The pipeline as Python objects: encode and decode images, sample new ones, read tokens in a training of one's own.

    import tatok_pipe

    tokenizer = tatok_pipe.load_tokenizer()
    tokens = tokenizer.encode(["a.jpg", "b.png"], target_tokens=80)
    images = tokenizer.decode(tokens)  # (2, 3, S, S)

    generator = tatok_pipe.load_generator("tatok_generator")
    images = tokenizer.decode(generator.sample(16, classes=[3, 5]))

    dataset = tatok_pipe.TokenDataset("tatok_out")
    for batch in tatok_pipe.TokenLoader("tatok_out", rows_per_step=8): ...

Letters: B images, S image size, K globals, M kept of N patches, side = √N.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike, fspath
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from tatok_pipe.ar import checkpoint as generator_checkpoint
from tatok_pipe.ar.generation.conditions import asked_patches, check_classes, check_trained, chosen_classes
from tatok_pipe.ar.generation.job import keep_part
from tatok_pipe.ar.options import DrawConfig, SamplingConfig
from tatok_pipe.ar.ragged_tokens import EncodedImage, RaggedTokens
from tatok_pipe.ar.requests import ImageRequest, ImageTokens
from tatok_pipe.ar.sampler import DEFAULT_SLOTS, Sampler
from tatok_pipe.config.number_lists import format_numbers
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.images.pictures import Picture, list_pictures, to_pixels
from tatok_pipe.seeds import hash_seed
from tatok_pipe.tokenizer import checkpoint as tokenizer_checkpoint
from tatok_pipe.tokenizer.options import DTFConfig
from tatok_pipe.tokens.dataset import TokenDataset as TokenDataset
from tatok_pipe.tokens.dataset import records_to_tensors
from tatok_pipe.tokens.loading.token_loader import TokenBatch as TokenBatch
from tatok_pipe.tokens.loading.token_loader import TokenLoader as TokenLoader

_BATCH_IMAGES = 16

SomeTokens = RaggedTokens | EncodedImage | Sequence[EncodedImage]


class ImageTokenizer:
    """Images to tokens and back; see `load_tokenizer`."""

    def __init__(self, loaded: tokenizer_checkpoint.Tokenizer) -> None:
        self._loaded = loaded
        self.model = loaded.model
        self.fingerprint = loaded.fingerprint

    def __repr__(self) -> str:
        config = self.model.config
        return (
            f"ImageTokenizer({config.image_size} px, {config.num_globals} global and up to {config.num_patches} patch "
            f"tokens; {self.fingerprint[:12]}, on {self.device})"
        )

    @property
    def image_size(self) -> int:
        """S, pixels."""
        return self.model.config.image_size

    @property
    def device(self) -> torch.device:
        return self.model.linear.mean.device

    def to(self, device: str | torch.device) -> Self:
        """Move the model, in place, and return self. Raises UserError where there is no such device."""
        _move(self.model, device)
        return self

    def encode(
        self,
        images: Picture | Iterable[Picture],
        *,
        target_tokens: int | None = None,
        filter: DTFConfig | None = None,
    ) -> RaggedTokens:
        """One image or several: paths, URLs, bytes of files, PIL images, arrays (H, W, 3), (H, W, 4) or (H, W) uint8
        and tensors (3, H, W) uint8, of any size, which are cropped and scaled as tokenize_corpus does; or float in
        [0, 1], (3, S, S) or (B, 3, S, S), as they are. One image gives tokens of length 1.

        `target_tokens` is the mean number on images like those that the tokenizer was calibrated on; `filter` is any
        other setting of DTF. Raises UserError for what is no such image, or does not decode.
        """
        if filter is not None and target_tokens is not None:
            raise UserError("target_tokens and filter are given; expected one of them")
        resolved = self._loaded.filter(filter or DTFConfig(target_tokens=target_tokens))
        found: list[ImageTokens] = []
        pictures = list_pictures(images)
        for start in range(0, len(pictures), _BATCH_IMAGES):
            batch = [
                to_pixels(picture, size=self.image_size, number=number)
                for number, picture in enumerate(pictures[start : start + _BATCH_IMAGES], start)
            ]
            # Always the full batch: kernels differ by shape, and an image alone has the tokens it has among others.
            whole = torch.zeros(_BATCH_IMAGES, *batch[0].shape)
            whole[: len(batch)] = torch.stack(batch)
            with torch.no_grad():
                tokens = self.model.tokenize(whole.to(self.device), resolved)
            rows = zip(
                *(
                    x[: len(batch)].cpu().numpy()
                    for x in (tokens.global_codes, tokens.patch_codes, tokens.keep)
                ),
                strict=True,
            )
            found += [
                ImageTokens(number, global_codes, codes[keep], np.flatnonzero(keep))
                for number, (global_codes, codes, keep) in enumerate(rows, start)
            ]
        return RaggedTokens.from_images(
            found, num_globals=self.model.config.num_globals, fingerprint=self.fingerprint
        )

    def decode(self, tokens: SomeTokens) -> Tensor:
        """Images (B, 3, S, S) float32 in [0, 1], on the CPU; B is 1 for one image, `tokens[i]`. Raises RefusedError for
        another tokenizer's tokens, UserError for codes that this one does not have."""
        images, config = _list_images(tokens, self.fingerprint, name="tokens"), self.model.config
        for image in images:
            _check_codes(image, "global_codes", config.num_globals, config.global_codebook.vocab_size)
            _check_codes(image, "patch_codes", len(image.patch_positions), config.patch_codebook.vocab_size)
            _check_codes(image, "patch_positions", len(image.patch_codes), config.num_patches)
        decoded = [torch.zeros(0, 3, config.image_size, config.image_size)]
        for start in range(0, len(images), _BATCH_IMAGES):
            batch = records_to_tensors(
                images[start : start + _BATCH_IMAGES],
                num_globals=config.num_globals,
                num_patches=config.num_patches,
            )
            decoded.append(self.model.decode(*(each.to(self.device) for each in batch)).cpu())
        return torch.cat(decoded)


class ImageGenerator:
    """New images as tokens; see `load_generator`."""

    def __init__(self, loaded: generator_checkpoint.LoadedGenerator) -> None:
        self._loaded = loaded
        self.model = loaded.model
        self.fingerprint = loaded.fingerprint
        self.tokenizer_fingerprint = loaded.tokens.tokenizer_fingerprint
        self._samplers: dict[tuple[SamplingConfig, int], Sampler] = {}

    def __repr__(self) -> str:
        config = self.model.config
        condition = f"{config.num_classes} classes" if config.condition == "class" else config.condition
        return (
            f"ImageGenerator({config.width} x {config.depth}, condition: {condition}; {self.fingerprint[:12]}, of "
            f"tokens of {self.tokenizer_fingerprint[:12]}, on {self.device})"
        )

    @property
    def device(self) -> torch.device:
        return self.model.rotary.device

    def to(self, device: str | torch.device) -> Self:
        """Move the model, in place, and return self. Raises UserError where there is no such device."""
        self._samplers.clear()  # they hold tensors where the model was
        _move(self.model, device)
        return self

    def sample(
        self,
        num_images: int,
        *,
        classes: int | str | Iterable[int | str] | None = None,
        embeddings: np.ndarray | None = None,
        seed: int = 0,
        target_tokens: int | None = None,
        sampling: SamplingConfig | None = None,
        start: SomeTokens | None = None,
        keep: np.ndarray | None = None,
        keep_globals: bool = True,
        slots: int | None = None,
    ) -> RaggedTokens:
        """Images in order, each a function of `seed`, its number and the arguments: the ones that
        `python -m tatok_pipe.generate` draws.

        `classes`, numbers, names where the token dataset had them, or a text as `generate` takes it ("all",
        "0-9,tabby"), or `embeddings` (n, E), are taken in turn; without them images are drawn without a condition.
        `target_tokens` is about what an image has, where the generator knows budgets. Of `start`, whose images are
        taken in turn, the patches at the places in `keep`, (N,) or (side, side) bool, stay as they are, and the globals
        with `keep_globals`; the rest is drawn. `slots` images
        are drawn at once. Raises UserError for what the generator cannot do.
        """
        if num_images < 1:
            raise UserError(f"num_images={num_images}: expected at least 1")
        if seed < 0:
            raise UserError(f"seed={seed}: expected 0 or more")
        sampling, spec = sampling or SamplingConfig(), self._loaded.tokens
        if classes is not None and embeddings is not None:
            raise UserError("classes and embeddings are given; expected one of them")
        labels = _to_labels(classes, self._loaded)
        check_trained(
            self._loaded,
            is_guided=sampling.is_guided,
            has_condition=bool(labels) or embeddings is not None,
            target_tokens=target_tokens,
        )
        vectors = None if embeddings is None else _to_vectors(embeddings)
        is_kept = _to_mask(keep, num_patches=spec.num_patches)
        starts = [] if start is None else _list_images(start, self.tokenizer_fingerprint, name="start")
        if start is None and (keep is not None or not keep_globals):
            raise UserError(
                "keep and keep_globals are of the images to start from: expected start, their tokens"
            )
        if start is not None and not starts:
            raise UserError("start: has no image")
        if start is not None and not keep_globals and not is_kept.any():
            raise UserError("start: nothing of it is kept; expected keep with a place, or keep_globals=True")
        for image in starts:
            _check_codes(image, "patch_positions", len(image.patch_codes), spec.num_patches)
        num_patches = asked_patches(target_tokens, self._loaded)

        def requests() -> Iterator[ImageRequest]:
            for number in range(num_images):
                codes, patches = (None, None)
                if starts:
                    codes, patches = keep_part(
                        starts[number % len(starts)], is_kept, keep_globals=keep_globals
                    )
                yield ImageRequest(
                    number,
                    seed=hash_seed(seed, number),
                    label=labels[number % len(labels)] if labels else None,
                    embedding=None if vectors is None else vectors[number % len(vectors)],
                    num_patches=num_patches,
                    global_codes=codes,
                    patches=patches,
                )

        default = DEFAULT_SLOTS[self.device.type]
        if slots is None:
            slots = min(default, num_images) if self.device.type == "cpu" else default
        sampler = self._sampler(sampling, slots)
        try:
            drawn = sorted(sampler.sample(requests()), key=lambda image: image.number)
        except ValueError as error:  # a request that cannot be
            raise UserError(str(error)) from None
        return RaggedTokens.from_images(
            drawn, num_globals=spec.num_globals, fingerprint=self.tokenizer_fingerprint
        )

    def _sampler(self, sampling: SamplingConfig, slots: int) -> Sampler:
        """One is kept: on a GPU it is compiled once."""
        key = sampling, slots
        if key not in self._samplers:
            self._samplers.clear()
            dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
            try:
                self._samplers[key] = Sampler(self.model, sampling, num_slots=slots, dtype=dtype)
            except ValueError as error:
                raise UserError(str(error)) from None
        return self._samplers[key]


def load_tokenizer(
    url: str | PathLike[str] = tokenizer_checkpoint.PACKAGED, *, device: str | None = None
) -> ImageTokenizer:
    """The tokenizer of a train_tokenizer run, on any URL, or the packaged one; on a GPU where there is one. Raises
    UserError where there is none or it is damaged."""
    loaded = tokenizer_checkpoint.load_tokenizer(fspath(url), option="url")
    return ImageTokenizer(loaded).to(device or _best_device())


def load_generator(url: str | PathLike[str], *, device: str | None = None) -> ImageGenerator:
    """The generator of a train_ar run, on any URL; on a GPU where there is one. Raises UserError where there is none or
    it is damaged."""
    loaded = generator_checkpoint.load_generator(fspath(url), option="url")
    return ImageGenerator(loaded).to(device or _best_device())


def _best_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _move(model: nn.Module, device: str | torch.device) -> None:
    try:
        if torch.device(device).type not in DEFAULT_SLOTS:
            raise ValueError("the models do not run there")
        model.to(device)
    # What torch raises where it has no such device.
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"device={device}: {reason}; expected cpu, or cuda where torch sees a GPU (here: {_best_device()})"
        ) from None


def _list_images(tokens: SomeTokens, fingerprint: str, *, name: str) -> list[EncodedImage]:
    """Raises RefusedError for tokens of another tokenizer than that with `fingerprint`, UserError for no tokens."""
    if isinstance(tokens, RaggedTokens):
        try:
            tokens.check()
        except ValueError as error:
            raise UserError(f"{name}: {error}; expected what encode or sample gives") from None
    images = [tokens] if isinstance(tokens, EncodedImage) else list(tokens)
    marks = [tokens.tokenizer_fingerprint] if isinstance(tokens, RaggedTokens) else []
    for image in images:
        if not isinstance(image, EncodedImage):
            raise UserError(
                f"{name}: {type(image).__name__}, expected what encode or sample gives, or some of it; rows of a token "
                "dataset are decoded by TokenDataset.decode"
            )
        marks.append(image.tokenizer_fingerprint)
    for mark in marks:
        if mark != fingerprint:
            raise RefusedError(
                f"{name}: of tokenizer {mark[:12]}, expected those of {fingerprint[:12]}; load the models that belong "
                "together"
            )
    return images


def _check_codes(image: EncodedImage, name: str, length: int, vocab: int) -> None:
    """Here, because on a GPU an index out of range ends the process without saying which."""
    codes = getattr(image, name)
    if len(codes) != length or (length and not 0 <= codes.min() <= codes.max() < vocab):
        raise UserError(
            f"image {image.number}: {name} are {len(codes)} from {min(codes, default=0)} to {max(codes, default=0)}, "
            f"expected {length} from 0 to {vocab - 1}"
        )


def _to_labels(
    classes: int | str | Iterable[int | str] | None, generator: generator_checkpoint.LoadedGenerator
) -> tuple[int, ...]:
    if classes is None:
        return ()
    if isinstance(classes, str):
        return chosen_classes(classes, generator)
    config = generator.model.config
    given = list(classes) if isinstance(classes, Iterable) else [classes]
    known = f"0 to {config.num_classes - 1}" if config.condition == "class" else "none, it has no classes"
    is_named = bool(generator.tokens.class_names) and config.condition == "class"
    if not given:
        raise UserError(f"classes: none are given, expected numbers, the generator's are {known}")
    labels = []
    for each in given:
        if is_named and isinstance(each, str):
            labels += chosen_classes(each, generator)
            continue
        try:
            labels.append(operator.index(each))  # type: ignore[arg-type]
        except TypeError:
            raise UserError(
                f"classes: {each!r}, expected numbers, by which alone a generator knows its classes: {known}"
            ) from None
    in_range = [each for each in labels if 0 <= each < config.num_classes]  # of the others the sampler speaks
    if config.condition == "class":
        check_classes(in_range, generator, told=format_numbers(set(labels)))
    return tuple(labels)


def _to_vectors(embeddings: np.ndarray) -> np.ndarray:
    """(n, E) float32."""
    try:
        vectors = np.asarray(embeddings, np.float32)
    except (TypeError, ValueError) as error:
        raise UserError(f"embeddings: {error}; expected numbers of shape (n, E)") from None
    vectors = vectors[None] if vectors.ndim == 1 else vectors
    if vectors.ndim != 2 or not vectors.size:
        raise UserError(f"embeddings: of shape {vectors.shape}, expected (n, E)")
    if not np.isfinite(vectors).all():
        row = int(np.isfinite(vectors).all(axis=1).argmin())
        raise UserError(f"embeddings: row {row} has numbers that are not finite")
    return vectors


def _to_mask(keep: np.ndarray | None, *, num_patches: int) -> np.ndarray:
    """(N,) bool; nothing is kept where there is none."""
    if keep is None:
        return np.zeros(num_patches, np.bool_)
    mask, side = np.asarray(keep), round(num_patches**0.5)
    if mask.shape not in ((num_patches,), (side, side)):
        raise UserError(
            f"keep: has shape {mask.shape}, expected ({num_patches},) or ({side}, {side}), a place for each patch"
        )
    if not np.isin(mask, (0, 1)).all():
        raise UserError(f"keep: {mask.dtype} with other values than 0 and 1, expected bool")
    return mask.astype(np.bool_).ravel()


__all__ = [
    "DTFConfig",
    "DrawConfig",
    "EncodedImage",
    "ImageGenerator",
    "ImageTokenizer",
    "RaggedTokens",
    "SamplingConfig",
    "load_generator",
    "load_tokenizer",
]
