"""What a training tells: one line a logged step, TensorBoard scalars, and the curve that travels with checkpoints."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboardX.summary import scalar

from tatok_pipe import storage

logger = logging.getLogger(__name__)


class TrainingLog:
    """Process 0's. `curve` holds what does not depend on the machine: a resumed training has the same one."""

    def __init__(self, tensorboard_url: str, *, curve: list[dict[str, Any]], first_step: int) -> None:
        self.curve = curve
        self._url = tensorboard_url
        self._folder = tempfile.TemporaryDirectory(prefix="tatok-tensorboard-")
        # No SummaryWriter: its thread may not have come to the last scalars when they are published, and when it has
        # died of a full disk, the training waits for it for ever.
        self._events = EventsWriter(str(Path(self._folder.name, "events")))
        # Scalars of an earlier attempt from this step on are not shown.
        self._write(Event(step=first_step, session_log=SessionLog(status=SessionLog.START)))

    def train(self, step: int, losses: dict[str, float], speed: dict[str, float]) -> None:
        """A line's worth of training: `losses` are exact, `speed` is this machine's."""
        self.curve.append({"step": step, "split": "train"} | losses)
        self._scalars("train", step, losses)
        self._scalars("speed", step, speed)

    def held_out(self, step: int, losses: dict[str, float]) -> None:
        self.curve.append({"step": step, "split": "held_out"} | losses)
        self._scalars("held_out", step, losses)

    def _scalars(self, group: str, step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self._write(Event(step=step, summary=scalar(f"{group}/{name}", value)))

    def _write(self, event: Event) -> None:
        event.wall_time = time.time()
        with self._only_said():
            self._events.write_event(event)

    def publish(self) -> None:
        """Put the scalars beside the checkpoints. What cannot be written is said and does not end a training."""
        with self._only_said():
            self._events.flush()
            for path in sorted(Path(self._folder.name).iterdir()):
                storage.publish_file(path, storage.join(self._url, path.name), exclusive=False)

    def close(self) -> None:
        self.publish()
        with self._only_said():
            self._events.close()
        self._folder.cleanup()

    @contextmanager
    def _only_said(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            logger.warning("%s: scalars are not written: %s", storage.redact(self._url), error)


def loss_line(losses: dict[str, float]) -> str:
    """`loss 6.812 (global 6.105, position 1.204, patch 5.911)`, nats."""
    parts = [
        f"{name} {losses[f'{name}_nats']:.3f}"
        for name in ("global", "position", "patch")
        if f"{name}_nats" in losses
    ]
    return f"loss {losses.get('loss', float('nan')):.3f} ({', '.join(parts)})"


def speed_line(speed: dict[str, float]) -> str:
    """`34,120 tokens/s, fill 99.7 %, MFU 41 %, data wait 0.3 %`."""
    return (
        f"{speed['tokens_per_s']:,.0f} tokens/s, {speed['images_per_s']:,.1f} images/s, "
        f"fill {100 * speed['fill']:.1f} %, MFU {100 * speed['mfu']:.0f} %, "
        f"data wait {100 * speed['data_wait_share']:.1f} %"
    )
