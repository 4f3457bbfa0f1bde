"""What images are drawn under: the classes a generator knows, and whether training ever moved what is asked for."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches

from tatok_pipe import storage
from tatok_pipe.ar.checkpoint import LoadedGenerator
from tatok_pipe.config.number_lists import format_numbers
from tatok_pipe.errors import RefusedError, UserError
from tatok_pipe.images.class_names import find_class
from tatok_pipe.tokenizer.checkpoint import Tokenizer

logger = logging.getLogger(__name__)

_GIVEN = {"class": "classes", "embedding": "embeddings"}  # what tells a generator its condition


def trained_classes(generator: LoadedGenerator) -> tuple[int, ...]:
    """Those that an image of the training had; none where the generator is told no class."""
    config = generator.model.config
    untrained = set(generator.training.get("untrained_classes", ()))
    numbers = range(config.num_classes if config.condition == "class" else 0)
    return tuple(number for number in numbers if number not in untrained)


def chosen_classes(text: str, generator: LoadedGenerator) -> tuple[int, ...]:
    """Classes by a text: all, none, or numbers, ranges and names. All are those that an image of the training had, with
    a line of the log where some had none. Raises UserError for what the generator does not have, and for classes that
    are asked for and untrained."""
    model = generator.model.config
    if model.condition != "class":
        if text not in ("all", "none"):
            raise UserError(f"classes={text}: the generator's condition is {model.condition}, no class")
        return ()
    if text == "none":
        return ()
    if text != "all":
        given = parse_classes(
            text, num_classes=model.num_classes, names=generator.tokens.class_names[: model.num_classes]
        )
        check_classes(given, generator, told=text)
        return given
    trained = trained_classes(generator)
    if not trained:
        check_classes(range(model.num_classes), generator, told=text)
    if never := format_numbers(set(range(model.num_classes)).difference(trained)):
        logger.warning("classes=all: no image of %s was in the training; they are left out", never)
    return trained


def check_classes(classes: Iterable[int], generator: LoadedGenerator, *, told: str) -> None:
    """Raises UserError where no image of one of them was in the training; `told` is how they were given."""
    trained = trained_classes(generator)
    if never := format_numbers(set(classes).difference(trained)):
        known = format_numbers(trained) or "none, it was trained without labels"
        raise UserError(
            f"classes={told}: no image of {never} was in the training; expected classes among {known}"
        )


def parse_classes(text: str, *, num_classes: int, names: Sequence[str] = ()) -> tuple[int, ...]:
    """A list of numbers, ranges and names, "0-9,17,tabby"; a name may have commas where it stands alone. Raises
    UserError for what is none, or out of range."""
    if label := _label_of_name(text, names):
        return label
    classes: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", part)
        if match is None:
            named = _label_of_name(part, names)
            if named is None:
                raise UserError(
                    f"classes={text}: {part.strip()!r} is no class; {_expected(num_classes, names, part)}"
                )
            classes += named
            continue
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise UserError(f"classes={text}: {part.strip()} is empty; expected the smaller number first")
        if last >= num_classes:
            raise UserError(f"classes={text}: expected 0 to {num_classes - 1}, the generator's classes")
        classes += range(first, last + 1)
    return tuple(classes)


def _label_of_name(name: str, names: Sequence[str]) -> tuple[int] | None:
    """The one label of that name, None where there is none. Raises UserError where there are several."""
    found = find_class(name, names)
    if len(found) > 1:
        told = " or ".join(f"{each} ({names[each]})" for each in found)
        raise UserError(f"classes: {name.strip()!r} may be {told}; expected one of these numbers")
    return (found[0],) if found else None


def _expected(num_classes: int, names: Sequence[str], given: str) -> str:
    text = f"expected all, none, or a list like 0-9,17 of the numbers 0 to {num_classes - 1}"
    if not names:
        return f"{text}, by which alone the generator knows its classes"
    known = [part.strip() for name in names for part in name.split(",")]
    near = get_close_matches(given.strip(), known) or known[:3]
    return f"{text}, or of names such as {', '.join(near)}"


def check_trained(
    generator: LoadedGenerator, *, is_guided: bool, has_condition: bool, target_tokens: int | None
) -> None:
    """Raises UserError where images would be drawn from weights that training never moved: guided, or without a
    condition. A budget that is not told is a warning."""
    model = generator.model.config
    if is_guided and model.condition == "none":
        raise UserError("guidance: expected 1, the generator has no condition to be guided by")
    # None: its file does not say how it was trained.
    if generator.training.get("config", {}).get("drop_condition") != 0:
        return
    advice = (
        "which the generator was never trained without (drop_condition=0); train one with drop_condition=0.1"
    )
    if is_guided:
        raise UserError(f"guidance: expected 1, it leads away from images without condition, {advice}")
    if model.condition in _GIVEN and not has_condition:
        given = _GIVEN[model.condition]
        raise UserError(f"{given}: none are given, and so no condition, {advice}, or give {given}")
    if model.num_budgets and target_tokens is None:
        logger.warning(
            "target_tokens=null: in training the generator was always told how many tokens an image has "
            "(drop_condition=0), and never learned to do without; give target_tokens"
        )


def check_pair(
    generator: LoadedGenerator,
    tokenizer: Tokenizer,
    *,
    checkpoint: str,
    tokenizer_url: str,
    options: tuple[str, str] = ("checkpoint", "tokenizer"),
) -> None:
    """Raise RefusedError where the generator's tokens are another tokenizer's. `options` are those that name them."""
    if tokenizer.fingerprint != generator.tokens.tokenizer_fingerprint:
        raise RefusedError(
            f"{options[1]}={storage.redact(tokenizer_url)}: has fingerprint {tokenizer.fingerprint[:12]}, and "
            f"{options[0]}={storage.redact(checkpoint)} was trained on tokens of "
            f"{generator.tokens.tokenizer_fingerprint[:12]}; give the tokenizer that its dataset was made with"
        )


def asked_patches(target_tokens: int | None, generator: LoadedGenerator) -> int | None:
    """Patches of an image with about so many tokens. Raises UserError where there can be no such image."""
    if target_tokens is None:
        return None
    tokens = generator.tokens
    if not generator.model.config.num_budgets:
        raise UserError(
            f"target_tokens={target_tokens}: the generator knows no budgets; train one with model.num_budgets=16, or "
            "give sampling.max_patches, which cuts images off"
        )
    lowest, highest = tokens.num_globals, tokens.num_globals + tokens.num_patches
    if not lowest <= target_tokens <= highest:
        raise UserError(
            f"target_tokens={target_tokens}: expected {lowest} to {highest}, images have {lowest} global tokens and at "
            f"most {tokens.num_patches} patch tokens"
        )
    return target_tokens - lowest
