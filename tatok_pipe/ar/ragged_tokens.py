"""Images as tokens in memory, and in one file.

Letters: B images, K globals, M kept of N patches.
"""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike, fspath
from typing import Any, overload

import numpy as np

from tatok_pipe import storage
from tatok_pipe.ar.requests import ImageTokens
from tatok_pipe.errors import UserError

FORMAT = 1
_ARRAYS = ("global_codes", "patch_codes", "patch_positions", "offsets")
_ADVICE = "expected a file that RaggedTokens.save wrote"


@dataclass(frozen=True, eq=False, repr=False)
class EncodedImage(ImageTokens):
    """One of RaggedTokens; it knows whose codes these are."""

    tokenizer_fingerprint: str

    def __repr__(self) -> str:
        return (
            f"EncodedImage({self.num_tokens} tokens: {len(self.global_codes)} global, {len(self.patch_codes)} patch; "
            f"tokenizer {self.tokenizer_fingerprint[:12]})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class RaggedTokens:
    """B images as tokens, end to end. `tokens[i]` is one image; a slice, a list of numbers or a mask gives RaggedTokens
    of these; `len`, iteration and `==` are as a list's."""

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
            global_codes=joined([image.global_codes for image in images]).reshape(len(images), num_globals),
            patch_codes=joined([image.patch_codes for image in images]),
            patch_positions=joined([image.patch_positions for image in images]),
            offsets=np.cumsum([0, *(len(image.patch_codes) for image in images)]),
            tokenizer_fingerprint=fingerprint,
        )

    def __len__(self) -> int:
        return len(self.global_codes)

    @overload
    def __getitem__(self, index: int) -> EncodedImage: ...
    @overload
    def __getitem__(self, index: slice | Sequence[int] | np.ndarray) -> RaggedTokens: ...
    def __getitem__(self, index: Any) -> EncodedImage | RaggedTokens:
        chosen = np.arange(len(self))[index]
        if chosen.ndim:
            images = [self._image(int(number)) for number in chosen.ravel()]
            return self.from_images(
                images, num_globals=self.global_codes.shape[1], fingerprint=self.tokenizer_fingerprint
            )
        return self._image(int(chosen))

    def _image(self, number: int) -> EncodedImage:
        span = slice(self.offsets[number], self.offsets[number + 1])
        return EncodedImage(
            number,
            self.global_codes[number],
            self.patch_codes[span],
            self.patch_positions[span],
            self.tokenizer_fingerprint,
        )

    def __iter__(self) -> Iterator[EncodedImage]:
        return map(self._image, range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, RaggedTokens):
            return NotImplemented
        return self.tokenizer_fingerprint == other.tokenizer_fingerprint and all(
            np.array_equal(getattr(self, name), getattr(other, name)) for name in _ARRAYS
        )

    def __repr__(self) -> str:
        counts = self.num_tokens
        each = f", {counts.min()} to {counts.max()} each" if len(self) > 1 else ""
        return (
            f"RaggedTokens({len(self)} image{'s' * (len(self) != 1)}, {counts.sum()} tokens{each}; tokenizer "
            f"{self.tokenizer_fingerprint[:12]})"
        )

    @property
    def num_tokens(self) -> np.ndarray:
        """(B,) int64, globals included."""
        return self.global_codes.shape[1] + np.diff(self.offsets)

    def save(self, url: str | PathLike[str]) -> None:
        """Write one file, on any URL, in the place of one that is there. It is a compressed .npz without pickles: the
        four arrays, `format` and `tokenizer_fingerprint`. The same tokens give the same bytes."""
        file = io.BytesIO()
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        np.savez_compressed(
            file, format=np.int64(FORMAT), tokenizer_fingerprint=np.str_(self.tokenizer_fingerprint), **arrays
        )
        storage.publish_bytes(file.getvalue(), fspath(url), exclusive=False)

    @classmethod
    def load(cls, url: str | PathLike[str]) -> RaggedTokens:
        """Read a file that `save` wrote. Raises UserError where there is none, it is damaged or of another format."""
        shown = storage.redact(fspath(url))
        try:
            data = storage.read_bytes(fspath(url))
        except FileNotFoundError:
            raise UserError(f"{shown}: is not there; {_ADVICE}") from None
        except IsADirectoryError:
            raise UserError(f"{shown}: is a folder; {_ADVICE}") from None
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as file:
                found = {name: file[name] for name in ("format", "tokenizer_fingerprint", *_ARRAYS)}
            if found["format"] != FORMAT:
                raise ValueError(f"is of format {found['format']}, this version reads {FORMAT}")
            tokens = cls(
                **{name: found[name] for name in _ARRAYS},
                tokenizer_fingerprint=str(found["tokenizer_fingerprint"]),
            )
            tokens.check()
        # What numpy and zipfile raise of bytes that are not theirs.
        except (
            ValueError, KeyError, TypeError, AttributeError, OSError, EOFError, NotImplementedError,
            zipfile.BadZipFile, zlib.error,
        ) as error:  # fmt: skip
            raise UserError(f"{shown}: cannot be read: {' '.join(str(error).split())}; {_ADVICE}") from None
        return tokens

    def check(self) -> None:
        """Raise ValueError where these are not the tokens of images: arrays that do not fit each other."""
        for name in _ARRAYS:
            array = getattr(self, name)
            num_axes = 2 if name == "global_codes" else 1
            if not np.issubdtype(array.dtype, np.integer) or array.ndim != num_axes:
                raise ValueError(f"{name} is {array.dtype} of shape {array.shape}")
            if array.size and array.min() < 0:
                raise ValueError(f"{name} has {array.min()}, expected 0 or more")
        lengths = np.diff(self.offsets)
        ends = (self.offsets[0], self.offsets[-1]) if len(self.offsets) == len(self) + 1 else None
        if ends != (0, len(self.patch_codes)) or (lengths < 0).any():
            raise ValueError(
                f"offsets do not divide {len(self.patch_codes)} patches among {len(self)} images"
            )
        if len(self.patch_positions) != len(self.patch_codes):
            raise ValueError(f"{len(self.patch_positions)} positions of {len(self.patch_codes)} patches")
        steps = np.diff(self.patch_positions)
        is_within = np.ones(len(steps), np.bool_)
        inner = self.offsets[1:-1]
        is_within[inner[(inner > 0) & (inner < len(self.patch_codes))] - 1] = False
        if (steps[is_within] <= 0).any():
            raise ValueError("patch_positions do not increase within an image")
