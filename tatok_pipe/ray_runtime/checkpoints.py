"""Saving and finding the checkpoints of a training through Ray Train, on any URL.

All workers call `save` and `newest` together. What decides is the same everywhere or told by worker 0.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
import ray.util
from ray.train import CheckpointUploadMode

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.ray_runtime.metrics import TrainingMetrics
from tatok_pipe.ray_runtime.training_task import Checkpoint, Training, TrainingRun, Worker
from tatok_pipe.training import checkpoint_folder
from tatok_pipe.training.checkpoint_folder import CheckpointName, DamagedCheckpoint

logger = logging.getLogger(__name__)

# What Ray Train puts beside checkpoints before anything starts; a worker that does not see it has another disk.
STORAGE_MARKER = ".validate_storage_marker"
_HOPELESS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
_SETTLE_S = 600.0  # an upload that takes longer is given up with the training
_GOES_ON = "then the same command goes on from the last checkpoint"


def is_hopeless(error: OSError) -> bool:
    """Whether it is no use to try again: no space, or no permission."""
    return isinstance(error, PermissionError) or error.errno in _HOPELESS


class Checkpoints:
    """The checkpoints of one attempt of one worker, in a folder that all workers share."""

    def __init__(self, run: TrainingRun, worker: Worker, metrics: TrainingMetrics | None) -> None:
        """Raises UserError where the worker does not see what the driver does."""
        self._run = run
        self._url = storage.join(run.output_url, "checkpoints")
        if not storage.exists(storage.join(self._url, STORAGE_MARKER)):
            raise UserError(
                f"output.url={storage.redact(run.output_url)}: node {ray.util.get_node_ip_address()} sees another "
                "folder there than the driver; give one that all nodes share, or an object store"
            )
        self._worker = worker
        self._metrics = metrics
        # The same for all workers and another one for every attempt.
        self._attempt = ray.train.collective.broadcast_from_rank_zero(os.urandom(4).hex())
        self._passed_over: set[CheckpointName] = set()  # damaged or not finished; of the leader
        self._saved_step = -1
        self._upload_error: UserError | None = None
        self._uploads: dict[str, threading.Event] = {}  # that were begun, by name; set where they are over

    @contextmanager
    def newest(self) -> Iterator[Checkpoint | None]:
        """The newest whole one, on this node meanwhile; None where there is none."""
        names = checkpoint_folder.list_checkpoints(self._url) if self._worker.leads else []
        while text := ray.train.collective.broadcast_from_rank_zero(str(names.pop(0)) if names else ""):
            url = storage.join(self._url, text)
            scratch = Path(tempfile.gettempdir(), f"tatok-restore-{self._attempt}-{text}")
            filesystem, path = storage.open_filesystem(url)
            folder = Path(path) if storage.is_local(filesystem) else scratch
            with ExitStack() as stack:
                problem = ""
                if ray.train.get_context().get_local_rank() == 0:  # for all workers of its node
                    try:
                        stack.enter_context(checkpoint_folder.fetched(url, scratch))
                    except DamagedCheckpoint as damage:
                        problem = str(damage)
                if told := next(filter(None, self._worker.gather(problem)), ""):
                    if self._worker.leads:
                        logger.warning("%s: %s; going back to the one before", storage.redact(url), told)
                        self._passed_over |= {name for name in [CheckpointName.parse(text)] if name}
                    continue
                manifests = checkpoint_folder.read_manifests(folder)
                counters = manifests[0]["trainer"]
                self._saved_step = counters["num_steps_done"]
                yield Checkpoint(text, folder, counters, [each["extra"] for each in manifests])
                self._worker.gather("")  # nobody takes the files away while another one reads them
            return
        yield None

    def save(self, training: Training, extra: dict[str, Any], mode: CheckpointUploadMode) -> None:
        """Hand this worker's part of a checkpoint to Ray Train; `extra` (JSON types) comes back with it. Where there is
        one of this very step, only see to it that it is written.

        Raises UserError where there is no space, or no permission: here, or in an upload that was begun before; and, on
        all workers and with nothing written or removed, where the state is not finite.
        """
        name = CheckpointName(training.num_steps_done, self._attempt)
        if self._saved_step == name.step:
            self.settle()
            return
        if broken := next(filter(None, self._worker.gather(training.find_broken())), ""):
            self.settle()
            raise UserError(
                f"step {name.step}: {broken} not finite; no checkpoint is written of them, the last is from before: "
                f"give a smaller {self._run.peak_option}, and the same command goes on from there"
            )
        folder = self._write_part(training, extra)
        self._saved_step = name.step
        self._uploads = {each: event for each, event in self._uploads.items() if not event.is_set()}
        self._uploads[str(name)] = threading.Event()
        ray.train.report(
            {"step": name.step},
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=str(name),
            checkpoint_upload_mode=mode,
            checkpoint_upload_fn=self._upload,
            delete_local_checkpoint_after_upload=False,  # `_upload` does
        )
        if self._upload_error is not None:
            raise self._upload_error
        if self._worker.leads:
            try:
                checkpoint_folder.prune(
                    self._url,
                    newest=name,
                    num_to_keep=self._run.num_checkpoints,
                    passed_over=self._passed_over,
                )
            except OSError as error:
                logger.warning("old checkpoints are not removed: %s", error)

    def settle(self) -> None:
        """Wait for the uploads of all workers: a training that fails ends at once, and they with it."""
        if not self._run.saves_async:
            return
        deadline_s = time.monotonic() + _SETTLE_S
        for event in self._uploads.values():
            event.wait(max(0.0, deadline_s - time.monotonic()))
        self._worker.gather("")

    def _write_part(self, training: Training, extra: dict[str, Any]) -> Path:
        """A new local folder with it."""
        try:
            with ExitStack() as stack:
                folder = Path(tempfile.mkdtemp(prefix="tatok-checkpoint-"))
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                counters = training.save(folder)
                checkpoint_folder.write_manifest(
                    folder, counters, extra, rank=self._worker.rank, num_ranks=self._worker.num_ranks
                )
                stack.pop_all()
        except OSError as error:
            told = f"{tempfile.gettempdir()}: a checkpoint cannot be written there: {error.strerror or error}"
            if is_hopeless(error):
                told += f"; make room, or set TMPDIR to a folder with more, {_GOES_ON}"
                raise UserError(told) from error
            raise OSError(told) from error
        return folder

    def _upload(self, part: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Put this worker's part beside those of the others, and its manifest last, which Ray Train's own upload does
        not. May run in a thread of Ray Train's, where an exception is a traceback and a new attempt."""
        url = storage.join(self._url, name)
        manifest = checkpoint_folder.manifest_name(self._worker.rank)
        try:
            for path in sorted(
                Path(part.path).iterdir(), key=lambda path: (path.name == manifest, path.name)
            ):
                storage.publish_file(path, storage.join(url, path.name), exclusive=False)
            if self._metrics is not None and (saved := CheckpointName.parse(name)):
                self._metrics.saved(saved.step)
        except OSError as error:
            if not is_hopeless(error):
                raise
            told = f"{storage.redact(url)}: the checkpoint cannot be written: {error.strerror or error}"
            self._upload_error = UserError(f"{told}; make room or give the right to write there, {_GOES_ON}")
            self._worker.driver.fail(self._upload_error)
        finally:
            shutil.rmtree(part.path, ignore_errors=True)
            self._uploads[name].set()
        place: Any = ray.train.get_context().get_storage()
        return ray.train.Checkpoint(place.build_checkpoint_path_from_name(name), place.storage_filesystem)
