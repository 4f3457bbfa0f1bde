"""How lines of a log look, in commands and in the processes that they start."""

from __future__ import annotations

import logging
from typing import TextIO


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
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
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
