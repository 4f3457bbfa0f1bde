"""Tokenizer checkpoints: a folder on any URL with `model.safetensors` and `tokenizer.json`.

The fingerprint is the SHA-256 of the stored weights and of the model's config: whatever changes codes changes it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import resources
from typing import Any

import torch

from tatok_pipe.config.load import from_dict, to_dict
from tatok_pipe.errors import UserError
from tatok_pipe.nn.weights_folder import WeightsFolder, check_size, fingerprint
from tatok_pipe.tokenizer.calibration import Ladders
from tatok_pipe.tokenizer.dtf import Filter, resolve
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import PACKAGED, DTFConfig, TaTokConfig

FOLDER = WeightsFolder(
    weights="model.safetensors",
    description="tokenizer.json",
    format=3,
    option="tokenizer.checkpoint",
    origin=f"give the output.url of a finished train_tokenizer run, its tokenizer/, or {PACKAGED!r}",
)
_PACKAGED_FOLDER = "tatok-tiny-128"


@dataclass(frozen=True)
class Tokenizer:
    """A loaded checkpoint. `model` is float32, in eval mode, on the device asked for."""

    model: TaTok
    fingerprint: str
    ladders: Ladders
    training: dict[str, Any]  # how it was made, free form

    def filter(self, config: DTFConfig, *, option: str = "dtf") -> Filter:
        """Raises UserError where the request, which the user calls `option`, does not fit this checkpoint."""
        model = self.model.config
        try:
            return resolve(
                config, ladders=self.ladders, num_globals=model.num_globals, num_patches=model.num_patches
            )
        except ValueError as error:
            raise UserError(f"{option}.{error}") from None


def save_tokenizer(
    url: str, model: TaTok, *, ladders: Ladders, training: dict[str, Any], half: bool = False
) -> str:
    """Write a checkpoint to the folder `url` and return its fingerprint. `half` stores weights as bfloat16."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        tensors = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors.items()}
    mark = fingerprint(tensors, to_dict(model.config))
    FOLDER.write(
        url,
        tensors,
        {"fingerprint": mark, "model": to_dict(model.config), "ladders": ladders, "training": training},
    )
    return mark


def save_calibration(source: str, target: str, *, ladders: Ladders, training: dict[str, Any]) -> None:
    """Write the checkpoint at `source`, a folder's URL or PACKAGED, to the folder `target`: its very weights, with
    these ladders. Raises UserError where there is none, as `load_tokenizer`."""
    description, tensors = FOLDER.read(packaged_folder() if source == PACKAGED else source)
    FOLDER.write(target, tensors, description | {"ladders": ladders, "training": training})


def load_tokenizer(
    url: str = PACKAGED, *, device: str | torch.device = "cpu", option: str = FOLDER.option
) -> Tokenizer:
    """Load a checkpoint from a folder URL, from `tokenizer` in the output of a train_tokenizer run, or the packaged
    one. `option` is what the user calls this choice.

    Raises UserError where there is no checkpoint, its format is unknown, or its bytes are not those that its
    fingerprint was taken over.
    """
    url = packaged_folder() if url == PACKAGED else url
    folder = replace(FOLDER, option=option)
    description, tensors = folder.read(url)
    try:
        config = from_dict(TaTokConfig, description["model"])
        told, ladders, training = (description[name] for name in ("fingerprint", "ladders", "training"))
    except (KeyError, TypeError, UserError) as error:
        raise folder.error(url, f"{folder.description} is damaged: {error}") from None
    found = fingerprint(tensors, to_dict(config))
    if found != told:
        raise folder.error(
            url,
            f"weights and config give fingerprint {found[:12]}, {folder.description} says {str(told)[:12]}; the "
            "folder is damaged or mixed, copy it again",
        )
    try:
        check_size(lambda: TaTok(config), description["model"], tensors)
    except ValueError as error:
        raise folder.error(url, f"{folder.weights} is of another model: {error}") from None
    model = TaTok(config)
    model.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in tensors.items()})
    return Tokenizer(model.eval().requires_grad_(False).to(device), found, ladders, training)


def packaged_folder() -> str:
    """Where the packaged tokenizer lies on this machine."""
    return str(resources.files("tatok_pipe") / "pretrained" / _PACKAGED_FOLDER)
