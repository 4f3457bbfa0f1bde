"""How lines of a log look, in commands and in the processes that they start."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from tatok_pipe.errors import UserError

_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class _Witness(logging.Filter):
    """Lets every record through, and remembers that there was one."""

    has_seen = False

    def filter(self, record: logging.LogRecord) -> bool:
        self.has_seen = True
        return True


_witness = _Witness()


def configure_logging(stream: TextIO) -> None:
    """Our own loggers at INFO on `stream`, those of libraries from WARNING on."""
    logging.basicConfig(
        level=logging.WARNING,
        format=_FORMAT,
        datefmt="%H:%M:%S",
        stream=stream,
    )
    for handler in logging.getLogger().handlers:
        handler.addFilter(_witness)
    logging.getLogger("tatok_pipe").setLevel(logging.INFO)
    # It logs with a traceback what it also raises, and that is told in a line.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)


def was_logged() -> bool:
    """Whether a line went to the log of this process."""
    return _witness.has_seen


@contextmanager
def log_to_file(path: str | None, *, option: str) -> Iterator[None]:
    """In the block the lines of the log go to the end of the local file `path`, too, each with its date; None: nowhere.

    `option` is what the user calls it. Raises UserError where the file cannot be written.
    """
    if path is None:
        yield
        return
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{option}={path}: cannot be written ({error.strerror}); give a path on this machine, in a folder that is "
            "there"
        ) from None
    handler.setFormatter(logging.Formatter(_FORMAT))
    logging.getLogger().addHandler(handler)
    try:
        yield
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
