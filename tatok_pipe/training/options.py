"""Options of how a training goes on, whatever it trains."""

from __future__ import annotations

from tatok_pipe.config.options import config_dataclass, option

_NOT_IN_PROJECTS = r"/\#?%:"  # as W&B has it


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
    wandb_project: str | None = option(
        None,
        help="what tensorboard/ has also goes to this project of Weights & Biases (tatok_pipe[wandb]), as one run for "
        "an output; WANDB_MODE=offline keeps it in wandb/ of the output, for `wandb sync`",
    )

    def __post_init__(self) -> None:
        project = self.wandb_project
        if project is not None and (not 0 < len(project) <= 128 or set(project) & set(_NOT_IN_PROJECTS)):
            raise ValueError(
                f"wandb_project={project}: expected a name of 1 to 128 characters, none of {_NOT_IN_PROJECTS}"
            )
