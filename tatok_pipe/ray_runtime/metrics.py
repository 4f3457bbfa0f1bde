"""What Prometheus sees of a run: Ray exports `ray_tatok_…`, counters with `_total`. Label `entry` says whose run it is;
no label has a value per shard.

Names follow Prometheus: base units (seconds, bytes), shares of one as `_ratio`. A counter is there from its first
event on; gauges are there from the start.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from tatok_pipe.activity import Totals, WorkerStatus

_COUNTERS = {
    "num_shards": ("tatok_shards", "Shards that are through, failed ones included"),
    "num_failed_shards": ("tatok_failed_shards", "Shards that failed"),
    "num_images": ("tatok_images", "Images that are tokenized, generated or measured"),
    "num_tokens": ("tatok_tokens", "Tokens kept, global tokens included"),
    "num_quarantined": ("tatok_quarantined_samples", "Samples quarantined"),
    "bytes_in": ("tatok_read_bytes", "Bytes of the image shards that are through"),
    "bytes_out": ("tatok_written_bytes", "Bytes of the shards written"),
}
_SPEED = {
    "tokens_per_s": ("tatok_train_tokens_per_second", "Tokens trained on, over all workers"),
    "images_per_s": ("tatok_train_images_per_second", "Images trained on, over all workers"),
    "mfu": ("tatok_train_mfu_ratio", "Model-FLOPs utilisation: of what the devices can do at best"),
    "fill": ("tatok_train_fill_ratio", "Share of the packed rows that is no padding"),
    "data_wait_share": (
        "tatok_train_data_wait_ratio",
        "Share of the time that training stood still for data",
    ),
}
_STEP = {
    "learning_rate": ("tatok_train_learning_rate", "Learning rate of the last step"),
    "grad_norm": ("tatok_train_grad_norm", "Norm of the last step's gradient, before clipping"),
}


class WorkerMetrics:
    """An actor's counters and gauges. `update` with its status, about once a second."""

    def __init__(self, entry: str) -> None:
        self._entry = {"entry": entry}
        self._counters = {
            field: Counter(name, text, ("entry",)).set_default_tags(self._entry)
            for field, (name, text) in _COUNTERS.items()
        }
        self._queue = Gauge(
            "tatok_queue_depth",
            "Samples waiting for a decoder, batches waiting for the model",
            ("entry", "stage"),
        )
        self._busy = _gauge(
            "tatok_device_busy_ratio", "Share of the last interval that the model was at work", entry
        )
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
        self._queue.set(status.queued_samples, self._entry | {"stage": "decode"})
        self._queue.set(status.queued_batches, self._entry | {"stage": "encode"})
        self._totals, self._lane_busy_s, self._updated_s = status.totals, status.lane_busy_s, now


class RunMetrics:
    """The driver's gauges."""

    def __init__(self, entry: str) -> None:
        self._shards_left = _gauge("tatok_shards_left", "Shards that are not through", entry)
        self._actors = _gauge("tatok_actors", "Actors that are ready for shards", entry)
        self._wanted = _gauge("tatok_actors_wanted", "Actors that there should be for the shards left", entry)
        self._eta = _gauge("tatok_eta_seconds", "Seconds that the rest will take at the pace so far", entry)

    def update(self, *, shards_left: int, actors: int, actors_wanted: int, eta_s: float) -> None:
        """`eta_s` may be infinite, where nothing says so yet: then it is not exported."""
        self._shards_left.set(shards_left)
        self._actors.set(actors)
        self._wanted.set(actors_wanted)
        if math.isfinite(eta_s):
            self._eta.set(eta_s)


class TrainingMetrics:
    """Gauges of a training; worker 0 has them."""

    def __init__(self, entry: str) -> None:
        self._step = _gauge("tatok_train_step", "Steps that are done", entry)
        self._num_steps = _gauge("tatok_train_steps", "Steps that are planned", entry)
        self._checkpoint = _gauge(
            "tatok_train_checkpoint_step", "Step of the newest checkpoint; 0: none", entry
        )
        self._eta = _gauge(
            "tatok_train_eta_seconds", "Seconds that the rest will take at the last pace", entry
        )
        self._loss = Gauge(
            "tatok_train_loss",
            "Means since the last logged line, or of held-out images; of train_ar in nats",
            ("entry", "split", "term"),
        ).set_default_tags({"entry": entry})
        self._psnr = Gauge(
            "tatok_train_psnr_db",
            "Mean PSNR of held-out images, by which patches are kept",
            ("entry", "kept"),
        ).set_default_tags({"entry": entry})
        self._figures = {key: _gauge(name, text, entry) for key, (name, text) in (_SPEED | _STEP).items()}

    def begin(self, *, step: int, num_steps: int) -> None:
        """At the start, or where a checkpoint was restored."""
        self._step.set(step)
        self._num_steps.set(num_steps)
        self._checkpoint.set(step)

    def logged(self, step: int, *, figures: Mapping[str, float], eta_s: float) -> None:
        """A logged step: speed, learning rate and the like, under the names that the log has for them."""
        self._step.set(step)
        self._eta.set(eta_s)
        for key, gauge in self._figures.items():
            if key in figures:
                gauge.set(figures[key])

    def losses(self, terms: Mapping[str, float], *, split: str) -> None:
        """By term; `split` is "train" or "held_out"."""
        for term, value in terms.items():
            self._loss.set(value, {"split": split, "term": term})

    def psnr(self, figures: Mapping[str, float]) -> None:
        """dB, by which patches are kept."""
        for kept, value in figures.items():
            self._psnr.set(value, {"kept": kept})

    def saved(self, step: int) -> None:
        """The checkpoint of this step is where a restart goes on from."""
        self._checkpoint.set(step)


def _gauge(name: str, text: str, entry: str) -> Gauge:
    return Gauge(name, text, ("entry",)).set_default_tags({"entry": entry})
