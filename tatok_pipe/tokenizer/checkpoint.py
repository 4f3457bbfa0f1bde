"""Tokenizer checkpoints: a folder on any URL with `model.safetensors` and `tokenizer.json`. Nothing is unpickled.

The fingerprint is the SHA-256 of the stored weights and of the model's config: whatever changes codes changes it.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from tatok_pipe import storage
from tatok_pipe.config import from_dict, to_dict
from tatok_pipe.errors import UserError
from tatok_pipe.tokenizer.dtf import DTFConfig, Filter, resolve
from tatok_pipe.tokenizer.model import TaTok, TaTokConfig

FORMAT = 1
WEIGHTS = "model.safetensors"
DESCRIPTION = "tokenizer.json"
PACKAGED = "packaged"  # the checkpoint name of the tokenizer that comes with the package
_PACKAGED_FOLDER = "tatok-tiny-128"

Ladders = dict[str, dict[str, list[list[float]]]]  # by score, then rule: rungs [mean kept patches, value]


@dataclass(frozen=True)
class Tokenizer:
    """A loaded checkpoint. `model` is float32, in eval mode, on the device asked for."""

    model: TaTok
    fingerprint: str
    ladders: Ladders
    training: dict[str, Any]  # how it was made, free form

    def filter(self, config: DTFConfig) -> Filter:
        """Raises UserError where the request does not fit this checkpoint."""
        model = self.model.config
        try:
            return resolve(
                config, ladders=self.ladders, num_globals=model.num_globals, num_patches=model.num_patches
            )
        except ValueError as error:
            raise UserError(f"dtf.{error}") from None


def fingerprint(tensors: dict[str, Tensor], config: TaTokConfig) -> str:
    """SHA-256, hex, over the config and every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(json.dumps(to_dict(config), sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.view(torch.uint8).numpy().tobytes() if tensor.ndim else tensor.numpy().tobytes())
    return digest.hexdigest()


def save_tokenizer(
    url: str, model: TaTok, *, ladders: Ladders, training: dict[str, Any], half: bool = False
) -> str:
    """Write a checkpoint to the folder `url` and return its fingerprint. `half` stores weights as bfloat16."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
    if half:
        tensors = {name: t.bfloat16() if t.is_floating_point() else t for name, t in tensors.items()}
    mark = fingerprint(tensors, model.config)
    description = {
        "format": FORMAT,
        "fingerprint": mark,
        "model": to_dict(model.config),
        "ladders": ladders,
        "training": training,
    }
    storage.publish_bytes(save_tensors(tensors), storage.join(url, WEIGHTS), exclusive=False)
    text = json.dumps(description, indent=1, sort_keys=True) + "\n"
    storage.publish_bytes(text.encode(), storage.join(url, DESCRIPTION), exclusive=False)
    return mark


def load_tokenizer(url: str = PACKAGED, *, device: str | torch.device = "cpu") -> Tokenizer:
    """Load a checkpoint from a folder URL, or the packaged one.

    Raises UserError where there is no checkpoint, its format is unknown, or its bytes are not those that its
    fingerprint was taken over.
    """
    url = packaged_folder() if url == PACKAGED else url
    shown = storage.redact(url)
    try:
        description = json.loads(storage.read_bytes(storage.join(url, DESCRIPTION)))
        weights = storage.read_bytes(storage.join(url, WEIGHTS))
    except FileNotFoundError:
        raise UserError(
            f"tokenizer.checkpoint={shown}: expected a folder with {DESCRIPTION} and {WEIGHTS}; give one that "
            f"train_tokenizer wrote, or {PACKAGED!r}"
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(f"tokenizer.checkpoint={shown}: cannot be read: {error}") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f"tokenizer.checkpoint={shown}: expected checkpoint format {FORMAT}")
    config = from_dict(TaTokConfig, description["model"])
    try:
        tensors = load_tensors(weights)
    except Exception as error:  # safetensors raises its own class for every kind of damage
        raise UserError(f"tokenizer.checkpoint={shown}: {WEIGHTS} is damaged: {error}") from None
    found = fingerprint(tensors, config)
    if found != description["fingerprint"]:
        raise UserError(
            f"tokenizer.checkpoint={shown}: weights and config give fingerprint {found[:12]}, {DESCRIPTION} says "
            f"{description['fingerprint'][:12]}; the folder is damaged or mixed, copy it again"
        )
    model = TaTok(config)
    model.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in tensors.items()})
    return Tokenizer(
        model.eval().requires_grad_(False).to(device),
        description["fingerprint"],
        description["ladders"],
        description["training"],
    )


def packaged_folder() -> str:
    """Where the packaged tokenizer lies on this machine."""
    return str(resources.files("tatok_pipe") / "pretrained" / _PACKAGED_FOLDER)
