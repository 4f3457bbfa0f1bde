"""How lines of a log look, in commands and in the processes that they start."""

from __future__ import annotations

import logging
from typing import TextIO


def configure_logging(stream: TextIO) -> None:
    """Our own loggers at INFO on `stream` (an entry's is "__main__"), those of libraries from WARNING on."""
    logging.basicConfig(
        level=logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
        stream=stream,
    )
    for name in ("tatok_pipe", "__main__"):
        logging.getLogger(name).setLevel(logging.INFO)
    # It logs with a traceback what it also raises, and that is told in a line.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
