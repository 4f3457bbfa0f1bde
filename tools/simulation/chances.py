"""What is left to chance: how long a shard takes, what goes wrong with it, how long a node lives. Seeded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from enum import IntEnum
from typing import NamedTuple

import numpy as np

from tatok_pipe.images.source import PART_BYTES
from tatok_pipe.storage import retry
from tools.simulation.options import CorpusConfig, SimulateCorpusConfig

# How an actor tries a shard again by itself that ended with an error: see shard_tokenizer.
MAX_TRIES_IN_ACTOR = 3
FIRST_PAUSE_S = 1.0
# Requests for a shard besides those for its parts, counted with a local S3 server: HEAD of the image shard before and
# after, HEAD of the token shard before and after, a LIST (of a token shard that is not there), a PUT; a DELETE is free.
HEADS_PER_SHARD = 4
PUTS_PER_SHARD = 2

_BLOCK = 4096


class End(IntEnum):
    """How an attempt ends."""

    DONE = 0
    ERROR = 1  # the actor has said so, and goes on with the next shard
    CRASH = 2  # of the actor's process
    HANG = 3  # until the driver ends the actor's process


class Attempt(NamedTuple):
    """A shard in one actor, tries that ended with an error included. Seconds."""

    useful_s: float  # the images at the actor's rate
    extra_s: float  # what that took longer: slow node, overhead, requests tried again
    wasted_s: float  # tries that gave nothing, and pauses between them
    end: End
    num_tries: int

    @property
    def seconds(self) -> float:
        return self.useful_s + self.extra_s + self.wasted_s


class Chances:
    """All draws of one simulation. Shards take the same time whatever the number of workers, and lives of nodes are
    the same draws divided by the rate, so that settings are compared on equal terms."""

    def __init__(self, config: SimulateCorpusConfig, *, seed: int) -> None:
        self._config = config
        shard_rng, self._try_rng, self._life_rng, self._slow_rng, self._wait_rng = (
            np.random.default_rng([seed, stream]) for stream in range(5)
        )
        corpus, actor = config.corpus, config.actor
        sigma = math.sqrt(math.log1p(actor.shard_cv**2))
        factors = shard_rng.lognormal(-(sigma**2) / 2, sigma, corpus.num_shards)
        self._useful_s: list[float] = (factors * corpus.images_per_shard / actor.images_per_s).tolist()
        poisonous = shard_rng.random(corpus.num_shards) < config.faults.poisonous
        self._poisonous = frozenset(np.flatnonzero(poisonous).tolist())
        self._tries = self._draw_tries()

    def attempt(self, shard: int, *, slow_factor: float, max_tries: int) -> Attempt:
        """What becomes of the shard of that index on a node so much slower, with at most `max_tries` tries."""
        failures = self._config.failures
        useful_s, wasted_s, pause_s = self._useful_s[shard], 0.0, FIRST_PAUSE_S
        num_tries = min(max_tries, MAX_TRIES_IN_ACTOR)
        for number in range(1, num_tries + 1):
            delay_s, end, share = next(self._tries)
            work_s = useful_s * slow_factor + self._config.actor.shard_overhead_s + delay_s
            if shard in self._poisonous:
                end = End.CRASH
            if work_s > failures.shard_timeout_s:
                return Attempt(0.0, 0.0, wasted_s + failures.shard_timeout_s, End.HANG, number)
            if end == End.DONE:
                return Attempt(useful_s, work_s - useful_s, wasted_s, End.DONE, number)
            wasted_s += share * work_s
            if end == End.CRASH:
                return Attempt(0.0, 0.0, wasted_s, End.CRASH, number)
            if end == End.HANG:
                return Attempt(0.0, 0.0, wasted_s + failures.stall_s, End.HANG, number)
            if number < num_tries:
                wasted_s += pause_s
                pause_s *= 2
        return Attempt(0.0, 0.0, wasted_s, End.ERROR, num_tries)

    def node_life_s(self, *, is_spot: bool) -> float:
        """From the launch of the next node to the notice of its end; infinite for one on demand."""
        if not is_spot:
            return math.inf
        unit, rate = self._life_rng.exponential(), self._config.nodes.preemptions_per_hour
        return unit * 3600 / rate if rate else math.inf

    def slow_factor(self) -> float:
        """Of the next node."""
        nodes = self._config.nodes
        return nodes.slow_factor if self._slow_rng.random() < nodes.slow_share else 1.0

    def replacement_wait_s(self) -> float:
        """Until the cloud has a spot node again."""
        return self._wait_rng.exponential() * self._config.nodes.replacement_wait_s

    def _draw_tries(self) -> Iterator[tuple[float, End, float]]:
        """For try after try: seconds lost to requests that failed, its end, and after which share of it that came."""
        faults, rng = self._config.faults, self._try_rng
        limits = np.cumsum([faults.errors, faults.crashes, faults.hangs])
        ends = (End.ERROR, End.CRASH, End.HANG, End.DONE)
        while True:
            delays_s, has_given_up = draw_retries(
                rng,
                num_shards=_BLOCK,
                num_requests=gets_per_shard(self._config.corpus) + PUTS_PER_SHARD,
                failures=faults.request_failures,
            )
            kinds = np.searchsorted(limits, rng.random(_BLOCK), side="right")
            kinds[has_given_up & (kinds == 3)] = 0
            shares = rng.random(_BLOCK)
            for delay_s, kind, share in zip(delays_s.tolist(), kinds.tolist(), shares.tolist(), strict=True):
                yield delay_s, ends[kind], share


def gets_per_shard(corpus: CorpusConfig) -> int:
    """GET and HEAD requests of an attempt that is not cut short."""
    return math.ceil(corpus.input_bytes_per_shard / PART_BYTES) + HEADS_PER_SHARD


def draw_retries(
    rng: np.random.Generator, *, num_shards: int, num_requests: int, failures: float
) -> tuple[np.ndarray, np.ndarray]:
    """Seconds (num_shards,) that pauses between tries of requests take, and whether one was given up, by the rules of
    `storage.retry`. That the reader fetches ahead is not counted on: every pause holds the shard up."""
    delays_s = np.zeros(num_shards)
    failing = rng.binomial(num_requests, failures, num_shards)
    for number in range(retry.NUM_ATTEMPTS - 1):
        pause_s = min(retry.FIRST_DELAY_S * 2**number, retry.MAX_DELAY_S)
        shards = np.repeat(np.arange(num_shards), failing)
        np.add.at(delays_s, shards, pause_s * rng.uniform(0.5, 1.0, len(shards)))
        failing = rng.binomial(failing, failures)
    return delays_s, failing > 0
