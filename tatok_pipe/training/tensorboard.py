"""Scalars and pictures of a training on any URL, in the format that TensorBoard reads."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboardX.summary import image, scalar

from tatok_pipe import storage

logger = logging.getLogger(__name__)


class TensorBoard:
    """One event file below `url`; what an earlier attempt told from `first_step` on is not shown.

    What cannot be written is said and does not end a training.
    """

    def __init__(self, url: str, *, first_step: int) -> None:
        self._url = url
        self._folder = tempfile.TemporaryDirectory(prefix="tatok-tensorboard-")
        # No SummaryWriter: its thread may not have come to the last scalars when they are published, and when it has
        # died of a full disk, the training waits for it for ever.
        self._events = EventsWriter(str(Path(self._folder.name, "events")))
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def scalars(self, group: str, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._write(Event(step=step, summary=scalar(f"{group}/{name}", value)))

    def picture(self, name: str, step: int, pixels: np.ndarray) -> None:
        """Pixels (H, W, 3) uint8."""
        self._write(Event(step=step, summary=image(name, pixels, dataformats="HWC")))

    def publish(self) -> None:
        """Put what was told beside the checkpoints."""
        with self._only_said():
            self._events.flush()
            for path in sorted(Path(self._folder.name).iterdir()):
                storage.publish_file(path, storage.join(self._url, path.name), exclusive=False)

    def close(self) -> None:
        self.publish()
        with self._only_said():
            self._events.close()
        self._folder.cleanup()

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with self._only_said():
            self._events.write_event(event)

    @contextmanager
    def _only_said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning("%s: TensorBoard's file is not written: %s", storage.redact(self._url), error)
