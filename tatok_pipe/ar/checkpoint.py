"""Generator checkpoints: a folder on any URL with `generator.safetensors` and `generator.json`. Nothing is unpickled.

The weights are those that generate: averaged over steps where training had an average.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from tatok_pipe import storage
from tatok_pipe.ar.batch import Vocabulary
from tatok_pipe.ar.model import Generator, GeneratorConfig
from tatok_pipe.config import from_dict, to_dict
from tatok_pipe.errors import UserError
from tatok_pipe.tokens.spec import TokenSpec

FORMAT = 1
WEIGHTS = "generator.safetensors"
DESCRIPTION = "generator.json"


@dataclass(frozen=True)
class LoadedGenerator:
    """A loaded checkpoint. `model` is float32, in eval mode, on the device asked for."""

    model: Generator
    tokens: TokenSpec  # what it was trained on: vocabulary, tokenizer fingerprint, filter
    training: dict[str, Any]  # how it was made, free form


def save_generator(
    url: str,
    weights: dict[str, Tensor],
    *,
    config: GeneratorConfig,
    tokens: TokenSpec,
    training: dict[str, Any],
) -> None:
    """Write a checkpoint to the folder `url`; the description comes last and makes it whole."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
    description = {
        "format": FORMAT,
        "model": to_dict(config),
        "vocabulary": asdict(Vocabulary.from_spec(tokens)),
        "tokens": tokens.to_json(),
        "training": training,
    }
    storage.publish_bytes(save_tensors(tensors), storage.join(url, WEIGHTS), exclusive=False)
    text = json.dumps(description, indent=1, sort_keys=True) + "\n"
    storage.publish_bytes(text.encode(), storage.join(url, DESCRIPTION), exclusive=False)


def load_generator(url: str, *, device: str | torch.device = "cpu") -> LoadedGenerator:
    """Load a checkpoint from a folder URL.

    Raises UserError where there is none, its format is unknown, or one of its files is damaged or of another model.
    """
    shown = storage.redact(url)
    try:
        description = json.loads(storage.read_bytes(storage.join(url, DESCRIPTION)))
        weights = storage.read_bytes(storage.join(url, WEIGHTS))
    except FileNotFoundError:
        raise UserError(
            f"checkpoint={shown}: expected a folder with {DESCRIPTION} and {WEIGHTS}; give `<output.url>/generator` of "
            "a train_ar run"
        ) from None
    except (ValueError, OSError) as error:
        raise UserError(f"checkpoint={shown}: cannot be read: {error}") from None
    if not isinstance(description, dict) or description.get("format") != FORMAT:
        raise UserError(f"checkpoint={shown}: expected generator format {FORMAT}")
    try:
        model = Generator(
            from_dict(GeneratorConfig, description["model"]), Vocabulary(**description["vocabulary"])
        )
        tokens, training = TokenSpec.from_json(description["tokens"]), dict(description["training"])
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise UserError(f"checkpoint={shown}: {DESCRIPTION} is damaged: {error}") from None
    try:
        model.load_state_dict(load_tensors(weights))
    except Exception as error:  # safetensors raises its own class for every kind of damage
        line = " ".join(str(error).split())[:200]
        raise UserError(f"checkpoint={shown}: {WEIGHTS} is damaged or of another model: {line}") from None
    return LoadedGenerator(model.eval().requires_grad_(False).to(device), tokens, training)
