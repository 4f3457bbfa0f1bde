"""The options of actors and of training workers, without Ray."""

from __future__ import annotations

from tatok_pipe.config.options import config_dataclass, option


@config_dataclass
class ActorsConfig:
    min: int = option(
        1, at_least=1, help="actors that are kept to the end; more than that are released as they run out of shards",
        unit="processes",
    )  # fmt: skip
    max: int | None = option(
        None,
        help="most actors; asked for at once, so an autoscaler adds nodes for them; null: as many as the nodes that "
        "are there have room for",
        unit="processes",
    )
    cpus: float | None = option(
        None,
        above=0,
        help="CPUs of an actor, its threads; null: a share of its node, at most 4 without GPU",
        unit="CPUs per actor",
    )
    gpus: float | None = option(
        None,
        at_least=0,
        help="GPUs of an actor, fractions allowed; null: 1 where Ray sees a GPU, else 0",
        unit="GPUs per actor",
    )

    memory_gib: float | None = option(
        None,
        above=0,
        help="memory that Ray sets aside for an actor, so that it places no more of them on a node than fit; null: "
        "none",
        unit="GiB per actor",
    )

    def __post_init__(self) -> None:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max={self.max}: expected at least min={self.min}")


@config_dataclass
class WorkersConfig:
    count: int = option(1, at_least=1, help="training workers", unit="processes")
    cpus: float | None = option(
        None, above=0, help="CPUs of each worker; null: an equal share of all", unit="CPUs per worker"
    )


@config_dataclass
class ElasticWorkersConfig:
    min: int = option(
        1,
        at_least=1,
        help="fewest workers that the training goes on with where others are lost",
        unit="processes",
    )
    max: int | None = option(
        None, help="workers that are asked for; null: one for each GPU, at least `min`", unit="processes"
    )
    cpus: float | None = option(
        None, above=0, help="CPUs of each worker; null: an equal share of all", unit="CPUs per worker"
    )
    max_failures: int = option(
        20,
        at_least=0,
        help="times that a failed worker is forgiven and the training goes on from its last checkpoint; preempted "
        "nodes do not count",
        unit="failures",
    )

    def __post_init__(self) -> None:
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max={self.max}: expected at least min={self.min}")
