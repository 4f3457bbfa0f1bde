"""Generator checkpoints: a folder on any URL with `generator.safetensors` and `generator.json`.

The weights are those that generate: averaged over steps where training had an average.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from tatok_pipe.ar.batch import Vocabulary
from tatok_pipe.ar.model import Generator
from tatok_pipe.ar.options import GeneratorConfig
from tatok_pipe.config.load import from_dict, to_dict
from tatok_pipe.errors import UserError
from tatok_pipe.nn.weights_folder import WeightsFolder, check_size, fingerprint
from tatok_pipe.tokens.spec import TokenSpec

FOLDER = WeightsFolder(
    weights="generator.safetensors",
    description="generator.json",
    format=3,
    option="checkpoint",
    origin="give the output.url of a finished train_ar run, or its generator/",
)


@dataclass(frozen=True)
class LoadedGenerator:
    """A loaded checkpoint. `model` is float32, in eval mode, on the device asked for."""

    model: Generator
    fingerprint: str  # SHA-256 of weights, config and vocabulary
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
    FOLDER.write(
        url,
        weights,
        {
            "model": to_dict(config),
            "vocabulary": asdict(Vocabulary.from_spec(tokens)),
            "tokens": tokens.to_json(),
            "training": training,
        },
    )


def load_generator(
    url: str, *, device: str | torch.device = "cpu", option: str = FOLDER.option
) -> LoadedGenerator:
    """Load a checkpoint from a folder URL, or from `generator` in the output of a train_ar run. `option` is what the
    user calls this choice.

    Raises UserError where there is none, its format is unknown, or one of its files is damaged or of another model.
    """
    folder = replace(FOLDER, option=option)
    description, weights = folder.read(url)
    try:
        config, vocabulary = (
            from_dict(GeneratorConfig, description["model"]),
            Vocabulary(**description["vocabulary"]),
        )
        tokens, training = TokenSpec.from_json(description["tokens"]), dict(description["training"])
    except (KeyError, TypeError, ValueError, UserError) as error:
        raise folder.error(url, f"{folder.description} is damaged: {error}") from None
    try:
        check_size(lambda: Generator(config, vocabulary), description["model"], weights)
    except ValueError as error:
        raise folder.error(url, f"{folder.weights} is of another model: {error}") from None
    model = Generator(config, vocabulary)
    model.load_state_dict(weights)
    mark = fingerprint(weights, {"model": description["model"], "vocabulary": description["vocabulary"]})
    return LoadedGenerator(model.eval().requires_grad_(False).to(device), mark, tokens, training)
