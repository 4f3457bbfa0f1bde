"""Joining or starting Ray, and what its nodes are."""

from __future__ import annotations

import logging
import os
import re
import socket
import sys
from typing import Any

import ray
import ray._private.worker
import ray.exceptions
from ray._common.utils import get_default_ray_temp_dir  # there is no public question yet
from ray._private.ray_logging import global_worker_stdstream_dispatcher
from ray._private.state import (
    state as cluster_state,  # draining nodes and node types have no public question yet
)

from tatok_pipe.errors import EXIT_FAILED_SHARDS, UserError
from tatok_pipe.ray_runtime.address import check_answers, is_known_on_all_nodes
from tatok_pipe.ray_runtime.cpus import usable_cpus
from tatok_pipe.ray_runtime.watch import EmbeddedRay, JoinedRay, RayWatch
from tatok_pipe.runs.stop_signal import signals_held
from tatok_pipe.storage.settings import ENVIRONMENT as STORAGE_SETTINGS

# What workers on a cluster that somebody else started need to know of the command's environment: where the object
# store is, and Weights & Biases. Not who we are there: Ray shows a job's environment to whoever sees its dashboard, so
# credentials are the nodes' own (or the submitter's explicit choice, with --runtime-env). Embedded workers inherit
# everything.
_FORWARDED = (
    "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION", "AWS_REGION", "FSSPEC_S3_ENDPOINT_URL",
    "FSSPEC_S3_ANON", "FSSPEC_S3_REQUESTER_PAYS", "HF_ENDPOINT", "AZURE_STORAGE_ACCOUNT_NAME", STORAGE_SETTINGS,
    "WANDB_BASE_URL", "WANDB_ENTITY", "WANDB_MODE",
)  # fmt: skip


# What healthy trainings print, the second where the machine is busy; the log files of Ray's session have it.
_NEEDLESS = re.compile(
    r"core_worker\.cc:\d+: Actor with class name: 'PreemptionWatcher'|Failed to query Ray Train Controller actor"
)
_FILTER = "tatok_pipe"
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)")  # in Ray's word of two that do not fit
# What Ray puts behind its temporary folder for the longest name of a socket, and what systems allow a name.
_LONGEST_SOCKET = "session_2026-01-01_00-00-00_000000_{process}/sockets/plasma_store"
_MAX_SOCKET_BYTES = (104 if sys.platform == "darwin" else 108) - 1


class RayStartError(UserError):
    """An embedded Ray did not come up."""

    exit_code = EXIT_FAILED_SHARDS


_watches: list[RayWatch] = []  # of the Ray that this process started or joined, at most one


def check_ray_can_start() -> None:
    """To be asked first, before anything is read: raise UserError where Ray could not be started or joined.

    Joins the cluster that RAY_ADDRESS names, for nothing else tells whether that can be done.
    """
    if os.environ.get("RAY_ADDRESS"):
        start_ray()
        return
    name = os.path.join(get_default_ray_temp_dir(), _LONGEST_SOCKET.format(process=os.getpid()))
    too_many = len(os.fsencode(name)) - _MAX_SOCKET_BYTES
    if too_many > 0:
        variable = "RAY_TMPDIR" if "RAY_TMPDIR" in os.environ else "TMPDIR"
        raise UserError(
            f"{variable}={os.environ.get(variable)}: too long by {too_many} bytes for the names of Ray's sockets in "
            "it; set RAY_TMPDIR to a shorter folder on a local disk, such as /tmp"
        )


def start_ray(*, for_training: bool = False) -> None:
    """Join the cluster that RAY_ADDRESS or a submitted job names; otherwise start Ray embedded in this process, on
    the CPUs that it may use.

    Raises UserError where the named cluster does not answer, or runs another version of Ray or Python, RayStartError
    where an embedded Ray does not start, and KeyboardInterrupt for a signal in the meantime, with nothing left running.
    """
    if ray.is_initialized():
        if not has_ray_died():
            return
        ray.shutdown()
    while _watches:
        _watches.pop().close()
    environment = {name: os.environ[name] for name in _FORWARDED if name in os.environ}
    address = os.environ.get("RAY_ADDRESS")
    embedded: dict[str, Any] = {}
    # Ray Train's guard asks the dashboard whether the controller lives, and looks for the dashboard of any Ray on its
    # machine: with two of them it may ask the wrong one, hear "dead" and end the training. So it is told which one.
    if address:
        check_answers(address)
        if for_training and is_known_on_all_nodes(address):
            environment["RAY_ADDRESS"] = address
    else:
        embedded = {"include_dashboard": for_training, "num_cpus": usable_cpus()}
        if for_training:
            port = _free_port()
            embedded |= {"dashboard_host": "127.0.0.1", "dashboard_port": port}
            environment["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    _quieten()
    # Ray puts handlers of its own in place, of which one ends the process with a dump of its stack.
    with signals_held():
        _init(address, environment, embedded)
        node: Any = ray._private.worker._global_node  # nothing public tells of its processes
        if not address:
            own = EmbeddedRay(node.all_processes, address=node.gcs_address, logs=node.get_logs_dir_path())
            _watches.append(RayWatch(own))
            own.end_monitor()
        elif node is not None:  # not where a proxy of Ray's (`ray://`) is asked for everything
            _watches.append(RayWatch(JoinedRay(node.gcs_address, _own_raylet())))


def _own_raylet() -> str:
    """HOST:PORT of the raylet of the node that this process has joined."""
    own = ray.get_runtime_context().get_node_id()
    (node,) = [node for node in ray.nodes() if node["NodeID"] == own]
    return f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}"


def has_ray_died() -> bool:
    """Whether our embedded Ray, or the head of the cluster that we joined, is gone, so that calls wait for ever."""
    return any(watch.has_died for watch in _watches)


def check_ray() -> None:
    """Raise RayDiedError where `has_ray_died`, and nothing will answer any more; KeyboardInterrupt where it went with a
    signal to the whole job."""
    for watch in _watches:
        watch.check()


def _init(address: str | None, environment: dict[str, str], embedded: dict[str, Any]) -> None:
    try:
        ray.init(
            address=address or "local",
            logging_level=logging.WARNING,
            runtime_env={"env_vars": environment} if environment else None,
            **embedded,
        )
    except ConnectionError as error:
        raise UserError(f"RAY_ADDRESS={address}: no Ray cluster answers there: {error}") from None
    except Exception as error:
        if len(versions := _VERSIONS.findall(str(error))) == 2:
            (ray_there, python_there), (ray_here, python_here) = versions
            raise UserError(
                f"RAY_ADDRESS={address}: that cluster runs Ray {ray_there} on Python {python_there}, this command Ray "
                f"{ray_here} on Python {python_here}; run it with the versions of the cluster, or unset RAY_ADDRESS to "
                "work on this machine alone"
            ) from None
        # Plain Exceptions, with a timeout's text, and worse where the machine has too little of something.
        if address or not _is_start_failure(error):
            raise
        told = " ".join(str(error).split())[:300]
        raise RayStartError(
            f"Ray did not start on this machine: {told}; run the same command again"
        ) from error


def _is_start_failure(error: Exception) -> bool:
    return type(error) in (Exception, RuntimeError, TimeoutError) or isinstance(
        error, ray.exceptions.RaySystemError
    )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _quieten() -> None:
    """Leave Ray's warnings that a user can act on, and drop those that every run would print."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # a notice about CUDA_VISIBLE_DEVICES
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # plans and timings; our own lines say it
    global_worker_stdstream_dispatcher.remove_handler(_FILTER)
    global_worker_stdstream_dispatcher.add_handler(_FILTER, _drop_needless)
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # token files were set up


def _drop_needless(batch: dict[str, Any]) -> None:
    """Take out of lines of other processes, before Ray's own handler prints them here, what says nothing."""
    batch["lines"] = [line for line in batch["lines"] if not _NEEDLESS.search(line)]


def has_gpu() -> bool:
    """Whether the cluster has a GPU, or its autoscaler may add one."""
    return any(node.get("GPU", 0) > 0 for node in node_resources() + growable_resources())


def node_resources() -> list[dict[str, float]]:
    """What each node that stays offers in all, in Ray's names (CPU, GPU, memory in bytes)."""
    leaving = leaving_nodes()
    return [node["Resources"] for node in ray.nodes() if node["NodeID"] not in leaving]


def growable_resources() -> list[dict[str, float]]:
    """The same of each kind of node that the autoscaler may add; empty without an autoscaler."""
    config = cluster_state.get_cluster_config()
    return [dict(group.resources) for group in config.node_group_configs] if config else []


def leaving_nodes() -> set[str]:
    """Ids of the nodes that are dead or about to go: preempted, drained or scaled down."""
    dead = {node["NodeID"] for node in ray.nodes() if not node["Alive"]}
    return dead | set(cluster_state.get_draining_nodes())
