"""What a run costs, in USD. docs/scale.md has the formulas with a worked example."""

from __future__ import annotations

from dataclasses import dataclass

from tools.simulation.chances import PUTS_PER_SHARD, gets_per_shard
from tools.simulation.options import SimulateCorpusConfig
from tools.simulation.run import Outcome

_S_PER_HOUR = 3600
_BYTES_PER_GB = 10**9


@dataclass(frozen=True)
class Bill:
    """USD, by what they are paid for."""

    spot: float
    on_demand: float
    head: float
    requests: float
    storage: float

    @property
    def total(self) -> float:
        return self.spot + self.on_demand + self.head + self.requests + self.storage


def make_bill(outcome: Outcome, config: SimulateCorpusConfig) -> Bill:
    """Node-hours at their prices, the head node for the whole run, the requests of every try of a shard (as if none
    had been cut short), and storage for `prices.output_months` and `prices.input_months`."""
    prices, corpus = config.prices, config.corpus
    usd_per_try = (gets_per_shard(corpus) * prices.get + PUTS_PER_SHARD * prices.put) / 1000
    output_gb = outcome.num_images * corpus.output_bytes_per_image / _BYTES_PER_GB
    input_gb = corpus.num_images * corpus.input_bytes_per_image / _BYTES_PER_GB
    return Bill(
        spot=outcome.books.spot_s / _S_PER_HOUR * prices.spot,
        on_demand=outcome.books.on_demand_s / _S_PER_HOUR * prices.on_demand,
        head=outcome.wall_s / _S_PER_HOUR * prices.head,
        requests=outcome.num_tries * usd_per_try,
        storage=(output_gb * prices.output_months + input_gb * prices.input_months) * prices.storage,
    )
