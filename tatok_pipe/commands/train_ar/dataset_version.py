"""Which version of a token dataset a training sees: what is there, or where one is resumed what it was begun on."""

from __future__ import annotations

import logging
from typing import Any

from tatok_pipe import storage
from tatok_pipe.commands.train_ar.options import InputConfig
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.loading.training_set import TrainingSet, read_training_set
from tatok_pipe.tokens.versions import find_by_digest

logger = logging.getLogger("tatok_pipe.train_ar")


def choose_dataset(
    config: InputConfig, earlier: dict[str, Any] | None, *, output_url: str = ""
) -> TrainingSet:
    """The dataset to train on. `earlier` is the manifest of the checkpoint at `output_url` that will be gone on from,
    if there is one: its version is kept to, unless `on_dataset_change` lets it go.

    Raises UserError as `read_training_set`, and where that version cannot be read any more, or another one is given.
    """
    dataset = read_training_set(config.url, version=config.version, where=config.where or "")
    if earlier is None or config.on_dataset_change != "error":
        return dataset
    was: str = earlier["extra"].get("dataset", {}).get("digest", "")  # none in one of an earlier program
    if was == dataset.version.digest:
        return dataset
    found = find_by_digest(config.url, was)
    told = (
        f"{storage.redact(output_url)}: holds a training on {found or 'tokens of which no version was recorded'} of "
        f"{storage.redact(config.url)}"
    )
    advice = (
        "input.on_dataset_change=restart_epoch begins its next epoch on that, another output.url a training"
    )
    if config.version is not None:
        raise UserError(
            f"{told}, input.version={config.version} is {dataset.version}; leave it out to go on, {advice}"
        )
    if found is None:
        raise UserError(f"{told}, and what is there now is {dataset.version}; {advice}")
    try:
        kept = read_training_set(config.url, version=found.number, where=config.where or "")
    except UserError as error:
        raise UserError(f"{told}. {error}; {advice}") from None
    logger.warning(
        "%s: going on with %s of it, on which the training was begun; what is there now is %s",
        storage.redact(config.url), found, dataset.version,
    )  # fmt: skip
    return kept
