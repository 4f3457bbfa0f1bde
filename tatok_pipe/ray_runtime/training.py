"""A training from its driver's side: Ray Train workers are started, watched and asked to stop. What each of them runs
is the `TrainingLoop`."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any

import pyarrow.fs
import ray
import ray.exceptions
import ray.train
import torch
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from tatok_pipe import storage
from tatok_pipe.errors import EXIT_DONE, EXIT_FAILED_SHARDS, EXIT_INTERRUPTED, UserError
from tatok_pipe.ray_runtime.checkpoints import STORAGE_MARKER, is_hopeless
from tatok_pipe.ray_runtime.cluster import check_ray, has_gpu
from tatok_pipe.ray_runtime.options import ElasticWorkersConfig
from tatok_pipe.ray_runtime.training_loop import TrainingLoop
from tatok_pipe.ray_runtime.training_task import Driver, Training, TrainingRun, Worker
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.log_format import configure_logging
from tatok_pipe.runs.progress import format_duration
from tatok_pipe.runs.stop_signal import StopSignal

logger = logging.getLogger(__name__)

# Ray Train's own are for large clusters: a lost node is waited for a minute, a drain is seen within 5 seconds, a
# report within 2.
_RAY_TRAIN_DEFAULTS = {
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}
_RESIZE_EVERY_S = 30.0
_SIGNAL_FIRST_S = 2.0  # in which a signal to every process of the job reaches the driver after the first one
_SNAPSHOT = "checkpoint_manager_snapshot.json"  # Ray Train's memory of a run's checkpoints


class TrainingLostError(UserError):
    """What holds a training together died; the same command goes on from the newest checkpoint."""

    exit_code = EXIT_FAILED_SHARDS


def plan_workers(config: ElasticWorkersConfig) -> tuple[int, int]:
    """(fewest, most) workers: on the cluster that was joined, or, where Ray is still to be started, on the GPUs that
    it will find on this machine."""
    if config.max:
        return config.min, config.max
    num_gpus = ray.cluster_resources().get("GPU", 0) if ray.is_initialized() else torch.cuda.device_count()
    return config.min, max(config.min, int(num_gpus))


def run_training(
    make: Callable[[Any, Worker], Training],
    run: TrainingRun,
    *,
    num_workers: tuple[int, int],
    cpus: float | None,
    max_failures: int = 3,
    stop: StopSignal,
    summary: JobSummary,
) -> int:
    """Train what `make` makes of the run on every worker, from the newest checkpoint in `<output_url>/checkpoints` on,
    and tell how it ended: the exit code.

    `num_workers` is (fewest, most): where they differ, the group shrinks with nodes that are lost and grows with nodes
    that come. What fails is tried again up to `max_failures` times, but a UserError, and a storage without space or
    permission, are raised here at once. `stop` is entered.
    """
    start = time.monotonic()
    use_gpu = has_gpu()
    fewest, most = num_workers
    cpus = cpus or max(1, int(ray.cluster_resources().get("CPU", 1)) // most)
    path, filesystem = _training_storage(run.output_url)
    for name, value in _RAY_TRAIN_DEFAULTS.items():
        os.environ.setdefault(name, value)
    _check_writable(run.output_url)
    # Ray Train would refuse to start where one that it remembers is gone; finding and removing them is the loop's.
    storage.remove(storage.join(run.output_url, "checkpoints", _SNAPSHOT))
    # Here, on a node that stays as long as the driver does.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board: Any = ray.remote(num_cpus=0)(_Board).options(scheduling_strategy=here).remote()
    trainer = TorchTrainer(
        _work,
        train_loop_config={"make": make, "run": run, "driver": Driver(board)},
        scaling_config=ray.train.ScalingConfig(
            num_workers=num_workers if fewest < most else most,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus} | ({"GPU": 1} if use_gpu else {}),
            elastic_resize_monitor_interval_s=_RESIZE_EVERY_S,
        ),
        run_config=ray.train.RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=filesystem,
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            # Its warnings are of what passes or changes nothing, some with a traceback; its log files have them.
            logging_config=ray.train.LoggingConfig(log_level="ERROR"),
        ),
    )
    _fit_beside(trainer, stop, board)
    failed: UserError | None = ray.get(board.error.remote())
    if failed is not None:
        raise failed
    told: dict[str, Any] = ray.get(board.told.remote())
    summary.add({"step": told["step"]} | told["figures"])
    entry = logging.getLogger(f"tatok_pipe.{run.entry}")
    if not told["made"]:
        entry.warning("interrupted at step %d of %d; the same command goes on", told["step"], run.num_steps)
        return EXIT_INTERRUPTED
    entry.info("done in %s: %s", format_duration(time.monotonic() - start), told["made"])
    return EXIT_DONE


def _work(loop: dict[str, Any]) -> None:
    """What every worker runs: the loop, and word to the driver where it is no use to begin it again."""
    configure_logging(sys.stdout)
    driver: Driver = loop["driver"]
    try:
        TrainingLoop(loop["make"], loop["run"], Worker.set_up(driver)).run()
    except UserError as error:
        driver.fail(error)
    except OSError as error:
        if not is_hopeless(error):
            raise
        driver.fail(UserError(f"{storage.redact(str(error))}; mend that and run the same command again"))


def _check_writable(output_url: str) -> None:
    """Raise UserError where Ray Train could not begin in the output, which would be a traceback of its own."""
    try:
        storage.publish_bytes(b"", storage.join(output_url, "checkpoints", STORAGE_MARKER), exclusive=False)
    except OSError as error:
        told = error.strerror or storage.redact(str(error))
        raise UserError(f"output.url={storage.redact(output_url)}: cannot be written: {told}") from None


def _fit_beside(trainer: TorchTrainer, stop: StopSignal, board: Any) -> None:
    """`fit` in a thread of its own, where it leaves the handling of signals to us. Returns before it is done where a
    worker has failed for good: Ray Train would begin again, and what still runs ends with the driver."""
    fitting: Future[None] = Future()

    def fit() -> None:
        try:
            trainer.fit()
            fitting.set_result(None)
        except BaseException as error:
            fitting.set_exception(error)

    # A daemon: where a second signal ends the program, nobody waits for it.
    threading.Thread(target=fit, name="fit", daemon=True).start()
    is_told = False
    try:
        while not wait([fitting], timeout=0.5).done:
            check_ray()
            if ray.get(board.error.remote()):
                return
            if stop.is_requested and not is_told:
                logger.warning("stopping: a checkpoint is written first; a second signal ends at once")
                board.request_stop.remote()
                is_told = True
        fitting.result()
    except (ray.exceptions.RayError, ray.train.TrainingFailedError) as error:
        # A signal to every process of the job takes Ray's down before ours asks the workers for a checkpoint.
        _wait_for(stop, seconds=_SIGNAL_FIRST_S)
        if stop.is_requested:
            raise KeyboardInterrupt from error
        if isinstance(error, ray.exceptions.ActorDiedError):
            told = str(error).strip().partition("\n")[0][:300]
            raise TrainingLostError(f"a process of the training's own died: {told}") from error
        raise


def _wait_for(stop: StopSignal, *, seconds: float) -> None:
    until = time.monotonic() + seconds
    while not stop.is_requested and time.monotonic() < until:
        time.sleep(0.1)


class _Board:
    """An actor between the driver and the workers, which come and go."""

    def __init__(self) -> None:
        self._is_stop_requested = False
        self._told: dict[str, Any] = {"step": 0, "made": "", "figures": {}}
        self._error: UserError | None = None

    def request_stop(self) -> None:
        self._is_stop_requested = True

    def is_stop_requested(self) -> bool:
        return self._is_stop_requested

    def tell(self, message: dict[str, Any]) -> None:
        self._told = message

    def told(self) -> dict[str, Any]:
        return self._told

    def fail(self, error: UserError) -> None:
        self._error = self._error or error

    def error(self) -> UserError | None:
        return self._error


def _training_storage(url: str) -> tuple[str, pyarrow.fs.FileSystem | None]:
    """Ray Train's storage path and filesystem for a URL; a custom S3 endpoint comes from the environment."""
    filesystem, path = storage.open_filesystem(storage.canonical_url(url))
    if storage.is_local(filesystem):
        return path, None
    if url.startswith("s3://"):
        endpoint = storage.endpoint_of(url) or ""
        scheme, _, host = endpoint.rpartition("://")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return path, pyarrow.fs.S3FileSystem(
            region=region, endpoint_override=host or None, scheme=scheme or "https"
        )
    return url, None
