"""Ray Train workers for a training loop, with checkpoints on any URL."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyarrow.fs
import ray
import ray.train
from ray.train.torch import TorchTrainer

from tatok_pipe import storage
from tatok_pipe.errors import UserError
from tatok_pipe.options import option
from tatok_pipe.ray_runtime.cluster import has_gpu


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
