"""Options of every kind, declared as those of jobs are, and loaded as a command would."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from tatok_pipe.config.load import load_config
from tatok_pipe.config.options import config_dataclass, option, section
from tatok_pipe.errors import UserError


@dataclass(frozen=True)
class InputConfig:
    shards: str = option("", help="Image shards: a path, a URL with {000..007}, or @list.txt.")
    augment: bool = option(False, help="Encode several crops of an image.")


@dataclass(frozen=True)
class OutputConfig:
    url: str = option("runs/out", help="Where the token dataset goes.")
    tags: list[str] = option([], help="Free words stored with the dataset.")


@dataclass(frozen=True)
class LadderConfig:
    budgets: list[float] = option([0.1, 0.25], help="Budgets that are calibrated.", unit="share of the total")


@config_dataclass
class DtfConfig:
    rule: str = option("threshold", help="What decides.", choices=["threshold", "budget", "none"])
    target_tokens: float | None = option(None, help="Mean length to solve for.", unit="tokens per image")
    min_patches: int = option(1, at_least=0, help="Floor.", unit="patches per image")
    ladder: LadderConfig = section(LadderConfig, help="Calibration")

    def __post_init__(self) -> None:
        if self.target_tokens is not None and self.target_tokens < self.min_patches:
            raise ValueError("the target lies below\nthe floor")


@dataclass(frozen=True)
class ActorsConfig:
    min: int = option(1, help="Fewest actors kept alive.", unit="actors, global")
    levels: list[int] = option([8, 8, 8], help="Levels of each code dimension.")
    seed: int | None = option(None, help="Fixed where given.")
    note: str | None = option(None, help="Free text.")


@dataclass(frozen=True)
class JobConfig:
    name: str = option("job", help="Name in logs.")
    input: InputConfig = section(InputConfig, help="Where images come from")
    output: OutputConfig = section(OutputConfig, help="Where tokens go")
    dtf: DtfConfig = section(DtfConfig, help="Dynamic Token Filtering")
    actors: ActorsConfig = section(ActorsConfig, help="The pool of workers")


@dataclass(frozen=True)
class ModelConfig:
    width: int  # has no default: must be given
    depth: int = 2
    levels: list[int] = field(default_factory=lambda: [8, 8])


@dataclass(frozen=True)
class SmallJobConfig:
    """A section that starts from other defaults than its class's own."""

    model: ModelConfig = option(ModelConfig(width=64, levels=[5]), help="The model")


@dataclass(frozen=True)
class NeedyJobConfig:
    model: ModelConfig = section(ModelConfig, help="The model")


@dataclass(frozen=True)
class LongConfig:
    a_name_that_is_much_longer_than_any_column_would_allow_for: int
    url: str = option("s3://" + "a" * 200, help="help " * 50)


@dataclass(frozen=True)
class UrlConfig:
    url: str = option("out", help="Where to.", is_url=True)
    start: str = option("", help="Where from; empty: nowhere.", is_url=True)
    old: str | None = option(None, help="What to compare with; null: nothing.", is_url=True)


@dataclass(frozen=True)
class FlagConfig:
    """Options of every kind at the top level, beside a section."""

    url: str = option("out", help="Where to.")
    dry_run: bool = option(False, help="Plan, and do nothing.")
    keep: bool | None = option(None, help="Keep what is there.")
    limit: int | None = option(None, help="At most.", unit="images")
    tags: list[str] = option([], help="Words.")
    input: InputConfig = section(InputConfig, help="Where images come from")


def load(*argv: str, config_class: Any = JobConfig, **kwargs: Any) -> Any:
    return load_config(
        config_class, list(argv), prog="tatok_pipe.runs.job", description="Does a job.", **kwargs
    )


def refuse(*argv: str, config_class: Any = JobConfig, **kwargs: Any) -> str:
    """The message of the UserError that `argv` must raise, which is one line."""
    with pytest.raises(UserError) as caught:
        load(*argv, config_class=config_class, **kwargs)
    message = str(caught.value)
    assert message and message.isprintable()
    return message
