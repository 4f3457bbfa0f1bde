"""What Prometheus sees of a run: Ray exports `ray_tatok_…`, counters with `_total`. No label has a value per shard."""

from __future__ import annotations

import time

from ray.util.metrics import Counter, Gauge

from tatok_pipe.activity import Totals, WorkerStatus

_COUNTERS = {
    "num_shards": ("tatok_shards", "Shards that are through, failed ones included"),
    "num_failed_shards": ("tatok_failed_shards", "Shards that failed"),
    "num_images": ("tatok_images", "Images that are tokenized, or generated"),
    "num_tokens": ("tatok_tokens", "Tokens kept, global tokens included"),
    "num_quarantined": ("tatok_quarantined", "Samples quarantined"),
    "bytes_in": ("tatok_read_bytes", "Bytes of the image shards that are through"),
    "bytes_out": ("tatok_written_bytes", "Bytes of the token shards written"),
}


class WorkerMetrics:
    """An actor's counters and gauges. `update` with its status, about once a second."""

    def __init__(self) -> None:
        self._counters = {field: Counter(name, text) for field, (name, text) in _COUNTERS.items()}
        self._queue = Gauge(
            "tatok_queue_depth", "Samples waiting for a decoder, batches waiting for the model", ("stage",)
        )
        self._busy = Gauge("tatok_device_busy_share", "Share of the last interval that the model was at work")
        self._totals = Totals()
        self._lane_busy_s = 0.0
        self._updated_s = time.monotonic()

    def update(self, status: WorkerStatus) -> None:
        for field, counter in self._counters.items():
            more = getattr(status.totals, field) - getattr(self._totals, field)
            if more:
                counter.inc(more)
        now = time.monotonic()
        share = (status.lane_busy_s - self._lane_busy_s) / max(now - self._updated_s, 1e-9)
        self._busy.set(min(1.0, max(0.0, share)))
        self._queue.set(status.queued_samples, {"stage": "decode"})
        self._queue.set(status.queued_batches, {"stage": "encode"})
        self._totals, self._lane_busy_s, self._updated_s = status.totals, status.lane_busy_s, now


class RunMetrics:
    """The driver's gauges."""

    def __init__(self) -> None:
        self._shards_left = Gauge("tatok_shards_left", "Image shards that are not through")
        self._actors = Gauge("tatok_actors", "Actors that are ready for shards")

    def update(self, *, shards_left: int, actors: int) -> None:
        self._shards_left.set(shards_left)
        self._actors.set(actors)
