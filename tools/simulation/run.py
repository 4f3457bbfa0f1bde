"""One simulated run, from asking for nodes to the last commit."""

from __future__ import annotations

from dataclasses import dataclass

from tools.simulation.chances import Chances
from tools.simulation.clock import Clock
from tools.simulation.cluster import Cluster
from tools.simulation.driver import Driver
from tools.simulation.ledger import Books, Part
from tools.simulation.options import SimulateCorpusConfig


@dataclass(frozen=True)
class Outcome:
    """What became of a run. Seconds of nodes are paid ones; a worker is an actor on a node of its own."""

    num_workers: int
    num_done: int  # shards
    num_failed: int
    num_left: int  # not begun, where failures.max_failed_shards ended the run
    num_images: int  # of the shards that are done
    wall_s: float  # from asking for nodes to the last answer
    tail_s: float  # of it, after the last shard was handed out
    books: Books
    num_tries: int  # of shards, those that were cut short included
    num_preemptions: int
    num_crashes: int

    @property
    def node_s(self) -> float:
        """Seconds of nodes that are paid."""
        return self.books.spot_s + self.books.on_demand_s

    def share(self, part: Part) -> float:
        """Of the paid time."""
        return self.books.parts[part] / self.node_s

    @property
    def goodput(self) -> float:
        """Share of the paid time in which images that were committed were encoded, at the actors' rate."""
        return self.share(Part.USEFUL)

    @property
    def tail_idle_share(self) -> float:
        """Share of what is paid in the tail that is idle; 0 where there is no tail."""
        return self.books.parts[Part.TAIL] / self.books.tail_s if self.books.tail_s else 0.0

    @property
    def images_per_s(self) -> float:
        """Of all workers together, over the whole run."""
        return self.num_images / self.wall_s


def simulate(
    config: SimulateCorpusConfig, *, num_workers: int, seed: int, chances: Chances | None = None
) -> Outcome:
    """Run `config.corpus` on so many workers. The same arguments give the same outcome.

    `chances` are drawn from `seed` unless given. Raises UserError where nodes live too short for any shard.
    """
    clock = Clock()
    cluster = Cluster(config, clock, chances or Chances(config, seed=seed), num_workers=num_workers)
    driver = cluster.listener = Driver(config, clock, cluster, num_workers=num_workers)
    driver.begin()
    clock.run(lambda: driver.is_over)
    cluster.close()
    num_done, num_failed = len(driver.done), len(driver.failed)
    return Outcome(
        num_workers=num_workers,
        num_done=num_done,
        num_failed=num_failed,
        num_left=config.corpus.num_shards - num_done - num_failed,
        num_images=num_done * config.corpus.images_per_shard,
        wall_s=clock.now_s,
        tail_s=clock.now_s - driver.empty_s,
        books=cluster.ledger.settle(empty_s=driver.empty_s, end_s=clock.now_s),
        num_tries=cluster.num_tries,
        num_preemptions=cluster.num_preemptions,
        num_crashes=cluster.num_crashes,
    )
