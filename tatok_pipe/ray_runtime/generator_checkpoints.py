"""Saving and restoring a generator's training through Ray Train, on any URL.

All workers call `save` and `restore` together. What decides is the same everywhere or told by worker 0.
"""

from __future__ import annotations

import logging
import shutil
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
import torch.distributed as dist
from ray.train import CheckpointUploadMode

from tatok_pipe import storage
from tatok_pipe.ar import training_state
from tatok_pipe.ar.trainer import GeneratorTrainer
from tatok_pipe.ar.training_state import CheckpointName, DamagedCheckpoint
from tatok_pipe.errors import UserError
from tatok_pipe.ray_runtime.metrics import TrainingMetrics
from tatok_pipe.ray_runtime.training import Driver, is_hopeless

logger = logging.getLogger(__name__)

_SETTLE_S = 600.0  # an upload that takes longer is given up with the training
_GOES_ON = "then the same command goes on from the last checkpoint"


class GeneratorCheckpoints:
    """The checkpoints of one attempt of one worker in the folder `url`, which all workers share.

    `attempt` is the same for all workers and another one for every attempt, 8 hex digits.
    """

    def __init__(
        self,
        url: str,
        trainer: GeneratorTrainer,
        metrics: TrainingMetrics | None,
        *,
        attempt: str,
        num_to_keep: int,
        driver: Driver,
    ) -> None:
        context = ray.train.get_context()
        self._url = url
        self._trainer = trainer
        self._metrics = metrics
        self._attempt = attempt
        self._num_to_keep = num_to_keep
        self._driver = driver
        self._rank, self._num_ranks = context.get_world_rank(), context.get_world_size()
        self._local_rank = context.get_local_rank()
        self._upload_error: UserError | None = None
        self._uploads: dict[str, threading.Event] = {}  # that were begun, by name; set where they are over

    def save(self, extra: dict[str, Any], mode: CheckpointUploadMode) -> None:
        """Hand this worker's part of a checkpoint to Ray Train; `extra` (JSON types) is what `restore` returns.

        Raises UserError where there is no space, or no permission: here, or in an upload that was begun before; and, on
        all workers and with nothing written or removed, where the state is not finite.
        """
        name = CheckpointName(self._trainer.num_steps_done, self._attempt)
        if broken := next(filter(None, self._gather(self._trainer.find_broken())), ""):
            self.settle()
            raise UserError(
                f"step {name.step}: {broken} not finite; no checkpoint is written of them, the last is from before: "
                "give a smaller training.schedule.peak, and the same command goes on from there"
            )
        try:
            with ExitStack() as stack:
                folder = Path(tempfile.mkdtemp(prefix="tatok-checkpoint-"))
                stack.callback(shutil.rmtree, folder, ignore_errors=True)
                training_state.save_part(
                    folder, self._trainer, extra, rank=self._rank, num_ranks=self._num_ranks
                )
                stack.pop_all()
        except OSError as error:
            told = f"{tempfile.gettempdir()}: a checkpoint cannot be written there: {error.strerror or error}"
            if is_hopeless(error):
                told += f"; make room, or set TMPDIR to a folder with more, {_GOES_ON}"
                raise UserError(told) from error
            raise OSError(told) from error
        self._uploads = {each: event for each, event in self._uploads.items() if not event.is_set()}
        self._uploads[str(name)] = threading.Event()
        ray.train.report(
            {"step": self._trainer.num_steps_done},
            checkpoint=ray.train.Checkpoint.from_directory(folder),
            checkpoint_dir_name=str(name),
            checkpoint_upload_mode=mode,
            checkpoint_upload_fn=self._upload,
            delete_local_checkpoint_after_upload=False,  # `_upload` does
        )
        if self._upload_error is not None:
            raise self._upload_error
        if self._rank == 0:
            try:
                training_state.prune(self._url, newest=name, num_to_keep=self._num_to_keep)
            except OSError as error:
                logger.warning("old checkpoints are not removed: %s", error)

    def settle(self) -> None:
        """Wait for the uploads of all workers: a training that fails ends at once, and they with it."""
        deadline_s = time.monotonic() + _SETTLE_S
        for event in self._uploads.values():
            event.wait(max(0.0, deadline_s - time.monotonic()))
        self._gather("")

    def restore(self) -> dict[str, Any]:
        """Go on from the newest whole checkpoint; its extra, empty where there is none."""
        names = training_state.list_checkpoints(self._url) if self._rank == 0 else []
        while True:
            text = ray.train.collective.broadcast_from_rank_zero(str(names.pop(0)) if names else None)
            if text is None:
                return {}
            url = storage.join(self._url, text)
            scratch = Path(tempfile.gettempdir(), f"tatok-restore-{self._attempt}-{text}")
            filesystem, path = storage.open_filesystem(url)
            folder = Path(path) if storage.is_local(filesystem) else scratch
            with ExitStack() as stack:
                problem = ""
                if self._local_rank == 0:  # for all workers of its node
                    try:
                        stack.enter_context(training_state.fetched(url, scratch))
                    except DamagedCheckpoint as damage:
                        problem = str(damage)
                problems = self._gather(problem)
                if any(problems):
                    if self._rank == 0:
                        told = next(filter(None, problems))
                        logger.warning("%s: %s; going back to the one before", storage.redact(url), told)
                    continue
                training_state.load(folder, self._trainer)
                extra = training_state.read_extra(folder)
                self._gather("")  # nobody takes the files away while another one reads them
            if self._rank == 0:
                logger.info("resumed at step %d from %s", self._trainer.num_steps_done, text)
            return extra

    def _upload(self, part: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Put this worker's part beside those of the others, and its manifest last, which Ray Train's own upload does
        not. May run in a thread of Ray Train's, where an exception is a traceback and a new attempt."""
        url = storage.join(self._url, name)
        manifest = training_state.manifest_name(self._rank)
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
            self._driver.fail(self._upload_error)
        finally:
            shutil.rmtree(part.path, ignore_errors=True)
            self._uploads[name].set()
        place: Any = ray.train.get_context().get_storage()
        return ray.train.Checkpoint(place.build_checkpoint_path_from_name(name), place.storage_filesystem)

    def _gather(self, text: str) -> list[str]:
        """What every worker says; all of them come here."""
        if self._num_ranks == 1:
            return [text]
        answers: list[Any] = [None] * self._num_ranks
        dist.all_gather_object(answers, text)
        return answers
