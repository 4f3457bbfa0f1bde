"""The loop of a training, one worker: restore, step by step to the end, what is told and saved on the way.

All workers do the same number of reports, exchanges and checkpoints: whatever decides on one of them is either the
same everywhere (steps, the data) or told by worker 0.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from typing import Any

import ray.train
import ray.train.collective
from ray.train import CheckpointUploadMode, PreemptionInfo

from tatok_pipe.ray_runtime.checkpoints import Checkpoints
from tatok_pipe.ray_runtime.metrics import TrainingMetrics
from tatok_pipe.ray_runtime.training_log import TrainingLog
from tatok_pipe.ray_runtime.training_task import Checkpoint, StoppedError, Training, TrainingRun, Worker
from tatok_pipe.training.curves import open_curves
from tatok_pipe.training.finite import NotFiniteError
from tatok_pipe.training.settings import find_changes, show_changes

logger = logging.getLogger(__name__)

_FIRST_LINE_S = 5.0  # after so long a training says how it goes, however many steps a logged line takes
_FAREWELL_S = 3.0  # before the end of a leaving node's notice, besides what checkpoints take
_STOPPING = "stopping"
_LEAVING = "a node is leaving"


class TrainingLoop:
    def __init__(self, make: Callable[[Any, Worker], Training], run: TrainingRun, worker: Worker) -> None:
        logger.info("worker %d of %d: process %d", worker.rank, worker.num_ranks, os.getpid())
        self._run = run
        self._worker = worker
        self._training = make(run, worker)
        self._metrics = TrainingMetrics(run.entry) if worker.leads else None
        self._checkpoints = Checkpoints(run, worker, self._metrics)
        self._log: TrainingLog | None = None
        self._changes: list[dict[str, Any]] = []  # of settings, and from which step on
        self._leaving: set[str] = set()  # nodes for which a checkpoint was made
        self._is_farewell_due = False  # one more, when their time is nearly over
        self._save_s = 0.0  # the longest that such a checkpoint took

    def run(self) -> None:
        """Train to the end, or to where the driver wants it to stop, and tell it which."""
        run, training = self._run, self._training
        try:
            with self._checkpoints.newest() as checkpoint:
                is_ahead = training.begin(checkpoint)
        except StoppedError:
            return
        if checkpoint is not None:
            self._resume(checkpoint)
        if self._metrics is not None:
            first_step = training.num_steps_done
            curves = open_curves(
                run.output_url, first_step=first_step, config=run.config, wandb_project=run.wandb_project
            )
            self._log = TrainingLog(curves, self._metrics, first_step=first_step, num_steps=run.num_steps)
        made = ""
        if self._train(is_ahead=is_ahead):
            self._save(CheckpointUploadMode.SYNC)
            made = training.finish(self._changes)
        if self._log is not None:
            self._log.close()
            figures = training.figures() | {"workers": self._worker.num_ranks}
            self._worker.driver.tell({"step": training.num_steps_done, "made": made, "figures": figures})

    def _resume(self, checkpoint: Checkpoint) -> None:
        """Tell, and write down what is other than in the checkpoint, from this step on."""
        step, extra, settings = self._training.num_steps_done, checkpoint.extras[0], self._run.settings
        changes = find_changes(extra.get("settings", settings), settings)
        self._changes = extra.get("changes", []) + ([{"step": step, "settings": changes}] if changes else [])
        if self._worker.leads:
            logger.info("resumed at step %d from %s", step, checkpoint.name)
            if changes:
                logger.warning("from step %d on: %s", step, show_changes(changes))

    def _train(self, *, is_ahead: bool) -> bool:
        """Whether all steps are done; False where the driver stopped the training, which is saved then."""
        run, training = self._run, self._training
        begin_s, has_line = time.monotonic(), False
        if is_ahead:
            training.validate(self._log)
            self._save(CheckpointUploadMode.SYNC)
        while training.num_steps_done < run.num_steps:
            if self._must_stop():
                return False
            try:
                training.step()
            except NotFiniteError:
                self._checkpoints.settle()
                raise
            step, is_last = training.num_steps_done, training.num_steps_done == run.num_steps
            if step % run.log_every_steps == 0 or is_last:
                training.log_steps(self._log)
                has_line = True
            elif self._worker.leads and not has_line and time.monotonic() > begin_s + _FIRST_LINE_S:
                # For whoever waits; it stands in no curve, as that must not depend on the machine.
                logger.info("step %d/%d %s", step, run.num_steps, training.losses_line())
                has_line = True
            if run.validate_every_steps is not None and (step % run.validate_every_steps == 0 or is_last):
                training.validate(self._log)
            if step % run.save_every_steps == 0 and not is_last:
                self._save(CheckpointUploadMode.ASYNC if run.saves_async else CheckpointUploadMode.SYNC)
        return True

    def _save(self, mode: CheckpointUploadMode) -> None:
        extra = self._training.extra() | {"settings": self._run.settings, "changes": self._changes}
        self._checkpoints.save(self._training, extra, mode)
        if self._log is not None:
            self._log.publish()

    def _must_stop(self) -> bool:
        """Whether the driver wants an end; saves then, and also when a node of ours is about to leave."""
        leaving = ray.train.get_preemption_info()  # the same for all workers
        # Clocks and the driver's word are not, so worker 0 decides.
        action = self._choose(leaving) if self._worker.leads else None
        action = ray.train.collective.broadcast_from_rank_zero(action)
        if action is None:
            return False
        if self._worker.leads:
            logger.info("%s: checkpoint at step %d", action, self._training.num_steps_done)
        start = time.monotonic()
        self._save(CheckpointUploadMode.SYNC)
        self._save_s = max(self._save_s, time.monotonic() - start)
        return action == _STOPPING

    def _choose(self, leaving: PreemptionInfo | None) -> str | None:
        """Why a checkpoint is due before the next step: at the first news of a node that leaves, and once more when
        its time is nearly over, so that what is done in between is not lost."""
        if self._worker.driver.wants_stop():
            return _STOPPING
        if leaving is None:
            return None
        news = set(leaving.preempted_node_ids) - self._leaving
        if news:
            self._leaving |= news
            self._is_farewell_due = leaving.deadline_ms is not None
            return _LEAVING
        if self._is_farewell_due and leaving.deadline_ms is not None:
            left_s = leaving.deadline_ms / 1000 - time.time()
            if left_s < _FAREWELL_S + 3 * self._save_s:
                self._is_farewell_due = False
                return _LEAVING
        return None
