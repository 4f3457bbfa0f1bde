"""A training that goes on from a finished tokenizer: which one fits, and what is taken of it."""

from __future__ import annotations

from typing import Any

from tatok_pipe import storage
from tatok_pipe.config.load import to_dict
from tatok_pipe.errors import UserError
from tatok_pipe.tokenizer.checkpoint import Tokenizer, load_tokenizer
from tatok_pipe.tokenizer.model import TaTok
from tatok_pipe.tokenizer.options import TaTokConfig
from tatok_pipe.training.settings import flatten

_OPTION = "training.start_from"
_NO_MATTER = "search_passes"  # how codes are chosen, not what they mean
_PRIOR = "prior."


def load_start(url: str, config: TaTokConfig) -> Tokenizer:
    """The tokenizer at `url`, for a training of a model of `config`. Raises UserError where there is none, or its model
    is of other settings than these, but for the entropy model's and the search's."""
    source = load_tokenizer(url, option=_OPTION)
    has, wants = _settings(source.model.config), _settings(config)
    if differing := [
        f"model.{name}={wants.get(name)} (there {has.get(name)})"
        for name in {**wants, **has}
        if has.get(name) != wants.get(name) and name != _NO_MATTER and not name.startswith(_PRIOR)
    ]:
        raise UserError(
            f"{_OPTION}={storage.redact(url)}: a tokenizer of another model than {', '.join(differing)}; give its "
            "settings, or start without it"
        )
    return source


def start_from(model: TaTok, source: Tokenizer) -> dict[str, Any]:
    """Give `model` the weights of `source`, the entropy model's where it is of the same size. Returns what is to be
    recorded (JSON types): its fingerprint, how it was made, and whether its entropy model was taken."""
    has_prior = source.model.config.prior == model.config.prior
    weights = source.model.state_dict()
    taken = {name: value for name, value in weights.items() if has_prior or not name.startswith(_PRIOR)}
    own = {name: value for name, value in model.state_dict().items() if name not in taken}
    model.load_state_dict({**taken, **own})
    return {
        "fingerprint": source.fingerprint,
        "has_prior": has_prior,
        "training": _without_curves(source.training),
    }


def _settings(config: TaTokConfig) -> dict[str, Any]:
    return flatten(to_dict(config), without=())


def _without_curves(training: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value for name, value in training.items() if not name.endswith("curve") and name != "held_out"
    }
