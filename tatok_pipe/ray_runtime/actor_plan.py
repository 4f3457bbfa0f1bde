"""How many actors a run has, and what each of them gets."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tatok_pipe.errors import UserError
from tatok_pipe.ray_runtime.cluster import growable_resources, has_gpu, node_resources
from tatok_pipe.ray_runtime.options import ActorsConfig


@dataclass(frozen=True)
class ActorPlan:
    """Actors of a run: how many, and what each of them gets."""

    min: int
    max: int
    cpus: float
    gpus: float
    memory_bytes: int = 0

    @property
    def device(self) -> str:
        return "cuda" if self.gpus else "cpu"


def plan_actors(config: ActorsConfig, *, num_shards: int) -> ActorPlan:
    """How many actors of which size, from what the cluster's nodes are now, and may become where it grows.

    All actors are of one kind, because a GPU and a CPU round differently: with GPUs only nodes that have some
    take part. Raises UserError where no node has room for an actor.
    """
    gpus = config.gpus if config.gpus is not None else (1.0 if has_gpu() else 0.0)
    memory = int((config.memory_gib or 0) * 2**30)
    growable = _fitting(growable_resources(), gpus)
    present = _fitting(node_resources(), gpus)
    nodes = present or growable
    if not nodes:
        raise UserError(f"actors.gpus={gpus:g}: no node of the cluster has CPUs and as many GPUs")
    if config.cpus is not None:
        cpus = config.cpus
    elif gpus:
        # Threads decode for the GPU: all cores of a node, shared out over its GPUs.
        cpus = max(1.0, min(node["CPU"] // (node["GPU"] / gpus) for node in nodes))
    else:
        total = sum(node["CPU"] for node in nodes)
        cpus = max(1.0, min(4.0, total // (config.max or 1), *(node["CPU"] for node in nodes)))
    plan = ActorPlan(min=1, max=1, cpus=cpus, gpus=gpus, memory_bytes=memory)
    room = sum(_room(node, plan) for node in present)
    if not room and not any(_room(node, plan) for node in growable):
        largest = max(node["CPU"] for node in nodes)
        most_memory = max(node.get("memory", 0) for node in nodes) / 2**30
        raise UserError(
            f"actors.cpus={cpus:g}, actors.memory_gib={memory / 2**30:g}: no node of the cluster has room for such "
            f"an actor; the largest have {largest:g} CPUs and {most_memory:.1f} GiB"
        )
    most = max(1, min(config.max or room, num_shards))
    return ActorPlan(min=min(config.min, most), max=most, cpus=cpus, gpus=gpus, memory_bytes=memory)


def prefer_many(config: ActorsConfig, *, num_shards: int) -> ActorsConfig:
    """For work whose threads would mostly wait for each other: on CPUs, where nothing else was asked, as many actors as
    there are shards come first, and only what is left makes an actor larger than one CPU. Ray must be running."""
    if config.cpus is not None or config.gpus or has_gpu():
        return config
    num_cpus = sum(node.get("CPU", 0) for node in node_resources())
    return replace(config, cpus=float(max(1, min(4, num_cpus // (config.max or num_shards)))))


def _fitting(nodes: list[dict[str, float]], gpus: float) -> list[dict[str, float]]:
    return [node for node in nodes if node.get("CPU", 0) > 0 and node.get("GPU", 0) >= gpus]


def _room(node: dict[str, float], plan: ActorPlan) -> int:
    """How many such actors a node takes."""
    limits = [node["CPU"] / plan.cpus]
    if plan.gpus:
        limits.append(node["GPU"] / plan.gpus)
    if plan.memory_bytes:
        limits.append(node.get("memory", 0) / plan.memory_bytes)
    return int(min(limits))
