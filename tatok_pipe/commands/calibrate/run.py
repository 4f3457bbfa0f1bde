"""The run of calibrate: a checkpoint and images to the same checkpoint with other ladders."""

from __future__ import annotations

import logging

import torch

from tatok_pipe import storage
from tatok_pipe.commands.calibrate.options import CalibrateConfig
from tatok_pipe.encoding.image_input import ListPlace, find_image_shards
from tatok_pipe.encoding.panel import load_panel
from tatok_pipe.errors import EXIT_DONE, UserError
from tatok_pipe.images.limits import IMAGES_ONLY
from tatok_pipe.runs.job import JobSummary
from tatok_pipe.runs.lease import hold_output
from tatok_pipe.runs.stop_signal import StopSignal
from tatok_pipe.storage.temporary import temporary_folder
from tatok_pipe.tokenizer.calibration import calibrate_ladders
from tatok_pipe.tokenizer.checkpoint import FOLDER, Tokenizer, load_tokenizer, save_calibration
from tatok_pipe.tokenizer.heldout import measure
from tatok_pipe.tokenizer.model_card import publish_card
from tatok_pipe.tokenizer.rules import CALIBRATED_RULES

logger = logging.getLogger("tatok_pipe.calibrate")


def run(config: CalibrateConfig, *, argv: list[str], summary: JobSummary) -> int:
    """Exit code. Raises UserError for what it cannot be given."""
    storage.configure(config.storage)
    for key, value in (("input.shards", config.input.shards), ("output.url", config.output.url)):
        if not value:
            raise UserError(f"{key}: not given; expected a URL or path")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    before = load_tokenizer(config.tokenizer.checkpoint, device=device)
    _check_output(config, before)
    model, size, max_images = before.model, before.model.config.image_size, config.input.max_images
    with temporary_folder() as folder:  # of the lists of loose images
        shards = _find(config, "input", folder)
        held_out = _find(config, "validation", folder) if config.validation.shards else []
        if both := set(map(storage.canonical_url, shards)) & set(map(storage.canonical_url, held_out)):
            raise UserError(
                f"{storage.redact(min(both))}: in input.shards and in validation.shards; give it to one of them"
            )
        images = load_panel(shards, size, max_images)
        panel = load_panel(held_out, size, max_images) if held_out else None
    with hold_output(config.output.url, StopSignal()):
        logger.info("calibrating on %d images of %d px", len(images), size)
        ladders = calibrate_ladders(model, images.to(device))
        training = before.training | {
            "calibration_images": len(images),
            "calibration_command": " ".join(
                ["python -m tatok_pipe.calibrate", *map(storage.redact_argument, argv)]
            ),
            "is_measured_again": panel is not None,
        }
        if panel is not None:
            logger.info("measuring on %d images", len(panel))
            training["held_out"] = measure(model, panel.to(device), ladders, seed=config.seed)
        save_calibration(config.tokenizer.checkpoint, config.output.url, ladders=ladders, training=training)
        publish_card(config.output.url, model, training, fingerprint=before.fingerprint)
    logger.info(
        "%s: calibrated for rules %s of scores %s", storage.redact(config.output.url), ", ".join(CALIBRATED_RULES),
        ", ".join(ladders),
    )  # fmt: skip
    summary.add({"output": storage.redact(config.output.url), "images": len(images)})
    return EXIT_DONE


def _find(config: CalibrateConfig, option: str, folder: str) -> list[str]:
    """The image shards of "input" or "validation"; lists of loose images go into `folder`."""
    given = getattr(config, option)
    place = ListPlace(
        f"{folder}/{option}.parquet",
        limits=IMAGES_ONLY,
        other_stores=given.other_stores,
    )
    return [shard.url for shard in find_image_shards(given.shards, option=f"{option}.shards", place=place)]


def _check_output(config: CalibrateConfig, tokenizer: Tokenizer) -> None:
    """Raises UserError where there is another tokenizer."""
    url = config.output.url
    if not storage.exists(storage.join(url, FOLDER.description)):
        return
    found = load_tokenizer(url, option="output.url").fingerprint
    if found != tokenizer.fingerprint:
        raise UserError(
            f"output.url={storage.redact(url)}: holds another tokenizer, fingerprint {found[:12]}, not "
            f"{tokenizer.fingerprint[:12]}; give another folder"
        )
