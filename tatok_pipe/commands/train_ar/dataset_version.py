"""Which versions of its token datasets a training sees: what is there, or where one is resumed what it was begun on."""

from __future__ import annotations

import logging
from typing import Any

from tatok_pipe import storage
from tatok_pipe.commands.train_ar.options import InputConfig
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.loading.sources import TrainingData
from tatok_pipe.tokens.loading.training_set import TrainingSet, read_training_set
from tatok_pipe.tokens.versions import find_by_digest

logger = logging.getLogger("tatok_pipe.train_ar")

WHERE = "input.where"  # what the user calls a condition on rows
_ADVICE = "input.on_dataset_change=restart_epoch begins its next epoch on that, another output.url a training"


def choose_datasets(
    config: InputConfig, earlier: dict[str, Any] | None, *, output_url: str = ""
) -> list[TrainingSet]:
    """The datasets to train on. `earlier` is the manifest of the checkpoint at `output_url` that will be gone on from,
    if there is one: its versions are kept to, unless `on_dataset_change` lets them go.

    Raises UserError as `read_training_set`, where such a version cannot be read any more or another one is given, and
    where the checkpoint is of a training on other datasets.
    """
    given, where = list(zip(config.all_urls, config.all_versions, strict=True)), config.where or ""
    if earlier is None or config.on_dataset_change != "error":
        return [
            read_training_set(url, version=version, where=where, where_option=WHERE) for url, version in given
        ]
    recorded = earlier["extra"].get("dataset", {})
    begun_on = recorded.get("sources", [recorded])
    told = f"{storage.redact(output_url)}: holds a training on"
    if len(begun_on) != len(given):
        named = ", ".join(each.get("url", "") for each in begun_on if len(begun_on) > 1)
        raise UserError(
            f"{told} {f'{len(begun_on)} datasets ({named})' if named else 'one dataset'}, and {len(given)} are given; "
            f"give the same to go on, {_ADVICE}"
        )
    name = "input.versions" if config.urls else "input.version"
    return [
        _choose(
            url, version, was.get("digest", ""), where=where, told=told, option=name
        )  # none in one of an earlier program
        for (url, version), was in zip(given, begun_on, strict=True)
    ]


def check_mix(
    config: InputConfig, dataset: TrainingData, earlier: dict[str, Any] | None, *, output_url: str
) -> None:
    """Raise UserError where the training that will be gone on from, as `choose_datasets` has it, mixes otherwise."""
    if earlier is None or config.on_dataset_change != "error":
        return
    was, now = earlier["extra"].get("dataset", {}), dataset.to_json()
    for name in ("weights", "weight_changes"):
        if was.get(name) != now.get(name):
            raise UserError(
                f"{storage.redact(output_url)}: holds a training with input.{name}={was.get(name)}, now it is "
                f"{now.get(name)}; give the same to go on, {_ADVICE}"
            )


def _choose(url: str, version: int | None, was: str, *, where: str, told: str, option: str) -> TrainingSet:
    """The dataset at `url`, as it was when its digest was `was`."""
    dataset = read_training_set(url, version=version, where=where, where_option=WHERE)
    if was == dataset.version.digest:
        return dataset
    found = find_by_digest(url, was)
    told = f"{told} {found or 'tokens of which no version was recorded'} of {storage.redact(url)}"
    if version is not None:
        raise UserError(f"{told}, {option}={version} is {dataset.version}; leave it out to go on, {_ADVICE}")
    if found is None:
        raise UserError(f"{told}, and what is there now is {dataset.version}; {_ADVICE}")
    try:
        kept = read_training_set(url, version=found.number, where=where, where_option=WHERE)
    except UserError as error:
        raise UserError(f"{told}. {error}; {_ADVICE}") from None
    logger.warning(
        "%s: going on with %s of it, on which the training was begun; what is there now is %s",
        storage.redact(url), found, dataset.version,
    )  # fmt: skip
    return kept
