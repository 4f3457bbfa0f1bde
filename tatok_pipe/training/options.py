"""Options of how a training goes on, whatever it trains."""

from __future__ import annotations

from tatok_pipe.config.options import config_dataclass, option


@config_dataclass
class CheckpointsConfig:
    every_steps: int = option(500, at_least=1, help="a checkpoint to resume from this often", unit="steps")
    keep: int = option(3, at_least=1, help="the newest ones that are kept", unit="checkpoints")
    upload: str = option(
        "async",
        choices=("async", "sync"),
        help="training goes on while a checkpoint is uploaded, or waits; before a node leaves, on a signal and at the "
        "end it always waits",
    )


@config_dataclass
class LoggingConfig:
    every_steps: int = option(20, at_least=1, help="a line of losses and speed this often", unit="steps")
