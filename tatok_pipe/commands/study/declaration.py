"""What a study is declared as: arms and stages from their lines of text, data by what their shards are. Mistakes are
told in one line, before anything is begun."""

from __future__ import annotations

import itertools
import re
import shlex
from dataclasses import dataclass
from typing import Any, TypeVar

from tatok_pipe import storage
from tatok_pipe.commands.study.labels import look_at_labels
from tatok_pipe.commands.study.options import ArmConfig, StageConfig, StudyConfig
from tatok_pipe.commands.train_ar.options import TrainArConfig
from tatok_pipe.commands.train_tokenizer.options import TrainTokenizerConfig
from tatok_pipe.config.load import load_config, to_dict
from tatok_pipe.encoding.image_input import ListPlace, find_image_shards
from tatok_pipe.errors import UserError
from tatok_pipe.storage import ShardFile
from tatok_pipe.tokenizer.calibration import PERCENTS, RUNGS, Ladders
from tatok_pipe.tokenizer.checkpoint import load_tokenizer
from tatok_pipe.tokenizer.dtf import PERCENTILES, resolve
from tatok_pipe.tokenizer.options import TaTokConfig
from tatok_pipe.tokenizer.rules import CALIBRATED_RULES
from tatok_pipe.tokenizer.scores.table import SCORES

_NAME = re.compile(r"[a-z0-9][a-z0-9-]*")
_LineConfig = TypeVar("_LineConfig", ArmConfig, StageConfig)
# Of the options of a training: where things lie and how they are computed, not what comes out.
_PLACES = ("checkpoints", "logging", "workers", "storage", "dry_run", "output", "seed")


@dataclass(frozen=True)
class Arm:
    name: str
    config: ArmConfig
    tokenizer: dict[
        str, Any
    ]  # settings of its tokenizer: those of a training, or the fingerprint of a checkpoint
    model: TaTokConfig  # of its tokenizer
    tokenizer_words: list[str]  # how train_tokenizer is told them; none for a checkpoint
    generator: dict[str, Any]  # settings of its generator, but for steps, seed and rows
    generator_words: list[str]


@dataclass(frozen=True)
class Stage:
    name: str
    arms: tuple[str, ...]
    seeds: tuple[int, ...]
    budgets: tuple[str, ...]


@dataclass(frozen=True)
class Declaration:
    config: StudyConfig
    arms: tuple[Arm, ...]
    stages: tuple[Stage, ...]
    train: tuple[ShardFile, ...]
    test: tuple[ShardFile, ...]
    validation: tuple[ShardFile, ...]  # none where no tokenizer is trained

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


def declare(config: StudyConfig) -> Declaration:
    """Raises UserError for whatever cannot be meant."""
    if not config.arms:
        raise UserError(
            "arms=[]: expected at least one, as NAME key=value …; configs/study/headline.yaml has some"
        )
    arms = tuple(_read_arm(text, config) for text in config.arms)
    _check_names("arms", [arm.name for arm in arms])
    _check_account(config.account, [arm.name for arm in arms])
    stages = tuple(_read_stage(text, [arm.name for arm in arms]) for text in config.stages)
    _check_names("stages", [stage.name for stage in stages])
    looks = any(arm.tokenizer_words for arm in arms)
    images = {name: _find_shards(config, name) for name in ("train", "test", *["validation"] * looks)}
    _check_apart(images)
    look_at_labels(
        {f"data.{name}": images[name] for name in ("train", "test")},
        image_size=config.data.image_size,
        num_classes=config.data.num_classes,
    )
    validation = images.get("validation", ())
    return Declaration(
        config, arms, _up_to(stages, config.stage), images["train"], images["test"], validation
    )


def _check_apart(images: dict[str, tuple[ShardFile, ...]]) -> None:
    for one, other in itertools.combinations(images, 2):
        if both := {shard.url for shard in images[one]} & {shard.url for shard in images[other]}:
            raise UserError(
                f"{storage.redact(min(both))}: in data.{one} and in data.{other}; give it to one of them"
            )


def _find_shards(config: StudyConfig, name: str) -> tuple[ShardFile, ...]:
    given = getattr(config.data, name)
    if not given:
        raise UserError(f"data.{name}: not given; expected image shards, on a URL or path")
    place = ListPlace(storage.join(config.output.url, f"_{name}.parquet"))
    return tuple(find_image_shards(given, option=f"data.{name}", place=place))


def _check_names(option: str, names: list[str]) -> None:
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{option}: {name} is given twice; give one of them another name")


def _read_line(text: str, option: str, config_class: type[_LineConfig]) -> tuple[str, _LineConfig]:
    """The name at the beginning of a line, and what its key=value say."""
    words = _split(text, option)
    name = words[0] if words else ""
    if not _NAME.fullmatch(name):
        raise UserError(f"{option}: {text!r}: expected NAME key=value …, a name of a-z, 0-9 and -")
    for word in words[1:]:
        if "=" not in word or word.startswith("-"):
            raise UserError(f"{option}: {name}: {word!r}: expected key=value")
    try:
        return name, load_config(config_class, words[1:], prog="", description="")
    except UserError as error:
        raise UserError(f"{option}: {name}: {error}") from None


def _split(text: str, option: str) -> list[str]:
    """Words, of which a list in brackets is one."""
    joined = re.sub(r"\[[^\]]*\]", lambda found: re.sub(r"\s+", "", found[0]), text)
    try:
        return shlex.split(joined)
    except ValueError as error:
        raise UserError(f"{option}: {text!r}: {error}; expected NAME key=value …") from None


def _read_arm(text: str, study: StudyConfig) -> Arm:
    name, arm = _read_line(text, "arms", ArmConfig)
    tokenizer_words: list[str] = []
    if arm.checkpoint is None:
        tokenizer_words = [study.tokenizer.config, *study.tokenizer.options, *arm.tokenizer]
    classes = f"model.num_classes={study.data.num_classes}"
    generator_words = [classes, *study.generator.options, *arm.generator]
    try:
        generator = _look_at_generator(generator_words)
        look = _look_at_training if tokenizer_words else _look_at_checkpoint
        tokenizer, model = look(arm, tokenizer_words)
        if model.image_size != study.data.image_size:
            raise UserError(
                f"its tokenizer is for images of {model.image_size} px; expected "
                f"data.image_size={study.data.image_size}"
            )
    except UserError as error:
        raise UserError(f"arms: {name}: {error}") from None
    return Arm(name, arm, tokenizer, model, tokenizer_words, generator, generator_words)


def _look_at_generator(words: list[str]) -> dict[str, Any]:
    """The settings of a training, but for what is the study's business."""
    config = load_config(TrainArConfig, words, prog="", description="")
    if config.model.condition == "embedding":
        raise UserError("model.condition=embedding: expected class or none, the labels of the images")
    without = (*_PLACES, "input", "tokenizer", "packing", "validation")
    settings = {key: value for key, value in to_dict(config).items() if key not in without}
    for key in ("steps", "epochs", "batch_tokens"):
        del settings["training"][key]
    return settings


def _look_at_checkpoint(arm: ArmConfig, words: list[str]) -> tuple[dict[str, Any], TaTokConfig]:
    if arm.tokenizer:
        raise UserError(f"tokenizer={arm.tokenizer}, checkpoint={arm.checkpoint}: give one of them")
    tokenizer = load_tokenizer(str(arm.checkpoint), option="checkpoint")
    tokenizer.filter(arm.dtf)
    return {"fingerprint": tokenizer.fingerprint}, tokenizer.model.config


def _look_at_training(arm: ArmConfig, words: list[str]) -> tuple[dict[str, Any], TaTokConfig]:
    config = load_config(TrainTokenizerConfig, words, prog="", description="")
    model, ladders = config.model, _ladders_to_come(config.model)
    try:
        resolve(arm.dtf, ladders=ladders, num_globals=model.num_globals, num_patches=model.num_patches)
    except ValueError as error:
        raise UserError(f"dtf.{error}") from None
    settings = {key: value for key, value in to_dict(config).items() if key not in _PLACES}
    settings["half"] = config.output.half
    for key in ("input", "validation"):
        settings[key] = {
            name: value for name, value in settings[key].items() if name not in ("shards", "other_stores")
        }
    return settings, model


def _ladders_to_come(model: TaTokConfig) -> Ladders:
    """Rungs as a training's calibration will have them, without values."""
    kept = [[share * model.num_patches, 0.0] for share in RUNGS]
    rules = {rule: kept for rule in CALIBRATED_RULES}
    return {score: {**rules, PERCENTILES: [[float(each), 0.0] for each in PERCENTS]} for score in SCORES}


def _check_account(account: list[str], arms: list[str]) -> None:
    if unknown := [name for name in account if name not in arms]:
        raise UserError(f"account: {unknown[0]}: no such arm; expected some of {', '.join(arms)}")
    if len(account) == 1 or len(set(account)) < len(account):
        raise UserError(f"account={account}: expected two arms or more, each of them once")


def _read_stage(text: str, arms: list[str]) -> Stage:
    name, stage = _read_line(text, "stages", StageConfig)
    if unknown := [arm for arm in stage.arms if arm not in arms]:
        raise UserError(f"stages: {name}: arms={unknown[0]}: no such arm; expected some of {', '.join(arms)}")
    # In the order of the arms, and always with the first, which all are compared with.
    chosen = [arm for arm in arms if arm in stage.arms or not stage.arms or arm == arms[0]]
    return Stage(name, tuple(chosen), tuple(stage.seeds), tuple(stage.budgets))


def _up_to(stages: tuple[Stage, ...], last: str | None) -> tuple[Stage, ...]:
    names = [stage.name for stage in stages]
    if last is None:
        return stages
    if last not in names:
        raise UserError(f"stage={last}: no such stage; expected one of {', '.join(names)}")
    return stages[: names.index(last) + 1]
