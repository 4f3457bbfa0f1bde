"""From what a study is declared as to its parts, each with a digest of all that it depends on. Pure.

classifier, real ────────────────────────────────────────┐
tokenizer ─ scored ─ tokens ─ step_time ─ generator ─ draw ─ likeness     of every arm, seed and budget
          └ scored ─ test_tokens ─ reconstruction  └ nats
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tatok_pipe import storage
from tatok_pipe.commands.study.declaration import Arm, Declaration
from tatok_pipe.config.load import to_dict
from tatok_pipe.storage import ShardFile
from tatok_pipe.version import __version__

# By whom a part is made: a command, or one of the study's own workers.
COMMAND_KINDS = ("tokenizer", "scored", "tokens", "test_tokens", "generator")
WORKER_KINDS = ("classifier", "real", "step_time", "reconstruction", "draw", "likeness", "nats")
_FORMAT = 1  # to be raised where a part of the same settings becomes another one
_DIGEST_LENGTH = 16


@dataclass(frozen=True)
class Part:
    """`settings` are JSON types; `inputs` are ids of other parts, by what they are to this one. `label` and `words`,
    what a command is told beside them, decide nothing."""

    kind: str
    settings: dict[str, Any]
    inputs: dict[str, str]
    label: str
    words: tuple[str, ...] = ()

    @cached_property
    def id(self) -> str:
        told = {"format": _FORMAT, "version": __version__, "settings": self.settings, "inputs": self.inputs}
        text = json.dumps({"kind": self.kind, **told}, sort_keys=True)
        return f"{self.kind}-{hashlib.sha256(text.encode()).hexdigest()[:_DIGEST_LENGTH]}"


@dataclass(frozen=True)
class Cell:
    """A generator of the study, and the parts that tell of it, by kind."""

    arm: str
    seed: int
    budget: str
    parts: dict[str, str]


@dataclass(frozen=True)
class Design:
    """Parts by id, each after those it depends on: all times of steps come before the first generator."""

    parts: dict[str, Part]
    cells: tuple[Cell, ...]


def design_study(declaration: Declaration) -> Design:
    builder = _Builder(declaration)
    asked = [
        (stage, declaration.arm(name), seed)
        for stage in declaration.stages
        for seed in stage.seeds
        for name in stage.arms
    ]
    for _, arm, seed in asked:
        builder.add_tokens(arm, seed)
    cells: dict[tuple[str, int, str], Cell] = {}  # a generator of two stages is one
    for stage, arm, seed in asked:
        for budget in stage.budgets:
            cell = Cell(arm.name, seed, budget, builder.add_cell(arm, seed, budget))
            cells.setdefault((arm.name, seed, budget), cell)
    return Design(builder.parts, tuple(cells.values()))


class _Builder:
    """Parts by id in the order of their making; what two arms have in common is one part."""

    def __init__(self, declaration: Declaration) -> None:
        self.parts: dict[str, Part] = {}
        self._declaration = declaration
        self._config = config = declaration.config
        images = {"num_classes": config.data.num_classes, "image_size": config.data.image_size}
        self._features = {"features": to_dict(config.measures.features)}
        classifier = {
            "train": _identify(declaration.train),
            "epochs": config.measures.classifier_epochs,
            **images,
        }
        self._classifier = self._add("classifier", classifier, {}, "classifier")
        real = {
            "test": _identify(declaration.test),
            "num_real": config.measures.num_real,
            **images,
            **self._features,
        }
        self._real = self._add("real", real, {"classifier": self._classifier}, "real images")

    def add_tokens(self, arm: Arm, seed: int) -> dict[str, str]:
        """What of an arm comes before its generators, by kind."""
        found = {
            "classifier": self._classifier,
            "real": self._real,
            "tokenizer": self._add_tokenizer(arm, seed),
        }
        dtf, tokenizer = to_dict(arm.config.dtf), {"tokenizer": found["tokenizer"]}
        for kind, shards in (("tokens", self._declaration.train), ("test_tokens", self._declaration.test)):
            told = {"score": arm.config.dtf.score, "data": _identify(shards)}
            words = ["train" if kind == "tokens" else "test"]
            scored = {"scored": self._add("scored", told, tokenizer, f"{arm.name} and its like", words)}
            found[kind] = self._add(kind, {"filter": dtf}, tokenizer | scored, arm.name, _words(dtf))
        of_generators = self._config.generator
        timed = {"generator": arm.generator, "images_per_step": of_generators.images_per_step}
        timed["timed_steps"] = of_generators.timed_steps
        found["step_time"] = self._add(
            "step_time", timed, {"tokens": found["tokens"]}, arm.name, arm.generator_words
        )
        return found

    def add_cell(self, arm: Arm, seed: int, budget: str) -> dict[str, str]:
        """All of a generator, by kind: its training, what is drawn of it, and what is measured."""
        found = self.add_tokens(arm, seed)
        label = f"{arm.name}, seed {seed}, equal {budget}"
        generator = found["generator"] = self._add_generator(arm, seed, budget, found, label)
        networks = {"classifier": self._classifier, "real": self._real, "tokenizer": found["tokenizer"]}
        measures = self._config.measures
        drawn: dict[str, Any] = {"num_images": measures.num_drawn, "slots": measures.slots, "seed": seed}
        drawn["guidance"] = measures.guidance
        drawn["gives_places"] = arm.config.dtf.rule == "none"  # a grid is no choice of places
        models = {"generator": generator, "tokenizer": found["tokenizer"]}
        found["draw"] = self._add("draw", drawn, models, label)
        confidence = {"confidence": self._config.confidence}
        judged = {**self._features, **confidence, "num_images": measures.num_drawn}
        found["likeness"] = self._add("likeness", judged, {**networks, "tokens": found["draw"]}, label)
        found["reconstruction"] = self._add(
            "reconstruction", judged, {**networks, "tokens": found["test_tokens"]}, arm.name
        )
        found["nats"] = self._add(
            "nats", confidence, {"generator": generator, "tokens": found["test_tokens"]}, label
        )
        return found

    def _add_tokenizer(self, arm: Arm, seed: int) -> str:
        if arm.config.checkpoint is not None:
            return self._add(
                "tokenizer", {"checkpoint": arm.tokenizer}, {}, arm.name, [arm.config.checkpoint]
            )
        seed = seed if self._config.tokenizer.per_seed else 0
        told = {"training": arm.tokenizer, "seed": seed, "data": _identify(self._declaration.train)}
        told["validation"] = _identify(self._declaration.validation)
        return self._add("tokenizer", told, {}, arm.name, [*arm.tokenizer_words, f"seed={seed}"])

    def _add_generator(self, arm: Arm, seed: int, budget: str, found: dict[str, str], label: str) -> str:
        options, first = self._config.generator, self._declaration.arms[0]
        settings = {"generator": arm.generator, "images_per_step": options.images_per_step, "seed": seed}
        settings["steps"] = options.steps
        settings["start"] = "codewords"
        inputs = {"tokens": found["tokens"], "tokenizer": found["tokenizer"]}
        if (
            budget == "seconds" and arm.name != first.name
        ):  # the first arm's own seconds are those of its steps
            inputs |= {
                "step_time": found["step_time"],
                "first_step_time": self.add_tokens(first, seed)["step_time"],
            }
        return self._add("generator", settings, inputs, label, [*arm.generator_words, f"seed={seed}"])

    def _add(
        self,
        kind: str,
        settings: dict[str, Any],
        inputs: dict[str, str],
        label: str,
        words: Iterable[str] = (),
    ) -> str:
        part = Part(kind, settings, inputs, label, tuple(words))
        return self.parts.setdefault(part.id, part).id


def _words(dtf: dict[str, Any]) -> list[str]:
    return [f"filter.{name}={'null' if value is None else value}" for name, value in dtf.items()]


def _identify(shards: Iterable[ShardFile]) -> list[list[Any]]:
    """What shards are, and not where they lie."""
    return [[storage.file_name(shard.url), shard.size_bytes, shard.etag] for shard in shards]
