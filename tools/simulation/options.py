"""The options of the simulation. The defaults are one billion images on spot nodes of one GPU each.

*Measured* defaults come from the real program on a CPU machine with two cores (docs/scale.md says how); everything
else is an assumption, and says so in its help. Nothing of this was measured on a GPU.
"""

from __future__ import annotations

from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.runs.shard_queue import FailuresConfig
from tatok_pipe.storage.settings import STORAGE_HELP, StorageConfig


@config_dataclass
class CorpusConfig:
    num_shards: int = option(100_000, at_least=1, help="image shards of the corpus", unit="shards")
    images_per_shard: int = option(10_000, at_least=1, help="images in each of them", unit="images per shard")
    # 800 JPEGs of ImageNet, tar headers included; 10,000 rows of their tokens by the packaged tokenizer.
    input_bytes_per_image: int = option(
        112_691, at_least=1, help="measured: what an image takes in an image shard", unit="bytes per image"
    )
    output_bytes_per_image: int = option(
        148,
        at_least=1,
        help="measured: what its row takes in a token shard of 10,000 rows",
        unit="bytes per image",
    )

    @property
    def num_images(self) -> int:
        return self.num_shards * self.images_per_shard

    @property
    def input_bytes_per_shard(self) -> int:
        return self.images_per_shard * self.input_bytes_per_image


@config_dataclass
class ActorConfig:
    images_per_s: float = option(
        4000.0,
        above=0,
        help="assumed, a target: images that one actor on one GPU encodes",
        unit="images/s per actor",
    )
    # Time between commits of one actor (cpus=1) on 16 shards of 100 JPEGs, eight runs: 0.02 to 0.09 of the mean, all
    # of it the machine's: the same shard again varied as much as another one.
    shard_cv: float = option(
        0.06,
        at_least=0,
        help="measured: standard deviation of a shard's encoding time over its mean, log-normal",
        unit="ratio",
    )
    # Time between commits of 60 shards of one batch against 12 of ten: 0.02 s from disk, 0.01 s from a local S3 server.
    shard_overhead_s: float = option(
        0.02,
        at_least=0,
        help="measured: what a shard takes besides its images, fetched ahead",
        unit="seconds per shard",
    )
    fetch_s: float = option(
        0.2,
        at_least=0,
        help="assumed: to a shard's first bytes where none were fetched ahead",
        unit="seconds per shard",
    )
    # Closing, verifying and publishing 10,000 rows took 0.10 s with a local S3 server; five round trips on the way
    # to a remote one are assumed to take 40 ms each.
    commit_s: float = option(
        0.3, at_least=0, help="partly measured: from a shard's last image to its commit, while the next one is encoded",
        unit="seconds per shard",
    )  # fmt: skip
    # 21 starts of an actor with the packaged tokenizer, 2.1 to 7.9 s, the median. CUDA and a large checkpoint take
    # longer.
    start_s: float = option(
        2.6,
        at_least=0,
        help="measured on CPU: from asking for an actor on a node that is up to its being ready",
        unit="seconds",
    )


@config_dataclass
class NodesConfig:
    start_s: float = option(
        240.0,
        at_least=0,
        help="assumed: from asking for a node to its being up, image pulled; it is paid",
        unit="seconds",
    )
    spot_share: float = option(
        1.0, at_least=0, at_most=1, help="nodes that are spot; the others are never taken away", unit="share"
    )
    preemptions_per_hour: float = option(
        0.3,
        at_least=0,
        help="assumed: rate at which a spot node is taken away, exponential",
        unit="per node and hour",
    )
    notice_s: float = option(
        120.0,
        at_least=0,
        help="assumed (as on AWS): from the notice to the end of a node; 0: no notice",
        unit="seconds",
    )
    replacement_wait_s: float = option(
        300.0, at_least=0,
        help="assumed: mean wait for another spot node when one was taken, exponential; it is not paid",
        unit="seconds",
    )  # fmt: skip
    detection_s: float = option(
        30.0, at_least=0, help="assumed: until Ray knows that a node is gone", unit="seconds"
    )
    slow_share: float = option(
        0.02,
        at_least=0,
        at_most=1,
        help="assumed: nodes that are slow for as long as they live",
        unit="share",
    )
    slow_factor: float = option(
        3.0, at_least=1, help="assumed: how much longer they take for a shard", unit="ratio"
    )
    idle_timeout_s: float | None = option(
        60.0, at_least=0,
        help="a node without an actor goes after so long (KubeRay's default); null: at the end of the run",
        unit="seconds",
    )  # fmt: skip


@config_dataclass
class FaultsConfig:
    request_failures: float = option(
        1e-4,
        at_least=0,
        at_most=1,
        help="assumed: requests to the object store that fail and are tried again",
        unit="share of requests",
    )
    errors: float = option(
        1e-4,
        at_least=0,
        at_most=1,
        help="assumed: tries of a shard that end with an error; its actor tries again",
        unit="share of tries",
    )
    crashes: float = option(
        2e-5,
        at_least=0,
        at_most=1,
        help="assumed: attempts that end with the death of the actor's process",
        unit="share of attempts",
    )
    hangs: float = option(
        1e-6,
        at_least=0,
        at_most=1,
        help="assumed: attempts that stop without an end, until failures.stall_s",
        unit="share of attempts",
    )
    poisonous: float = option(
        1e-5,
        at_least=0,
        at_most=1,
        help="assumed: shards that kill every process that works on them",
        unit="share of shards",
    )

    def __post_init__(self) -> None:
        if self.errors + self.crashes + self.hangs > 1:
            raise ValueError(
                f"errors={self.errors}, crashes={self.crashes}, hangs={self.hangs}: more than 1 together"
            )


@config_dataclass
class DriverConfig:
    # run_shards with a job that does nothing, 1 to 8 actors: 0.27 to 0.49 ms of the driver's thread an answer.
    answer_s: float = option(
        3e-4,
        at_least=0,
        help="measured: to take one answer and begin the next shard",
        unit="seconds per answer",
    )
    # With 1,024 workers: ray.wait on their 2,048 calls, twice (0.6 ms each), and the real hand-out (0.8 ms).
    step_per_worker_s: float = option(
        2e-6, at_least=0, help="measured: a step of the driver's loop, in which it takes all answers that came",
        unit="seconds per step and worker",
    )  # fmt: skip


@config_dataclass
class PricesConfig:
    # One H100 on AWS: 6.88 on demand, 3.44 spot; lists of prices say 1.5 to 7.
    spot: float = option(3.44, at_least=0, help="assumed: a spot node", unit="USD per node and hour")
    on_demand: float = option(
        6.88, at_least=0, help="assumed: a node on demand", unit="USD per node and hour"
    )
    head: float = option(
        0.40, at_least=0, help="assumed: the head node, to the end of the run", unit="USD per hour"
    )
    # S3 Standard in us-east-1, list prices.
    get: float = option(
        0.0004, at_least=0, help="assumed: GET and HEAD requests", unit="USD per 1,000 requests"
    )
    put: float = option(
        0.005, at_least=0, help="assumed: PUT and LIST requests", unit="USD per 1,000 requests"
    )
    storage: float = option(
        0.023, at_least=0, help="assumed: object storage", unit="USD per GB (10^9 bytes) and month"
    )
    output_months: float = option(
        1.0, at_least=0, help="months that the tokens are kept, to be paid for", unit="months"
    )
    input_months: float = option(
        0.0,
        at_least=0,
        help="months of the images' storage to be paid for; 0: they are there anyway",
        unit="months",
    )


@config_dataclass
class OutputConfig:
    url: str | None = option(
        None,
        help="folder for results.json, tables.md, scale.svg and scale.png, on any URL; null: only the table",
        is_url=True,
    )


@config_dataclass
class SimulateCorpusConfig:
    num_workers: list[int] = option(
        [8, 16, 32, 64, 128, 256, 512, 1024],
        at_least=1,
        help="workers to simulate: actors, on a node each",
        unit="workers",
    )
    num_seeds: int = option(3, at_least=1, help="simulations of each number of workers", unit="simulations")
    seed: int = option(0, at_least=0, help="seed of the first of them; the next ones follow")
    corpus: CorpusConfig = section(CorpusConfig, help="what is tokenized")
    actor: ActorConfig = section(ActorConfig, help="how an actor works")
    nodes: NodesConfig = section(NodesConfig, help="how nodes come and go")
    faults: FaultsConfig = section(FaultsConfig, help="what goes wrong")
    failures: FailuresConfig = section(
        FailuresConfig, help="as in tokenize_corpus; stop_grace_s has no use here"
    )
    driver: DriverConfig = section(DriverConfig, help="what handing out takes")
    prices: PricesConfig = section(PricesConfig, help="what things cost")
    output: OutputConfig = section(OutputConfig, help="where the results go")
    storage: StorageConfig = section(StorageConfig, help=STORAGE_HELP)

    def __post_init__(self) -> None:
        if not self.num_workers:
            raise ValueError("num_workers=[]: expected one number or more")
        if len(set(self.num_workers)) < len(self.num_workers):
            raise ValueError(f"num_workers={self.num_workers}: expected every number once")
