"""Keeping `_index.parquet` fresh while a run goes on, so that after a kill few footers are left to read."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tatok_pipe import storage
from tatok_pipe.tokens.index import refresh_index
from tatok_pipe.tokens.index_file import Index
from tatok_pipe.tokens.spec import TokenSpec

logger = logging.getLogger(__name__)


@contextmanager
def keep_index_fresh(url: str, spec: TokenSpec, *, every_s: float = 600.0) -> Iterator[None]:
    """Refresh the index about every `every_s` seconds while the block runs. What goes wrong is logged: the index
    is a cache, and the next refresh makes up for it."""
    over = threading.Event()

    def refresh() -> None:
        known: Index | None = None
        while not over.wait(every_s):
            try:
                known = refresh_index(url, spec, known=known)
            except Exception as error:
                logger.warning(
                    "%s: the index was not refreshed: %s", storage.redact(url), storage.redact(str(error))
                )

    threading.Thread(target=refresh, name="index", daemon=True).start()
    try:
        yield
    finally:
        over.set()
