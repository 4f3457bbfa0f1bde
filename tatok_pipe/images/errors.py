"""Why an image cannot be used."""

from __future__ import annotations


class DecodeError(Exception):
    """An image that cannot be used. The text is one line, the same in every run; `error` is one of the stable names

    EmptyFile, NotAnImage (no known signature), UnsupportedFormat (an image of a format that is not read),
    UnsupportedMode (of a format that is read, but with pixels of a kind that is not), Truncated, Corrupt,
    TooManyPixels, TooManyBytes (what it holds beside pixels), OutOfMemory.
    """

    def __init__(self, error: str, message: str) -> None:
        super().__init__(message)
        self.error = error

    def __reduce__(self) -> tuple[type[DecodeError], tuple[str, str]]:
        return type(self), (self.error, str(self))


def unsupported_mode(what: str) -> DecodeError:
    """The refusal of a whole file whose pixels would come out wrong, or not at all."""
    return DecodeError("UnsupportedMode", f"{what}; convert it to 8 bits a channel, grey or RGB")
