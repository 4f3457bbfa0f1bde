"""Everything that starts Ray, actors and workers. With the entries, the only code that imports ray."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow.fs
import ray
import ray.data
import ray.train
import ray.util.annotations
from ray.data import ActorPoolStrategy, DataContext
from ray.train.torch import TorchTrainer

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.options import option
from tatok_pipe.shard_tokenizer import Progress, ShardJob, ShardResult, ShardTokenizer

logger = logging.getLogger(__name__)

# What workers on a cluster that somebody else started need to know of the command's environment: where the object
# store is. Not who we are there: Ray shows a job's environment to whoever sees its dashboard, so credentials are
# the nodes' own (or the submitter's explicit choice, with --runtime-env). Embedded workers inherit everything.
_FORWARDED = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION")


@dataclass(frozen=True)
class WorkersConfig:
    count: int = option(1, help="training workers", unit="processes")
    cpus: float | None = option(
        None, help="CPUs of each worker; null: an equal share of all", unit="CPUs per worker"
    )

    def __post_init__(self) -> None:
        if self.count < 1 or (self.cpus is not None and self.cpus <= 0):
            raise ValueError(
                f"count={self.count}, cpus={self.cpus}: expected at least 1 worker, and more than 0 CPUs"
            )


@dataclass(frozen=True)
class ActorsConfig:
    min: int = option(1, help="actors that are always kept", unit="processes")
    max: int | None = option(
        None, help="most actors; null: as many as the cluster has room for", unit="processes"
    )
    cpus: float | None = option(
        None,
        help="CPUs of an actor, its threads; null: a share of its node, at most 4 without GPU",
        unit="CPUs per actor",
    )
    gpus: float | None = option(
        None,
        help="GPUs of an actor, fractions allowed; null: 1 where Ray sees a GPU, else 0",
        unit="GPUs per actor",
    )

    def __post_init__(self) -> None:
        if self.min < 1:
            raise ValueError(f"min={self.min}: expected at least 1")
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max={self.max}: expected at least min={self.min}")
        if self.cpus is not None and self.cpus <= 0:
            raise ValueError(f"cpus={self.cpus}: expected more than 0")
        if self.gpus is not None and self.gpus < 0:
            raise ValueError(f"gpus={self.gpus}: expected 0 or more")


@dataclass(frozen=True)
class ActorPlan:
    """Actors of a run: how many, and what each of them gets."""

    min: int
    max: int
    cpus: float
    gpus: float

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def start_ray(*, for_training: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS or a submitted job names; otherwise start Ray embedded in this process.

    Raises UserError where the named cluster does not answer.
    """
    if ray.is_initialized():
        return
    environment = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    address = os.environ.get("RAY_ADDRESS")
    embedded: dict[str, Any] = {}
    if not address:
        embedded = {"include_dashboard": for_training}
        if for_training:
            # Ray Train's guard asks the dashboard whether the controller lives, and looks for the dashboard of
            # any Ray on this machine: with two of them it may ask the wrong one, hear "dead" and end the
            # training. So it is told which one.
            port = _free_port()
            embedded |= {"dashboard_host": "127.0.0.1", "dashboard_port": port}
            environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    _quieten()
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.WARNING,
            runtime_env={"env_vars": environment} if environment else None,
            **embedded,
        )
    except ConnectionError as error:
        raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there: {error}") from None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _quieten() -> None:
    """Leave Ray's warnings that a user can act on, and drop those that every run would print."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a notice about CUDA_VISIBLE_DEVICES
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # plans and timings; our own lines say it
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # token files were set up


def has_gpu() -> bool:
    return ray.cluster_resources().get("GPU", 0) > 0


def plan_actors(config: ActorsConfig, *, num_shards: int) -> ActorPlan:
    """How many actors of which size, from what the cluster's nodes have now. Raises UserError where none fits."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = config.gpus if config.gpus is not None else (1.0 if has_gpu() else 0.0)
    rooms = [node for node in nodes if node.get("CPU", 0) > 0 and node.get("GPU", 0) >= gpus]
    if not rooms:
        raise UserError(f"actors.gpus={gpus:g}: no node of the cluster has CPUs and as many GPUs")
    if config.cpus is not None:
        cpus = config.cpus
    elif gpus:
        # Threads decode for the GPU: all cores of a node, shared out over its GPUs.
        cpus = max(1.0, min(node["CPU"] // (node["GPU"] / gpus) for node in rooms))
    else:
        wanted = config.max or 1
        total = sum(node["CPU"] for node in rooms)
        cpus = max(1.0, min(4.0, total // wanted, *(node["CPU"] for node in rooms)))
    room = sum(int(min(node["CPU"] / cpus, node["GPU"] / gpus if gpus else float("inf"))) for node in rooms)
    if not room:
        largest = max(node["CPU"] for node in rooms)
        raise UserError(
            f"actors.cpus={cpus:g}: no node of the cluster has as many, the largest has {largest:g}"
        )
    most = min(config.max or room, num_shards)
    return ActorPlan(min=min(config.min, most), max=most, cpus=cpus, gpus=gpus)


class ProgressBoard:
    """Where actors write how far they are; the driver reads it. A Ray actor of its own, without CPUs."""

    def __init__(self) -> None:
        self._totals = np.zeros(3, np.int64)  # images, tokens, quarantined
        self._shares: dict[str, float] = {}

    def add(self, shard: str, progress: Progress) -> None:
        self._totals += (progress.num_images, progress.num_tokens, progress.num_quarantined)
        self._shares[shard] = progress.share

    def done(self, shard: str) -> None:
        self._shares.pop(shard, None)

    def read(self) -> Progress:
        """The run's totals; `share` is in shards, the sum over those under way."""
        return Progress(*(int(total) for total in self._totals), share=sum(self._shares.values()))


class TokenizerActor:
    """A ShardTokenizer as a Ray Data UDF: rows of shard URLs in, rows of results out."""

    _REPORT_EVERY_S = 1.0

    def __init__(self, job: ShardJob, plan: ActorPlan, board: Any) -> None:
        self._board = board
        self._tokenize: ShardTokenizer | None = None
        self._broken = ""
        try:
            self._tokenize = ShardTokenizer(job, device=plan.device, num_threads=max(1, int(plan.cpus)))
        except Exception as error:  # raised here, it would have Ray start the actor again and again
            self._broken = f"the actor cannot start: {' '.join(str(error).split())}"

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, list[Any]]:
        url = str(batch["url"][0])
        if self._tokenize is None:
            return _to_row(ShardResult(url, error=self._broken))
        waiting = np.zeros(3, np.int64)
        last_sent = time.monotonic()

        def report(progress: Progress) -> None:
            nonlocal last_sent
            waiting[:] += (progress.num_images, progress.num_tokens, progress.num_quarantined)
            if time.monotonic() - last_sent >= self._REPORT_EVERY_S or progress.share >= 1:
                self._board.add.remote(
                    url, Progress(*(int(count) for count in waiting), share=progress.share)
                )
                waiting[:] = 0
                last_sent = time.monotonic()

        result = self._tokenize(url, report)
        self._board.add.remote(url, Progress(*(int(count) for count in waiting), share=0.0))
        self._board.done.remote(url)
        return _to_row(result)


def _to_row(result: ShardResult) -> dict[str, list[Any]]:
    return {name: [value] for name, value in asdict(result).items()}


def tokenize_shards(
    urls: list[str],
    job: ShardJob,
    plan: ActorPlan,
    *,
    on_progress: Callable[[Progress, int], None],
    every_s: float,
) -> Iterator[ShardResult]:
    """Results of all shards, as they come. Ray Data schedules; an actor does a whole shard and commits it.

    `on_progress(totals, shards done)` is called about every `every_s` seconds from another thread. A shard that
    kills its actor process is tried three times in all; it then comes back with an error, like one that failed.
    """
    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.max_errored_blocks = -1  # a lost shard is ours to report, the others go on
    board = ray.remote(num_cpus=0)(ProgressBoard).remote()
    # One block a shard, and no second shard queued at a busy actor: a straggler holds up nothing but itself.
    with warnings.catch_warnings():
        # Restarts are still passed on to the actor's remote arguments: Ray Data names no other way yet.
        warnings.simplefilter("ignore", ray.util.annotations.RayDeprecationWarning)
        results = ray.data.from_items(
            [{"url": url} for url in urls], override_num_blocks=len(urls)
        ).map_batches(
            TokenizerActor,
            batch_size=1,
            compute=ActorPoolStrategy(
                min_size=plan.min, max_size=plan.max, initial_size=plan.max, max_tasks_in_flight_per_actor=1
            ),
            fn_constructor_kwargs={"job": job, "plan": plan, "board": board},
            num_cpus=plan.cpus,
            num_gpus=plan.gpus,
            max_restarts=-1,
            max_task_retries=2,
        )
    num_done = 0
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(every_s):
            on_progress(ray.get(board.read.remote()), num_done)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    missing = dict.fromkeys(urls)
    try:
        for row in results.iter_rows():
            num_done += 1
            missing.pop(row["url"], None)
            yield ShardResult(**row)
    finally:
        stop.set()
        watcher.join(timeout=5)
    for url in missing:
        yield ShardResult(url, error="its actor process died in every attempt (killed, or out of memory)")


def run_training(
    train_loop: Callable[[dict[str, Any]], None],
    loop_config: dict[str, Any],
    *,
    workers: WorkersConfig,
    output_url: str,
) -> dict[str, Any]:
    """Run `train_loop(loop_config)` in Ray Train workers and return the metrics that were reported last.

    Checkpoints that the loop reports go to `<output_url>/checkpoints`; a job started again with the same output
    finds the newest one through `ray.train.get_checkpoint()`. A UserError that a worker raises is raised here.
    """
    use_gpu = has_gpu()
    cpus = workers.cpus or max(1, int(ray.cluster_resources().get("CPU", 1)) // workers.count)
    path, filesystem = _training_storage(output_url)
    trainer = TorchTrainer(
        train_loop,
        train_loop_config=loop_config,
        scaling_config=ray.train.ScalingConfig(
            num_workers=workers.count,
            use_gpu=use_gpu,
            resources_per_worker={"CPU": cpus} | ({"GPU": 1} if use_gpu else {}),
        ),
        run_config=ray.train.RunConfig(
            name="checkpoints",
            storage_path=path,
            storage_filesystem=filesystem,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
            failure_config=ray.train.FailureConfig(max_failures=3),
        ),
    )
    try:
        return dict(trainer.fit().metrics or {})
    except ray.train.WorkerGroupError as error:
        for failure in error.worker_failures.values():
            cause = getattr(failure, "_base_exc", failure)  # Ray Train wraps what a worker's loop raised
            if isinstance(cause, UserError):
                raise cause from None
        raise


def _training_storage(url: str) -> tuple[str, pyarrow.fs.FileSystem | None]:
    """Ray Train's storage path and filesystem for a URL; a custom S3 endpoint comes from the environment."""
    filesystem, path = storage.open_filesystem(storage.canonical_url(url))
    if storage.is_local(filesystem):
        return path, None
    if url.startswith("s3://"):
        endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        scheme, _, host = endpoint.rpartition("://")
        region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        return path, pyarrow.fs.S3FileSystem(
            region=region, endpoint_override=host or None, scheme=scheme or "https"
        )
    return url, None
