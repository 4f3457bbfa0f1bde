"""What Prometheus sees of a run: Ray exports `ray_tatok_…`, counters with `_total`. Label `entry` says whose run it is;
no label has a value per shard.

Names follow Prometheus: base units (seconds, bytes), shares of one as `_ratio`. A counter is there from its first
event on, and stays when its process is gone; a gauge goes with it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Mapping

from ray.util.metrics import Counter, Gauge

from tatok_pipe.runs.activity import WorkerStatus

_COUNTERS = {
    "num_done": ("tatok_shards", "Shards that are through, failed ones included"),
    "num_failed": ("tatok_failed_shards", "Shards that failed in all their attempts"),
    "num_images": ("tatok_images", "Images that are tokenized, generated or measured"),
    "num_tokens": ("tatok_tokens", "Tokens kept, global tokens included"),
    "num_quarantined": ("tatok_quarantined_samples", "Samples quarantined"),
    "bytes_in": ("tatok_read_bytes", "Bytes of the image shards that are through"),
    "bytes_out": ("tatok_written_bytes", "Bytes of the shards written"),
}
_TRAINING = {
    "tatok_train_step": "Steps that are done",
    "tatok_train_steps": "Steps that are planned",
    "tatok_train_checkpoint_step": "Step of the newest checkpoint; 0: none",
    "tatok_train_eta_seconds": "Seconds that the rest will take at the last pace",
    "tatok_train_tokens_per_second": "Tokens trained on, over all workers",
    "tatok_train_images_per_second": "Images trained on, over all workers",
    "tatok_train_mfu_ratio": "Model-FLOPs utilisation: of what the devices can do at best",
    "tatok_train_fill_ratio": "Share of the packed rows that is no padding",
    "tatok_train_data_wait_ratio": "Share of the time that the training stood still for data",
    "tatok_train_learning_rate": "Learning rate of the last step",
    "tatok_train_grad_norm": "Norm of the last step's gradient, before clipping",
}
_TRAINING_BY = {
    "tatok_train_loss": (
        "Means since the last logged line, or of held-out images; of train_ar in nats",
        ("split", "term"),
    ),
    "tatok_train_psnr_db": ("Mean PSNR of held-out images, by which patches are kept", ("kept",)),
}
# What the log calls them.
_LOGGED = {
    "tokens_per_s": "tatok_train_tokens_per_second",
    "images_per_s": "tatok_train_images_per_second",
    "mfu": "tatok_train_mfu_ratio",
    "fill": "tatok_train_fill_ratio",
    "data_wait_share": "tatok_train_data_wait_ratio",
    "learning_rate": "tatok_train_learning_rate",
    "grad_norm": "tatok_train_grad_norm",
}
_REPEAT_S = 5.0  # Ray exports what was set in the last 10 s


class WorkerMetrics:
    """An actor's gauges. `update` with its status, about once a second."""

    def __init__(self, entry: str) -> None:
        self._queue = Gauge(
            "tatok_queue_depth",
            "Samples waiting for a decoder, batches waiting for the model",
            ("entry", "stage"),
        ).set_default_tags({"entry": entry})
        self._busy = _gauge(
            "tatok_device_busy_ratio", "Share of the last interval that the model was at work", entry
        )
        self._lane_busy_s = 0.0
        self._updated_s = time.monotonic()

    def update(self, status: WorkerStatus) -> None:
        now = time.monotonic()
        share = (status.lane_busy_s - self._lane_busy_s) / max(now - self._updated_s, 1e-9)
        self._busy.set(min(1.0, max(0.0, share)))
        self._queue.set(status.queued_samples, {"stage": "decode"})
        self._queue.set(status.queued_batches, {"stage": "encode"})
        self._lane_busy_s, self._updated_s = status.lane_busy_s, now


class RunMetrics:
    """The driver's: counters of the whole run, which no actor's death takes along, and gauges. `update` with the run's
    counts about once a second, and at the end; what Ray has not exported yet it does when the driver leaves it."""

    def __init__(self, entry: str) -> None:
        self._counters = {
            field: Counter(name, text, ("entry",)).set_default_tags({"entry": entry})
            for field, (name, text) in _COUNTERS.items()
        }
        self._counted = dict.fromkeys(_COUNTERS, 0)
        self._shards_left = _gauge("tatok_shards_left", "Shards that are not through", entry)
        self._actors = _gauge("tatok_actors", "Actors that are ready for shards", entry)
        self._wanted = _gauge("tatok_actors_wanted", "Actors that there should be for the shards left", entry)
        self._eta = _gauge("tatok_eta_seconds", "Seconds that the rest will take at the pace so far", entry)

    def update(
        self,
        counts: Mapping[str, int],
        *,
        shards_left: int,
        actors: int,
        actors_wanted: int,
        eta_s: float,
    ) -> None:
        """`counts` since the run began. One that has gone down, because an attempt is made again, counts on where it
        was. `eta_s` may be infinite, where nothing says so yet: then it is not exported."""
        for field, counter in self._counters.items():
            if (more := counts[field] - self._counted[field]) > 0:
                counter.inc(more)
                self._counted[field] = counts[field]
        self._shards_left.set(shards_left)
        self._actors.set(actors)
        self._wanted.set(actors_wanted)
        if math.isfinite(eta_s):
            self._eta.set(eta_s)


class TrainingMetrics:
    """Gauges of a training; worker 0 has them. A thread sets them anew every few seconds until `close`: Ray drops a
    gauge soon after it was set, and a training may be at one step for minutes."""

    def __init__(self, entry: str) -> None:
        tags = {"entry": entry}
        self._gauges = {name: _gauge(name, text, entry) for name, text in _TRAINING.items()}
        self._gauges |= {
            name: Gauge(name, text, ("entry", *labels)).set_default_tags(tags)
            for name, (text, labels) in _TRAINING_BY.items()
        }
        self._lock = threading.Lock()
        self._values: dict[tuple[str, tuple[tuple[str, str], ...]], float] = {}
        self._is_closed = threading.Event()
        threading.Thread(target=self._repeat, name="metrics", daemon=True).start()

    def begin(self, *, step: int, num_steps: int) -> None:
        """At the start, or where a checkpoint was restored."""
        self._set("tatok_train_step", step)
        self._set("tatok_train_steps", num_steps)
        self._set("tatok_train_checkpoint_step", step)

    def logged(self, step: int, *, figures: Mapping[str, float], eta_s: float) -> None:
        """A logged step: speed, learning rate and the like, under the names that the log has for them."""
        self._set("tatok_train_step", step)
        self._set("tatok_train_eta_seconds", eta_s)
        for key, name in _LOGGED.items():
            if key in figures:
                self._set(name, figures[key])

    def losses(self, terms: Mapping[str, float], *, split: str) -> None:
        """By term; `split` is "train" or "held_out"."""
        for term, value in terms.items():
            self._set("tatok_train_loss", value, split=split, term=term)

    def psnr(self, figures: Mapping[str, float]) -> None:
        """dB, by which patches are kept."""
        for kept, value in figures.items():
            self._set("tatok_train_psnr_db", value, kept=kept)

    def saved(self, step: int) -> None:
        """The checkpoint of this step is where a restart goes on from."""
        self._set("tatok_train_checkpoint_step", step)

    def close(self) -> None:
        self._is_closed.set()

    def _set(self, name: str, value: float, **labels: str) -> None:
        with self._lock:
            self._values[name, tuple(labels.items())] = value
        self._gauges[name].set(value, labels)

    def _repeat(self) -> None:
        while not self._is_closed.wait(_REPEAT_S):
            with self._lock:
                values = dict(self._values)
            for (name, labels), value in values.items():
                self._gauges[name].set(value, dict(labels))


def _gauge(name: str, text: str, entry: str) -> Gauge:
    return Gauge(name, text, ("entry",)).set_default_tags({"entry": entry})
